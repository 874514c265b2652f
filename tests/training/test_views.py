"""Test-time augmentation against loops over the views of one image at a time."""

from dataclasses import asdict
from functools import cache
from itertools import product
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxnets.data.preprocessing import FiveCrops, Preprocessing, resized
from jaxnets.data.sources import Record
from jaxnets.errors import InputError
from jaxnets.prediction import predict
from jaxnets.pretrained import Pretrained
from jaxnets.training.evaluation import Evaluator
from jaxnets.training.views import VIEWS
from tests.training.networks import compiling, cpus
from tests.training.tiny import Tiny, make_variables

PREPROCESSING = Preprocessing(8, 11, (0.3, 0.4, 0.5), (0.4, 0.3, 0.2))
SIZES = ((20, 31), (33, 17), (11, 11), (40, 12), (9, 30))


class Photos:
    """Noise of several sizes, height before width."""

    def __len__(self) -> int:
        return 13

    def __getitem__(self, index: int) -> Record:
        random = np.random.default_rng(index)
        return Record(random.integers(0, 256, (*SIZES[index % len(SIZES)], 3)).astype(np.uint8), index % 3)

    def where(self, index: int) -> str:
        return f"photo {index}"

    def fingerprint(self) -> str:
        return "photos"


def crops(image: np.ndarray) -> list[np.ndarray]:
    """Corners and centre of the whole resized image, as torchvision's FiveCrop cuts them."""
    picture = Image.fromarray(image)
    width, height = resized(*picture.size, 11)
    if image.shape[0] > 2 * image.shape[1] and height < image.shape[0]:  # as Pillow 13 orders its passes
        tall = picture.resize((picture.width, height), Image.Resampling.BILINEAR)
        whole = np.asarray(tall.resize((width, height), Image.Resampling.BILINEAR))
    else:
        wide = picture.resize((width, picture.height), Image.Resampling.BILINEAR)
        whole = np.asarray(wide.resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - 8) / 2), round((width - 8) / 2)
    return [whole[:8, :8], whole[:8, -8:], whole[-8:, :8], whole[-8:, -8:], whole[top : top + 8, left : left + 8]]


def views(image: np.ndarray, tta: str) -> list[np.ndarray]:
    if tta == "five-crop":
        return list(FiveCrops(**asdict(PREPROCESSING)).pixels(image))
    pixels = PREPROCESSING.pixels(image)
    return [pixels, pixels[:, ::-1]]


@cache
def expected(tta: str) -> np.ndarray:
    """The mean in float64 of the probabilities of the views, one view at a time."""
    model, logits = Tiny(), []
    variables = make_variables(model)
    run = jax.jit(lambda pixels: model.apply(variables, PREPROCESSING.normalise(pixels[None]), train=False)[0])
    for index in range(len(Photos())):
        logits.append([run(view) for view in views(np.asarray(Photos()[index].image), tta)])
    shares = np.exp(np.array(logits, np.float64))
    return (shares / shares.sum(-1, keepdims=True)).mean(1)


@pytest.mark.parametrize("size", SIZES)
def test_crops_are_cut_from_the_resized_image(size: tuple[int, int]) -> None:
    image = np.asarray(Photos()[SIZES.index(size)].image)
    five = FiveCrops(8, 11).pixels(image)
    np.testing.assert_allclose(five.astype(int), np.array(crops(image), int), atol=1)
    np.testing.assert_array_equal(five[4], PREPROCESSING.pixels(image))


@pytest.mark.parametrize("tta", VIEWS)
def test_probabilities_are_the_means_over_the_views(tta: str) -> None:
    model = Tiny()
    variables, labels = make_variables(model), np.arange(13) % 3
    shares = expected(tta)
    plain = Evaluator(model, PREPROCESSING, 13, cpus(1))(variables, Photos()).probabilities
    assert abs(shares - plain).max() > 1e-3
    spread = ((1, "auto"), (8, "pmap"), (8, "shard_map"))
    with compiling(quickly=True):
        for batch_size, (count, kind) in product((5, 16), spread):
            parallel = cpus(count, kind)
            evaluate = Evaluator(model, PREPROCESSING, batch_size, parallel, tta=tta)
            actual = evaluate(parallel.replicate(variables), Photos())
            np.testing.assert_allclose(actual.probabilities, shares, atol=1e-6)
            np.testing.assert_array_equal(actual.labels, labels)
            loss = -np.log(actual.probabilities[np.arange(13), labels].astype(np.float64)).mean()
            assert actual.metrics["loss"] == pytest.approx(loss, rel=1e-5)
            assert actual.metrics["count"] == 13


@pytest.mark.parametrize("tta", VIEWS)
def test_prediction_takes_the_same_views(tta: str) -> None:
    model = Tiny()
    classifier: Any = Pretrained(model, make_variables(model), PREPROCESSING, ("a", "b", "c"))
    evaluated = Evaluator(model, PREPROCESSING, 13, cpus(1), tta=tta)(classifier.variables, Photos()).probabilities
    predictions = list(predict(classifier, Photos(), top=9, batch_size=6, tta=tta, probabilities=True))
    for prediction, shares in zip(predictions, evaluated, strict=True):
        np.testing.assert_allclose(prediction.probabilities, shares, atol=1e-6)
        assert [guess.label for guess in prediction.guesses] == list(np.argsort(-shares))


def test_there_must_be_a_margin_for_crops() -> None:
    with pytest.raises(InputError, match=r"five-crop needs a margin.* 8 pixels .* use flip"):
        Evaluator(Tiny(), Preprocessing(8, 8), 4, tta="five-crop")
    with pytest.raises(InputError, match="unknown test-time augmentation 'mirror'; expected flip or five-crop"):
        Evaluator(Tiny(), PREPROCESSING, 4, tta="mirror")
