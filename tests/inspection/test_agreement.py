"""Class maps and occlusion agree on where a pasted object is, for networks of all families trained to find it."""

from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from jaxnets.inspection import grad_cam, occlusion, resize_maps
from tests.inspection.objects import FAMILIES, NOTHING, objects, trained


@pytest.mark.slow
@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("family", FAMILIES)
def test_class_maps_and_occlusion_agree_on_the_object(family: str) -> None:
    network = FAMILIES[family]
    model, side, variables = network.model, network.side, trained(network)
    data = objects(48, seed=3, side=side)
    logits = jax.jit(partial(model.apply, train=False))(variables, data.images)
    # A network that does not recognise the objects has no reason to look at them.
    assert np.mean(np.argmax(logits, axis=1) == data.labels) > 0.95
    shown = data.labels != NOTHING
    images, labels, masks = data.images[shown], data.labels[shown], data.masks()[shown]
    drops = occlusion(model, variables, images, labels, window=side // 4, stride=side // 8, batch_size=128)
    maps = grad_cam(model, variables, images, labels, network.stage)

    height, width = maps.shape[1:]
    ranks = [
        spearmanr(heat.ravel(), np.asarray(_averaged(np.maximum(drop, 0), height, width)).ravel()).statistic
        if heat.any() and (drop > 0).any()
        else 0.0  # an empty map has no relation to another
        for heat, drop in zip(maps, drops, strict=True)
    ]
    share = masks.mean()  # what a map without information has on the object
    for heat in (resize_maps(maps, side, side), np.maximum(drops, 0)):
        inside = [heat[i][masks[i]].sum() / max(heat[i].sum(), 1e-9) for i in range(len(heat))]
        assert np.mean(inside) > 2 * share
    # Maps without a relation have correlations about 0.
    assert np.mean(ranks) > 0.4, np.mean(ranks)


def _averaged(values: np.ndarray, height: int, width: int) -> Image.Image:
    return Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
