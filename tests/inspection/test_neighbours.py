"""The most similar images, against scikit-learn, and principal components."""

import builtins
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from jaxnets.errors import InputError
from jaxnets.inspection import neighbours
from jaxnets.inspection.embedding import draw_embedding, principal_components, umap_embedding
from jaxnets.inspection.neighbours import highest, nearest


@pytest.mark.parametrize("block", [1 << 24, 700])
def test_neighbours_are_those_of_scikit_learn(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", block)  # 700: three queries at a time
    random = np.random.default_rng(0)
    features, queries = random.normal(size=(200, 3, 4)), random.normal(size=(31, 3, 4))
    counts: list[int] = []
    indices, similarities = nearest(queries, features, 7, done=counts.append)
    reference = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(features.reshape(200, -1))
    distances, expected = reference.kneighbors(queries.reshape(31, -1))
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-5)
    assert counts[-1] == 31
    # Of the features themselves.
    indices, _ = nearest(features, features, 7, leave_out_self=True)
    np.testing.assert_array_equal(indices, reference.kneighbors(return_distance=False))


def test_there_are_at_most_as_many_neighbours_as_images() -> None:
    features = np.eye(3)
    assert nearest(features, features, 9)[0].shape == (3, 3)
    assert nearest(features, features, 9, leave_out_self=True)[0].shape == (3, 2)
    with pytest.raises(InputError, match="k=0"):
        nearest(features, features, 0)
    with pytest.raises(InputError, match="expected the same"):
        nearest(features, features[:, :2])


def test_the_highest_are_in_order_and_the_first_of_equals() -> None:
    values = np.random.default_rng(0).integers(0, 5, (50, 20)).astype(np.float32)
    for k in (1, 4, 20):
        indices, chosen = highest(values, k)
        expected = np.argsort(-values, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(chosen, np.take_along_axis(values, expected, axis=1))


@pytest.mark.parametrize("shape", [(40, 7), (9, 30)])
def test_principal_components_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    features = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1)
    points, shares = principal_components(features, 3)
    reference = PCA(3, svd_solver="full").fit(features)
    expected = reference.transform(features)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_, rtol=1e-8)
    signs = np.sign((points * expected).sum(axis=0))
    np.testing.assert_allclose(points * signs, expected, atol=1e-8 * np.abs(expected).max())


@pytest.mark.skipif(find_spec("umap") is None, reason="needs umap-learn: pip install 'jaxnets[umap]'")
def test_umap_keeps_groups_apart_and_takes_few_images() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    features = np.eye(3)[labels] @ random.normal(size=(3, 16)) + 0.05 * random.normal(size=(60, 16))
    points = umap_embedding(features.reshape(60, 4, 4))
    np.testing.assert_array_equal(points, umap_embedding(features))  # of any shape, the same again
    within = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(return_distance=False)
    assert (labels[within] == labels[:, None]).all()
    # Few images, equal ones, and features of zero.
    for rows in (features[:3], features[:11], np.ones((12, 5)), np.zeros((4, 5))):
        assert umap_embedding(rows).shape == (len(rows), 2)
        assert np.isfinite(umap_embedding(rows)).all()
    with pytest.raises(InputError, match="2 images; expected at least 3"):
        umap_embedding(features[:2])


def test_without_umap_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def fail(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "umap":
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "umap", raising=False)
    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(InputError, match=r"pip install 'jaxnets\[umap\]'"):
        umap_embedding(np.eye(5))


def test_a_figure_names_axes_and_classes() -> None:
    points, labels = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 30
    names = [f"_class {label}" for label in range(30)]
    figure = draw_embedding(points, labels, names, axes=("left", "up"))
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("left", "up")
    (legend,) = figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == names
    drawn = np.concatenate([dots.get_offsets() for dots in axis.collections])
    assert sorted(map(tuple, drawn.tolist())) == sorted(map(tuple, points.tolist()))
    looks = {(tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.shape) for dots in axis.collections}
    assert len(looks) == 30
