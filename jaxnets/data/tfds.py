"""Reads TFDS data sets from ArrayRecord files, without TensorFlow."""

import contextlib
import difflib
import hashlib
import io
import os
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxnets.data.division import Division, even_positions
from jaxnets.data.part_names import SPLITS, part_of
from jaxnets.data.sources import Dataset, Record
from jaxnets.data.tfrecord import convert, example_parser, one_line
from jaxnets.errors import InputError

# tensorflow_datasets is slow to import, so functions import it when they need it.

# TFDS stores unpublished labels as -1.
_UNLABELLED, _UNREADABLE = -1, -2
# Records that tell whether a split has labels. Reading all of them would read all images.
_LABEL_SAMPLE = 200
_SAMPLE_BYTES = 1 << 16

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
        """The record, without a check of its label."""
        if not 0 <= index < len(self.examples):
            raise IndexError(index)
        try:
            features = self.parse(self.examples[index]).features.feature
            return Record(features[self.image_key].bytes_list.value[0], features[self.label_key].int64_list.value[0])
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(
                f"{self.where(index)}: can't be read ({one_line(error)}); restore the file, or move its folder away "
                "and prepare the data set again"
            ) from None

    def where(self, index: int) -> str:
        first = 0
        for path, records in self.shards:
            if index < first + records:
                return f"{path} record {index - first}"
            first += records
        raise IndexError(index)

    def fingerprint(self) -> str:
        """A SHA-256 of the keys, and of the names, the sizes and a sample of the bytes of the files."""
        digest = hashlib.sha256(repr((self.image_key, self.label_key)).encode())
        for path, records in self.shards:
            size = os.path.getsize(path)
            digest.update(repr((os.path.basename(path), records, size)).encode())
            with open(path, "rb") as file:
                for position in (0, size // 2, max(size - _SAMPLE_BYTES, 0)):
                    file.seek(position)
                    digest.update(file.read(_SAMPLE_BYTES))
        return digest.hexdigest()


def load_tfds(name: str, data_dir: Path | None, division: Division) -> Dataset:
    """Loads the TFDS data set NAME[/CONFIG][:VERSION] from `data_dir`, by default TFDS's own folder.

    The val and test images are those of the first labelled splits validation (or val, dev, ...) and test. What the data
    set lacks is held out of the split train as `division` says. Raises InputError if the data set is not prepared, is
    damaged, or is not for image classification.
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
    training = _named(present, "train")
    if not training:
        raise InputError(f"{name} has no split train, only {', '.join(present)}; choose a data set with a split train")
    train = _source(name, builder, training[0])
    warnings: list[str] = []
    class_names = tuple(builder.info.features[train.label_key].names)
    given: dict[str, TfdsSource] = {}
    origins: dict[str, str] = {}
    for part in SPLITS:
        for candidate in _named(present, part):
            source = _source(name, builder, candidate)
            sample = np.unique(np.linspace(0, len(source) - 1, _LABEL_SAMPLE).astype(int)).tolist()
            if _UNLABELLED not in _labels(source, sample):
                given[part], origins[part] = source, f"split {candidate}"
                break
            warnings.append(f"warning: the split {candidate} of {name} has images without labels and is not used")
    dataset = Dataset(
        name,
        class_names,
        train,
        given.get("test"),
        val=given.get("val"),
        origins=origins,
        warnings=tuple(warnings),
    )
    if not division.lacking(dataset):
        return dataset
    labels = _labels(train, range(len(train)))
    return division.divide(dataset, labels, even_positions(labels))


def _named(splits: Sequence[str], part: str) -> list[str]:
    """The splits whose names stand for a part of a data set, plain names such as "val" first."""
    return sorted((split for split in splits if part_of(split) == part), key=lambda split: (not split.isalpha(), split))


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
            convert(builder)
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
            message = f"preparing {name} needs another package ({one_line(error)}); install it, {again}"
        raise InputError(message) from error
    except Exception as error:  # TFDS, requests and each data set's code raise exceptions of their own.
        raise InputError(f"{name} can't be prepared ({one_line(error)}); fix this, {again}") from error
    return "prepared"


def _root(data_dir: Path | None) -> Path:
    from tensorflow_datasets.core import constants

    return Path(constants.DATA_DIR if data_dir is None else data_dir).expanduser()


def _command(name: str, data_dir: Path | None) -> str:
    option = "" if data_dir is None else f" --data-dir {shlex.quote(str(data_dir))}"
    return f"python -m experiments.prepare {name}{option}"


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
            f"{name} in {root / parsed.name} can't be read ({one_line(error)}); move this folder away and prepare the "
            "data set again"
        ) from error


def _unknown(name: str) -> InputError:
    import tensorflow_datasets as tfds

    matches = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False))
    hint = f"did you mean {' or '.join(matches)}?" if matches else "see https://www.tensorflow.org/datasets/catalog"
    return InputError(
        f"unknown data set {name!r}: there is no such folder or CSV file here, and no such data set of TFDS; expected "
        f"digits, a folder of images, a .csv file, or NAME[/CONFIG][:VERSION] of TFDS; {hint}"
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
    return TfdsSource(f"{name} {split}", examples, example_parser(), image_key, label_key, classes, shards)


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


def _labels(source: TfdsSource, indices: Sequence[int]) -> np.ndarray:
    """The labels [N] of the records. Those that can't be read have the label -2; the check of all images names them."""

    def read(chunk: Sequence[int]) -> list[int]:
        labels = []
        for index in chunk:
            try:
                labels.append(source.unchecked(index).label)
            except InputError:
                labels.append(_UNREADABLE)
        return labels

    chunks = [indices[start : start + 64] for start in range(0, len(indices), 64)]
    with ThreadPoolExecutor() as pool:
        return np.array([label for labels in pool.map(read, chunks) for label in labels], np.int64)
