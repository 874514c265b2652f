"""Public data sets, as people unpack them, are read right or refused in one line; none is read wrong."""

from pathlib import Path

import pytest

from jaxnets.data.datasets import load_dataset
from jaxnets.data.division import Division
from jaxnets.data.folder import FolderSource, class_order
from jaxnets.errors import InputError
from tests.data.layouts import LAYOUTS, PublicLayout, expanded, write


def images_in(root: Path, folder: str, classes: list[str]) -> set[str]:
    """The images of the classes below a folder, without the thumbnails of network drives."""
    paths = [path for name in classes for path in (root / folder / name).rglob("*.jpg") if "@eaDir" not in path.parts]
    return {path.relative_to(root).as_posix() for path in paths}


def names(source: object) -> list[str]:
    assert isinstance(source, FolderSource)
    return [Path(name).as_posix() for name, _ in source.files]


def test_there_are_at_least_sixty() -> None:
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS) >= 60


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_public_data_sets_are_read_right_or_refused(layout: PublicLayout, tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(layout, root)
    if layout.refused:
        with pytest.raises(InputError) as caught:
            load_dataset(str(root), division=Division(val_share=0))
        message = str(caught.value)
        assert layout.refused in message
        assert message.isprintable()
        assert len(message) < 420 + 3 * len(str(root)), message
        return
    dataset = load_dataset(str(root), division=Division(val_share=0))
    classes = list(expanded(layout.classes))
    assert sorted(dataset.class_names) == sorted(classes)
    assert list(dataset.class_names) == class_order(classes)
    of_part = {part: names(source) for part, source in dataset.parts.items()}
    if layout.val is None and layout.test is None:
        assert sorted(of_part["train"] + of_part["test"]) == sorted(images_in(root, layout.train, classes))
        assert not set(of_part["train"]) & set(of_part["test"])
    else:
        folders = {"train": layout.train, "val": layout.val, "test": layout.test}
        expected = {part: images_in(root, folder, classes) for part, folder in folders.items() if folder is not None}
        assert {part: sorted(found) for part, found in of_part.items()} == {
            part: sorted(images) for part, images in expected.items()
        }
    for source in dataset.parts.values():
        assert isinstance(source, FolderSource)
        for name, label in source.files:
            assert classes[classes.index(dataset.class_names[label])] in Path(name).parts
        assert {label for _, label in source.files} == set(range(len(classes)))
    warnings = " ".join(dataset.warnings)
    assert (layout.warns or "") in warnings
    assert bool(layout.warns) == bool(warnings)
