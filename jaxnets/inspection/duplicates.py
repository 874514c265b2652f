"""Images that occur twice: with the same pixels, or as copies that were resized, recompressed, cropped or mirrored."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from jaxnets.data.decoding import open_image, pixels_of
from jaxnets.data.pipeline import IMAGES_PER_TASK, in_order
from jaxnets.data.sources import Source
from jaxnets.errors import InputError
from jaxnets.inspection.alignment import aligned
from jaxnets.inspection.neighbours import nearest

# `in_order` already uses one thread per core.
cv2.setNumThreads(0)

SIDE = 32
# Frequencies on each axis with which similar images are found, and with which pairs are judged after alignment.
_COARSE, _FINE = 8, 12
# The most similar images of each image that are compared more closely.
_CANDIDATES = 6
# What may be a copy before alignment: at this share of the distance to the last candidate, or of the typical one.
_NEAR, _NEAR_TYPICAL = 0.65, 0.5
# What is a copy: each other's nearest by a factor, or at this share of the typical distance between similar images.
_GAP, _MOST_TYPICAL = 2.0, 0.25
# With a gap alone, this share.
_MOST_WITH_GAP = 0.6


@dataclass(frozen=True)
class Pair:
    """Two images, as the name of their part and their index in it; `similarity` is the correlation after alignment."""

    part: str
    index: int
    other_part: str
    other_index: int
    exact: bool
    mirrored: bool
    similarity: float


def find_duplicates(parts: Mapping[str, Source], done: Callable[[int], None] = lambda count: None) -> list[Pair]:
    """Pairs of duplicates in the parts of a data set: those across parts first, and of each the most similar first.

    Of images with the same decoded pixels each is paired with the first. Near-duplicates are pairs whose brightness,
    after alignment, is much more similar than that of other images in the data set: so data of images that resemble
    each other, such as digits, get few false alarms, but crops of small images are not found. No network is needed.
    `done` gets the number of images read. Raises InputError with its name for an image that can't be read.
    """
    places = [(part, index) for part, source in parts.items() for index in range(len(source))]
    thumbnails, digests = read_thumbnails(parts, done)
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    pairs = [
        _pair(places[first[of]], places[index], True, False, 1.0)
        for index, of in enumerate(group)
        if index != first[of]
    ]
    unique = np.sort(first)
    for one, other, mirrored, similarity in near_pairs(thumbnails[unique]):
        pairs.append(_pair(places[unique[one]], places[unique[other]], False, mirrored, similarity))
    return sorted(pairs, key=lambda pair: (pair.part == pair.other_part, not pair.exact, -pair.similarity))


def _pair(one: tuple[str, int], other: tuple[str, int], exact: bool, mirrored: bool, similarity: float) -> Pair:
    return Pair(one[0], one[1], other[0], other[1], exact, mirrored, similarity)


def read_thumbnails(
    parts: Mapping[str, Source], done: Callable[[int], None] = lambda count: None
) -> tuple[np.ndarray, np.ndarray]:
    """Grey thumbnails, float32 [N, 32, 32], and digests [N] of the decoded pixels, of all parts in order."""
    tasks = [
        (source, range(start, min(start + IMAGES_PER_TASK, len(source))))
        for source in parts.values()
        for start in range(0, len(source), IMAGES_PER_TASK)
    ]
    thumbnails: list[np.ndarray] = []
    digests: list[bytes] = []

    def read(task: tuple[Source, range]) -> list[tuple[np.ndarray, bytes]]:
        return [_thumbnail(task[0], index) for index in task[1]]

    for results in in_order(read, tasks):
        for thumbnail, digest in results:
            thumbnails.append(thumbnail)
            digests.append(digest)
        done(len(digests))
    return np.stack(thumbnails) if thumbnails else np.empty((0, SIDE, SIDE), np.float32), np.array(digests, "S16")


def _thumbnail(source: Source, index: int) -> tuple[np.ndarray, bytes]:
    try:
        pixels = np.ascontiguousarray(pixels_of(open_image(source[index].image)))
    except InputError as error:
        where = source.where(index)
        raise InputError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=8).hexdigest().encode()
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    shrinks = min(grey.shape) >= SIDE
    return cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), digest


def near_pairs(thumbnails: np.ndarray) -> list[tuple[int, int, bool, float]]:
    """Near-duplicates among thumbnails [N, 32, 32]: both indices, whether one is mirrored, and the similarity."""
    if len(thumbnails) < 2:
        return []
    neighbours, mirrored, distances = _similar(thumbnails)
    last = distances[:, -1]
    typical = float(np.median(last))
    close = (distances <= _NEAR * last[:, None]) | (distances <= _NEAR_TYPICAL * typical)
    # All candidates of an image that may have a copy, so that they are compared with each other.
    rows = np.flatnonzero(close[:, 0])
    if not len(rows):
        return []
    count = neighbours.shape[1]
    one, other, flipped = np.repeat(rows, count), neighbours[rows].ravel(), mirrored[rows].ravel()
    images = np.where(flipped[:, None, None], thumbnails[other][:, :, ::-1], thumbnails[other])
    similarity = _aligned_similarity(thumbnails[one], images)
    judged = _distance(similarity).reshape(len(rows), count)
    order = np.argsort(judged, axis=1)
    ranked = np.take_along_axis(judged, order, axis=1)
    # The last gap; what lies before it are copies.
    gaps = ranked[:, 1:] >= _GAP * ranked[:, :-1]
    before = np.where(gaps, np.arange(1, count), 0).max(axis=1, initial=0)
    rank = np.argsort(order, axis=1)
    by_gap = (rank < before[:, None]) & (judged <= _MOST_WITH_GAP * typical)
    by_distance = judged <= _MOST_TYPICAL * typical
    best: dict[tuple[int, int], tuple[bool, float]] = {}
    sides: dict[tuple[int, int], int] = {}
    for a, b, flip, score, gap, near in zip(
        one, other, flipped, similarity, by_gap.ravel(), by_distance.ravel(), strict=True
    ):
        pair = (int(min(a, b)), int(max(a, b)))
        sides[pair] = sides.get(pair, 0) + (2 if near else int(gap))
        if pair not in best or score > best[pair][1]:
            best[pair] = bool(flip), float(score)
    return [(*pair, *best[pair]) for pair, agreed in sides.items() if agreed >= 2]


def _similar(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The most similar images of each [N, k], whether mirrored, and the distances before alignment."""
    features = _spectrum(thumbnails, _COARSE)
    # A mirrored image has the opposite sign at odd frequencies across.
    signs = np.where(np.arange(_COARSE) % 2, -1, 1) * np.ones((_COARSE, 1))
    reflected = features * signs.ravel()[1:].astype(np.float32)
    matches = [nearest(features, other, _CANDIDATES, leave_out_self=True) for other in (features, reflected)]
    indices, values = (np.concatenate(arrays, axis=1) for arrays in zip(*matches, strict=True))
    flipped = np.arange(indices.shape[1]) >= matches[0][0].shape[1]
    order = np.argsort(-values, axis=1, kind="stable")
    indices, values, flipped = (
        np.take_along_axis(indices, order, 1),
        np.take_along_axis(values, order, 1),
        flipped[order],
    )
    # Of an image that is similar both ways, the better way.
    again = np.tril(indices[:, :, None] == indices[:, None, :], -1).any(axis=2)
    order = np.argsort(again, axis=1, kind="stable")[:, : min(_CANDIDATES, len(thumbnails) - 1)]
    values = np.take_along_axis(values, order, 1)
    return np.take_along_axis(indices, order, 1), np.take_along_axis(flipped, order, 1), _distance(values)


def _aligned_similarity(thumbnails: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Correlations [N] of pairs, aligned to the first or to the second: what is cropped off is only in one of them."""
    pairs = ((thumbnails, images), (images, thumbnails))
    return np.maximum(*((_spectrum(a, _FINE) * _spectrum(aligned(a, b), _FINE)).sum(axis=1) for a, b in pairs))


def _spectrum(thumbnails: np.ndarray, count: int) -> np.ndarray:
    """The lowest `count` x `count` frequencies but the mean, as rows of length 1.

    They are weighted by their frequency, as those of photos fall in proportion to it: so all count alike.
    """
    side = thumbnails.shape[1]
    frequencies = np.arange(count)
    cosines = np.cos(np.pi * (2 * np.arange(side) + 1) * frequencies[:, None] / (2 * side)).astype(np.float32)
    weights = np.hypot(frequencies[:, None], frequencies).astype(np.float32)
    rows = ((cosines @ thumbnails @ cosines.T) * weights).reshape(len(thumbnails), -1)[:, 1:]
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    # Images of one colour, up to rounding, are similar to none.
    return np.where(length > 1e-2 * side, rows / np.maximum(length, 1e-6), 0)


def _distance(similarity: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(2 - 2 * similarity, 0))
