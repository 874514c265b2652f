"""Converts TFDS data sets from TFRecord to ArrayRecord, without TensorFlow."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxnets.errors import InputError


def convert(builder: Any) -> None:
    """Copies the TFRecord files of a data set to ArrayRecord files in the same folder, as TFDS would name them."""
    from array_record.python.array_record_module import ArrayRecordWriter

    parse = example_parser()
    shards = []
    for split in builder.info.splits.values():
        sources = split.filename_template.sharded_filepaths(split.num_shards)
        targets = split.filename_template.replace(filetype_suffix="array_record").sharded_filepaths(split.num_shards)
        shards += list(zip(sources, targets, split.shard_lengths, strict=True))
    folder = Path(builder.data_dir)
    part = folder / "converting"
    try:
        for source, target, records in tqdm(shards, desc=f"converting {builder.info.name}", unit="file", disable=None):
            if target.exists():
                continue
            # With groups of one record, a read decodes no other records.
            writer, written = ArrayRecordWriter(str(part), "group_size:1"), 0
            for record in _tfrecords(source):
                parse(record)
                writer.write(record)
                written += 1
            writer.close()
            if written != records:
                raise InputError(f"{source} has {written} records; expected {records}; restore the file")
            os.replace(part, target)
        # Written last, so that only a complete data set counts as ArrayRecord.
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        info["alternativeFileFormats"] = [*info.get("alternativeFileFormats", []), "array_record"]
        part.write_text(json.dumps(info, indent=2), encoding="utf-8")
        os.replace(part, folder / "dataset_info.json")
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{folder} can't be converted ({one_line(error)}); fix this and run it again") from error
    finally:
        part.unlink(missing_ok=True)


def _tfrecords(path: Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file.

    A record is its length (8 bytes), a checksum (4), the data and a checksum (4). The checksums are not verified, as
    this is slow in Python, so damage inside an image goes unnoticed here.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        while file.tell() < size:
            header = file.read(12)
            length = struct.unpack_from("<Q", header)[0] + 4 if len(header) == 12 else size
            if length > size - file.tell():
                raise InputError(f"{path} is damaged or truncated; restore the file")
            yield file.read(length)[:-4]


def example_parser() -> Callable[[bytes], Any]:
    """Returns a parser of tf.train.Example that raises ValueError for invalid bytes."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    def parse(example: bytes) -> Any:
        try:
            return tf_example_pb2.Example.FromString(example)
        except DecodeError as error:
            raise ValueError(str(error)) from None

    return parse


def one_line(error: Exception) -> str:
    """Formats an exception as one line."""
    return " ".join(str(error).split()) or type(error).__name__
