"""Reads TFDS data sets from ArrayRecord files, without TensorFlow."""

import contextlib
import difflib
import hashlib
import io
import json
import os
import shlex
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from jaxnets.data.hashing import mix64
from jaxnets.data.sources import Dataset, Record, Source, Subset
from jaxnets.errors import InputError

# tensorflow_datasets is slow to import, so functions import it when they need it.

Outcome = Literal["already prepared", "converted from TFRecord", "prepared"]


@dataclass(frozen=True)
class TfdsSource:
    """One split of a prepared data set: the encoded images that TFDS stored, and their labels."""

    name: str
    # Serialized tf.train.Example protocol buffers. TFDS's own parser is slower, as it also decodes unused features.
    examples: Sequence[bytes]
    parse: Callable[[bytes], Any]
    image_key: str
    label_key: str
    classes: int
    shards: Sequence[tuple[str, int]]  # path, records

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Record:
        record = self.unchecked(index)
        if not 0 <= record.label < self.classes:
            raise InputError(f"{self.where(index)}: label {record.label}; expected 0 to {self.classes - 1}")
        return record

    def unchecked(self, index: int) -> Record:
        """The record, without a check of its label. TFDS stores unpublished labels as -1."""
        if not 0 <= index < len(self.examples):
            raise IndexError(index)
        try:
            features = self.parse(self.examples[index]).features.feature
            return Record(features[self.image_key].bytes_list.value[0], features[self.label_key].int64_list.value[0])
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(
                f"{self.where(index)}: can't be read ({_line(error)}); restore the file, or move its folder away and "
                "prepare the data set again"
            ) from None

    def where(self, index: int) -> str:
        first = 0
        for path, records in self.shards:
            if index < first + records:
                return f"{path} record {index - first}"
            first += records
        raise IndexError(index)

    def fingerprint(self) -> str:
        shards = [(path, records, os.path.getsize(path)) for path, records in self.shards]
        return hashlib.sha256(repr((self.image_key, self.label_key, shards)).encode()).hexdigest()


def load_tfds(name: str, data_dir: Path | None, test_share: float) -> Dataset:
    """Loads the TFDS data set NAME[/CONFIG][:VERSION] from `data_dir`, by default TFDS's own folder.

    The test images are the first labelled split of test and validation, or else a fixed `test_share` of train. Raises
    InputError if the data set is not prepared, is damaged, or is not for image classification.
    """
    builder = _find(name, data_dir)
    if builder is None:
        raise InputError(f"{name} is not prepared in {_root(data_dir)}; run {_command(name, data_dir)}")
    if "array_record" not in _formats(builder):
        raise InputError(
            f"{name} in {builder.data_dir} is stored as {', '.join(_formats(builder))}, which has no random access; "
            f"convert it to array_record once: {_command(name, data_dir)}"
        )
    present = [split for split, info in builder.info.splits.items() if info.num_examples]
    if "train" not in present:
        raise InputError(f"{name} has no split train, only {', '.join(present)}; choose a data set with a split train")
    train = _source(name, builder, "train")
    class_names = tuple(builder.info.features[train.label_key].names)
    for split in ("test", "validation"):
        if split in present:
            test = _source(name, builder, split)
            if test.unchecked(0).label >= 0:
                return Dataset(name, class_names, train, test)
    return Dataset(name, class_names, *_divided(train, test_share))


def prepare_tfds(name: str, data_dir: Path | None) -> Outcome:
    """Downloads a TFDS data set as ArrayRecord files, or converts an existing one from TFRecord.

    Removes no existing files. After an interruption, the next call reuses downloads and converted files. Converting
    does not need TensorFlow. Raises InputError with the reason if the data set can't be prepared.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    builder = _find(name, data_dir)
    if builder is not None:
        if "array_record" in _formats(builder):
            return "already prepared"
        if "tfrecord" in _formats(builder):
            _convert(builder)
            return "converted from TFRecord"
        raise InputError(
            f"{name} in {builder.data_dir} is stored as {', '.join(_formats(builder))}; expected array_record or "
            "tfrecord; move this folder away and prepare the data set again"
        )
    again = "then run the same command again"
    try:
        # TFDS prints a banner of several lines if TensorFlow is missing.
        with contextlib.redirect_stdout(io.StringIO()):
            new = tfds.builder(name, data_dir=_root(data_dir))
            if new.data_path.exists():
                raise InputError(f"{new.data_path} is not {name}; move it away, {again}")
            new.download_and_prepare(
                file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    except InputError:
        raise
    except registered.DatasetNotFoundError:
        raise _unknown(name) from None
    except ImportError as error:
        if (error.name or "").split(".")[0] in ("tensorflow", "importlib_resources"):
            message = f"preparing {name} needs TensorFlow once: pip install 'jaxnets[tfds]', {again}"
        else:
            message = f"preparing {name} needs another package ({_line(error)}); install it, {again}"
        raise InputError(message) from error
    except Exception as error:  # TFDS, requests and each data set's code raise exceptions of their own.
        raise InputError(f"{name} can't be prepared ({_line(error)}); fix this, {again}") from error
    return "prepared"


def _root(data_dir: Path | None) -> Path:
    from tensorflow_datasets.core import constants

    return Path(constants.DATA_DIR if data_dir is None else data_dir).expanduser()


def _command(name: str, data_dir: Path | None) -> str:
    option = "" if data_dir is None else f" --data-dir {shlex.quote(str(data_dir))}"
    return f"python -m experiments.prepare {name}{option}"


def _line(error: Exception) -> str:
    """Formats an exception as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _find(name: str, data_dir: Path | None) -> Any:
    """Returns the builder of a prepared data set from its files, or None if a known data set is not prepared."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming, read_only_builder, registered

    try:
        parsed, options = naming.parse_builder_name_kwargs(name)
    except ValueError:
        raise _unknown(name) from None
    # TFDS accepts a newline at the end.
    if name != name.strip() or parsed.namespace or not options.keys() <= {"config", "version"}:
        raise _unknown(name)
    root = _root(data_dir)
    try:
        return read_only_builder.builder_from_files(name, data_dir=root)
    except registered.DatasetNotFoundError:
        if parsed.name not in tfds.list_builders(with_community_datasets=False) and not (root / parsed.name).is_dir():
            raise _unknown(name) from None
        return None
    except Exception as error:  # The JSON, protocol buffer and TFDS libraries raise many types.
        raise InputError(
            f"{name} in {root / parsed.name} can't be read ({_line(error)}); move this folder away and prepare the "
            "data set again"
        ) from error


def _unknown(name: str) -> InputError:
    import tensorflow_datasets as tfds

    matches = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False))
    hint = f"did you mean {' or '.join(matches)}?" if matches else "see https://www.tensorflow.org/datasets/catalog"
    return InputError(
        f"unknown data set {name!r}; expected digits, a folder, or NAME[/CONFIG][:VERSION] of TFDS; {hint}"
    )


def _formats(builder: Any) -> list[str]:
    return sorted(file_format.value for file_format in builder.info.available_file_formats())


def _source(name: str, builder: Any, split: str) -> TfdsSource:
    import tensorflow_datasets as tfds

    image_key, label_key = _key(name, builder, tfds.features.Image), _key(name, builder, tfds.features.ClassLabel)
    image = builder.info.features[image_key]
    if image.np_dtype != np.uint8:
        raise InputError(f"the images of {name} are {image.np_dtype}; expected uint8; choose another data set")
    examples = builder.as_data_source(
        split, file_format="array_record", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    shards = [(str(shard.filename), shard.examples_in_shard) for shard in builder.info.splits[split].file_instructions]
    for path, _ in shards:
        if not os.path.exists(path):
            raise InputError(f"{path} is missing; restore it, or move its folder away and prepare the data set again")
    classes = builder.info.features[label_key].num_classes
    return TfdsSource(f"{name} {split}", examples, _parser(), image_key, label_key, classes, shards)


def _parser() -> Callable[[bytes], Any]:
    """Returns a parser of tf.train.Example that raises ValueError for invalid bytes."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    def parse(example: bytes) -> Any:
        try:
            return tf_example_pb2.Example.FromString(example)
        except DecodeError as error:
            raise ValueError(str(error)) from None

    return parse


def _key(name: str, builder: Any, feature_type: type) -> str:
    """The key of the supervised feature of this type, or else of the only feature of this type."""
    features = builder.info.features
    # Not isinstance: a segmentation mask is an Image too.
    items = features.items() if hasattr(features, "items") else ()
    all_keys = sorted(key for key, feature in items if type(feature) is feature_type)
    keys = [key for key in all_keys if key in (builder.info.supervised_keys or ())] or all_keys
    if len(keys) != 1:
        raise InputError(
            f"{name} is not for image classification: it has {len(keys)} {feature_type.__name__} features"
            f"{''.join(f' {key}' for key in keys)}; expected one; choose another data set"
        )
    return keys[0]


def _divided(whole: Source, test_share: float) -> tuple[Source, Source]:
    """Splits the records in a fixed random way, as some data sets are sorted by class."""
    count = round(test_share * len(whole))
    if not 0 < count < len(whole):
        raise InputError(
            f"test_share={test_share} of {len(whole)} images leaves no training or no test images; give another share"
        )
    order = np.argsort(mix64(np.arange(len(whole), dtype=np.uint64)))
    return Subset(whole, np.sort(order[count:])), Subset(whole, np.sort(order[:count]))


def _convert(builder: Any) -> None:
    """Copies the TFRecord files of a data set to ArrayRecord files in the same folder, as TFDS would name them."""
    from array_record.python.array_record_module import ArrayRecordWriter

    parse = _parser()
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
        raise InputError(f"{folder} can't be converted ({_line(error)}); fix this and run it again") from error
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
