"""The recipes: what their papers and reference implementations say, and that networks can be trained by them."""

import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxnets
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe
from jaxnets.training.recipes import RECIPES, recipe_for
from jaxnets.training.schedules import SCHEDULES
from jaxnets.training.state import create_state
from jaxnets.training.step import train_step
from tests.tiers import slow_except
from tests.training.tiny import PREPROCESSING, Tiny, make_batch, make_state, make_variables, step_of

# He et al. 2015, section 3.4; the 2012 paper's section 5 has the same momentum and lowers the rate tenfold as well.
_DESCENT = {"optimizer": "momentum", "momentum": 0.9, "loss": "cross_entropy", "label_smoothing": 0.0}
_TENFOLD = {"schedule": "multi_step", "decay_factor": 0.1, "warmup_epochs": 0.0}
_NO_MIXING = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "random_erasing": 0.0, "trivial_augment": False, "repeats": 1}
_STRIKES_BACK = {
    "optimizer": "lamb",
    "batch_size": 2048,
    "schedule": "cosine",
    "warmup_epochs": 5.0,
    "loss": "binary_cross_entropy",
    "cutmix_alpha": 1.0,
    "random_erasing": 0.0,
    "color_jitter": 0.0,
    "ema_decay": 0.0,
    "flip": 0.5,
    "crop_pct": 0.95,
    "image_size": 224,
    "decay_norms_and_biases": False,
    "dropout_rate": None,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    # Krizhevsky et al. 2012, sections 4.1 and 5: "roughly 90 cycles", "reduced three times prior to termination".
    "alexnet_2012": _DESCENT
    | _TENFOLD
    | _NO_MIXING
    | {"epochs": 90, "batch_size": 128, "learning_rate": 0.01, "weight_decay": 0.0005, "image_size": 224, "flip": 0.5}
    | {"min_crop_area": round((224 / 256) ** 2, 2), "crop_pct": 224 / 256},
    # Szegedy et al. 2014, section 6: "decreasing the learning rate by 4% every 8 epochs", 8% to 100%, Polyak averaging;
    # BVLC's bvlc_googlenet/solver.prototxt: base_lr, weight_decay, batch_size; 10,000,000 steps of 32 images.
    "googlenet_2014": _DESCENT
    | _NO_MIXING
    | {"schedule": "step", "decay_factor": 0.96, "decay_epochs": (8.0,), "warmup_epochs": 0.0}
    | {"batch_size": 32, "learning_rate": 0.01, "weight_decay": 0.0002, "epochs": round(10_000_000 * 32 / 1_281_167)}
    | {"image_size": 224, "min_crop_area": 0.08, "flip": 0.5, "aux_weight": 0.3, "decay_norms_and_biases": False},
    # He et al. 2015, section 3.4: 600,000 steps of 256; a 224 crop at a scale of 256 to 480.
    "resnet_2015": _DESCENT
    | _TENFOLD
    | _NO_MIXING
    | {"epochs": round(600_000 * 256 / 1_281_167), "batch_size": 256, "learning_rate": 0.1, "weight_decay": 0.0001}
    | {"image_size": 224, "flip": 0.5, "crop_pct": 224 / 256},
    # He et al. 2015, section 4.2: 64,000 steps of 128 on 50,000 images, a tenth at 32,000 and 48,000, 4 pixels of 32.
    "resnet_cifar": _DESCENT
    | _TENFOLD
    | _NO_MIXING
    | {"epochs": round(64_000 * 128 / 50_000), "batch_size": 128, "learning_rate": 0.1, "weight_decay": 0.0001}
    | {"decay_epochs": (round(32_000 * 128 / 50_000), round(48_000 * 128 / 50_000)), "shift": 4 / 32, "flip": 0.5}
    | {"image_size": 32, "min_crop_area": 0.0, "crop_pct": 1.0},
    # Xie et al. 2017, section 4; fb.resnet.torch: datasets/imagenet.lua, train.lua.
    "resnext_2017": _DESCENT
    | _TENFOLD
    | _NO_MIXING
    | {"batch_size": 256, "learning_rate": 0.1, "weight_decay": 0.0001, "decay_epochs": (30.0, 60.0, 90.0)}
    | {"image_size": 224, "min_crop_area": 0.08, "color_jitter": 0.4, "flip": 0.5, "crop_pct": 224 / 256}
    | {"decay_norms_and_biases": True},
    # torchvision's references/classification/train.py, its defaults, on 8 GPUs.
    "torchvision_v1": _DESCENT
    | _NO_MIXING
    | {"epochs": 90, "batch_size": 8 * 32, "learning_rate": 0.1, "weight_decay": 1e-4, "decay_norms_and_biases": True}
    | {"schedule": "step", "decay_epochs": (30.0,), "decay_factor": 0.1, "warmup_epochs": 0.0, "ema_decay": 0.0}
    | {"image_size": 224, "crop_pct": 224 / 256, "min_crop_area": 0.08, "flip": 0.5, "color_jitter": 0.0},
    # Its README, "ResNet-50 V2": --batch-size=128 (8 GPUs) --lr=0.5 --lr-scheduler=cosineannealinglr
    # --lr-warmup-epochs=5 --auto-augment=ta_wide --epochs=600 --random-erase=0.1 --label-smoothing=0.1
    # --mixup-alpha=0.2 --cutmix-alpha=1.0 --weight-decay=0.00002 --norm-weight-decay=0.0 --train-crop-size=176
    # --model-ema --val-resize-size=232 --ra-sampler --ra-reps=4.
    "torchvision_v2": {"optimizer": "momentum", "momentum": 0.9, "epochs": 600, "batch_size": 8 * 128}
    | {"learning_rate": 0.5, "schedule": "cosine", "end_share": 0.0, "warmup_epochs": 5.0, "weight_decay": 2e-5}
    | {"decay_norms_and_biases": False, "label_smoothing": 0.1, "mixup_alpha": 0.2, "cutmix_alpha": 1.0, "repeats": 4}
    | {"trivial_augment": True, "random_erasing": 0.1, "train_image_sizes": (176,), "image_size": 224, "flip": 0.5}
    | {"crop_pct": 224 / 232, "min_crop_area": 0.08, "loss": "cross_entropy"}
    # --model-ema-steps=32 --model-ema-decay=0.99998: that to the power of 1024 * 32 / 600 every 32 steps.
    | {"ema_decay": round((1 - 2e-5 * 1024 * 32 / 600) ** (1 / 32), 5)},
    # Wightman et al. 2021, table 2.
    "timm_a1": _STRIKES_BACK
    | {"epochs": 600, "learning_rate": 5e-3, "weight_decay": 0.01, "label_smoothing": 0.1, "mixup_alpha": 0.2}
    | {"repeats": 3, "stochastic_depth_rate": 0.05, "train_image_sizes": ()},
    "timm_a2": _STRIKES_BACK
    | {"epochs": 300, "learning_rate": 5e-3, "weight_decay": 0.02, "label_smoothing": 0.0, "mixup_alpha": 0.1}
    | {"repeats": 3, "stochastic_depth_rate": 0.05, "train_image_sizes": ()},
    "timm_a3": _STRIKES_BACK
    | {"epochs": 100, "learning_rate": 8e-3, "weight_decay": 0.02, "label_smoothing": 0.0, "mixup_alpha": 0.1}
    | {"repeats": 1, "stochastic_depth_rate": 0.0, "train_image_sizes": (160,)},
}
# The networks that the recipes were made for.
NETWORKS = {
    "alexnet_2012": "alexnet_2012",
    "googlenet_2014": "googlenet_2014",
    "resnet_2015": "resnet18",
    "resnet_cifar": "resnet20_cifar",
    "resnext_2017": "resnext50_32x4d",
}
CHANCES = ("flip", "shift", "color_jitter", "trivial_augment", "random_erasing", "mixup_alpha", "cutmix_alpha")
# Another value of each setting.
OTHERS: dict[str, Any] = {
    "image_size": 65,
    "sampler": "balanced",
    "class_weights": "balanced",
    "epochs": 7,
    "batch_size": 30,
    "optimizer": "lamb",
    "learning_rate": 1 / 3,
    "weight_decay": 0.2,
    "momentum": 0.7,
    "decoupled_weight_decay": True,
    "decay_norms_and_biases": True,
    "clip_norm": 1.5,
    "accumulation": 3,
    "loss": "binary_cross_entropy",
    "label_smoothing": 0.25,
    "target_threshold": 0.3,
    "aux_weight": 0.4,
    "head_epochs": 1,
    "layer_decay": 0.75,
    "schedule": "multi_step",
    "warmup_epochs": 1.75,
    "decay_epochs": (1.5, 3.0),
    "decay_factor": 0.3,
    "end_share": 0.01,
    "power": 2.0,
    "train_image_sizes": (63, 64),
    "crop_pct": 0.9,
    "min_crop_area": 0.1,
    "shift": 0.05,
    "flip": 0.4,
    "color_jitter": 0.3,
    "trivial_augment": True,
    "random_erasing": 0.15,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 0.9,
    "repeats": 2,
    "dropout_rate": 0.35,
    "stochastic_depth_rate": 0.1,
    "zero_init_residual": True,
    "batch_norm": "synchronised",
    "precise_batch_norm_images": 100,
    "ema_decay": 0.99,
    "remat": True,
    "patience_epochs": 5,
}
LEAST = Recipe(image_size=8, epochs=1, batch_size=8, optimizer="sgd", learning_rate=0.1, weight_decay=0.0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_those_of_their_papers(name: str) -> None:
    recipe = RECIPES[name]
    assert {setting: getattr(recipe, setting) for setting in PUBLISHED[name]} == PUBLISHED[name]


def test_every_recipe_but_the_house_ones_is_of_a_paper() -> None:
    assert set(RECIPES) - set(PUBLISHED) == {"fast", "finetune", "linear_probe"}


@pytest.mark.parametrize("name", slow_except(("timm_a1",), RECIPES))
def test_each_recipe_trains_a_step(name: str) -> None:
    # Without what changes the images, which takes long to compile, and which the next test traces.
    recipe = replace(RECIPES[name], **dict.fromkeys(CHANCES, 0))
    state = make_state(recipe, make_variables(Tiny()))
    after, sums = step_of(recipe, Tiny())(state, make_batch(4))
    assert (sums["count"], sums["skipped"]) == (4, 0)
    for new, old in zip(*map(jax.tree.leaves, (after.params, state.params)), strict=True):
        assert np.isfinite(new).all()
        assert (np.asarray(new) != np.asarray(old)).any()
    assert bool(after.ema) == (name in ("googlenet_2014", "torchvision_v2"))


@pytest.mark.parametrize("name", slow_except(("resnet_cifar", "timm_a3"), RECIPES))
def test_its_network_takes_each_recipe(name: str) -> None:
    recipe = RECIPES[name]
    model: Any = Config(NETWORKS.get(name, "resnet18"), recipe).create_model(5)
    if hasattr(model, "stage_sizes"):
        model = model.clone(stage_sizes=tuple(1 for _ in model.stage_sizes))
    optimizer = recipe.make_optimizer(recipe.schedule_of(100, 1000))
    step = partial(train_step, model=model, optimizer=optimizer, preprocessing=PREPROCESSING, recipe=recipe)
    size = recipe.train_image_size(0)
    state = jax.eval_shape(lambda: create_state(model, optimizer, 0, size, ema=recipe.ema_decay > 0))
    after, _ = jax.eval_shape(lambda state: step(state, make_batch(4, size=size)), state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.leaves(after) == jax.tree.leaves(state)


@pytest.mark.parametrize("name", [*RECIPES, None])
def test_a_configuration_keeps_all_of_its_recipe(name: str | None, tmp_path: Path) -> None:
    recipe = RECIPES[name] if name else Recipe(**{**OTHERS, "loss": "cross_entropy"})
    assert set(OTHERS) == {setting.name for setting in fields(Recipe)}
    config = Config(
        "resnet50", recipe, "photos", 5, "bfloat16", "/data", 0.3, "skip", 7, "DEFAULT", "partial", "layer3"
    )
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    kept = json.loads(path.read_text())["recipe"]
    assert list(kept) == [setting.name for setting in fields(Recipe)]
    assert Config.read(path) == config
    assert Config.from_dict(json.loads(config.to_json())) == config


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text in ("{", "[]", "{}", Config("resnet50", LEAST).to_json().replace("shift", "shifts")):
        path.write_text(text)
        with pytest.raises(InputError, match=r"config.json is damaged or from another version"):
            Config.read(path)


@pytest.mark.parametrize("name", OTHERS)
def test_no_setting_that_changes_numbers_may_change_where_a_run_goes_on(name: str) -> None:
    before = Config("resnet50", replace(LEAST, epochs=2, decay_epochs=(1.0,), schedule="step"))
    other = {"schedule": "exponential", "decay_epochs": (2.0,), "accumulation": 2}.get(name, OTHERS[name])
    now = replace(before, recipe=replace(before.recipe, **{name: other}))
    if name == "remat":
        now.check_resumes(before)
    else:
        with pytest.raises(InputError, match=f"^the run began with {name}=.*; resume with the same"):
            now.check_resumes(before)
    replace(now, dataset="elsewhere", data_dir="/moved", log_every=3).check_resumes(now)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0; expected a number of at least 1$"),
        ({"epochs": 0}, "epochs=0"),
        ({"image_size": -8}, "image_size=-8"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1"),
        ({"learning_rate": 0.0}, "learning_rate=0"),
        ({"learning_rate": -1}, "learning_rate=-1"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"weight_decay": -1}, "weight_decay=-1; expected a number of at least 0$"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"flip": 1.5}, "flip=1.5; expected a number of at least 0 and at most 1$"),
        ({"crop_pct": 1e-12}, "crop_pct=1e-12; expected a number of at least 0.1 and at most 1"),
        ({"min_crop_area": 2}, "min_crop_area=2"),
        ({"mixup_alpha": -0.2}, "mixup_alpha=-0.2"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
        ({"train_image_sizes": (8, 0)}, "train_image_sizes=0"),
        ({"decay_epochs": (1.0, -1.0)}, "decay_epochs=-1.0"),
        ({"optimizer": "adm"}, "unknown optimizer 'adm'; expected one of .*adam"),
        ({"schedule": "cosinus"}, f"unknown schedule 'cosinus'; expected one of {', '.join(SCHEDULES)}$"),
        ({"batch_norm": "global"}, "unknown batch_norm 'global'; expected one of local, synchronised, frozen$"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"accumulation": 3}, "batch_size=8 can't be split into accumulation=3 parts"),
        ({"batch_norm": "frozen", "precise_batch_norm_images": 9}, "batch_norm=frozen keeps the statistics"),
        ({"train_image_sizes": (8, 9)}, "2 train_image_sizes, but epochs=1; give fewer"),
    ],
)
def test_recipes_refuse_what_cannot_train(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(LEAST, **change)


@pytest.mark.parametrize(
    ("changes", "formula"),
    [
        # 1000 images in batches of 100: ten steps an epoch.
        ({}, lambda t: (t + 1) / 11 if t < 10 else (1 + np.cos(np.pi * (t - 10) / 90)) / 2),
        ({"warmup_epochs": 9.0}, lambda t: (t + 1) / 21 if t < 20 else (1 + np.cos(np.pi * (t - 20) / 80)) / 2),
        ({"schedule": "linear", "end_share": 0.1, "warmup_epochs": 0.0}, lambda t: 0.1 + 0.9 * (1 - t / 100)),
        ({"schedule": "polynomial", "power": 3.0, "warmup_epochs": 0.0}, lambda t: (1 - t / 100) ** 3),
        ({"schedule": "step", "decay_epochs": (2.5,), "warmup_epochs": 0.5},
         lambda t: min(1, (t + 1) / 6) * 0.1 ** (t // 25)),
        ({"schedule": "multi_step", "decay_epochs": (3.0, 6.0), "decay_factor": 0.5, "warmup_epochs": 0.0},
         lambda t: 0.5 ** ((t >= 30) + (t >= 60))),
        ({"schedule": "exponential", "decay_epochs": (2.0,), "warmup_epochs": 0.0}, lambda t: 0.1 ** (t / 20)),
        ({"schedule": "constant", "warmup_epochs": 0.0}, lambda t: 1.0),
        ({"schedule": "one_cycle", "warmup_epochs": 4.0},
         lambda t: 0.04 + 0.96 * (1 - np.cos(np.pi * t / 39)) / 2 if t < 39
         else 4e-6 + (1 - 4e-6) * (1 + np.cos(np.pi * (t - 39) / 60)) / 2),
    ],
)  # fmt: skip
def test_epochs_of_a_schedule_are_steps_through_the_images(
    changes: dict[str, Any], formula: Callable[[int], float]
) -> None:
    recipe = replace(LEAST, epochs=10, batch_size=100, learning_rate=0.3, **changes)
    actual = recipe.schedule_of(100, 1000)(np.arange(100))
    np.testing.assert_allclose(actual, [0.3 * formula(step) for step in range(100)], rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_every_network_takes_the_images_of_its_recipe(dataset: str) -> None:
    for name in jaxnets.list_models():
        model: Any = jaxnets.create_model(name, num_classes=10)
        assert recipe_for(name, dataset).image_size >= model.smallest_image


@pytest.mark.parametrize("name", RECIPES)
def test_on_digits_recipes_keep_how_they_train(name: str) -> None:
    for arch in ("alexnet", "googlenet", "resnet18", "resnet20_cifar"):
        default, recipe, published = recipe_for(arch), recipe_for(arch, "digits", name), RECIPES[name]
        assert recipe_for(arch, "photos", name) == published
        # 8 pixels wide and never mirrored.
        assert (recipe.flip, recipe.min_crop_area, recipe.crop_pct) == (0, 0, 1)
        assert max(recipe.image_size, *recipe.train_image_sizes, 0) <= default.image_size
        if name != "fast":
            for setting in ("epochs", "optimizer", "learning_rate", "loss", "mixup_alpha", "ema_decay", "decay_epochs"):
                assert getattr(recipe, setting) == getattr(published, setting)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"momentum": 0.8}, "momentum=0.8 has no effect with optimizer=sgd, only with momentum, nesterov"),
        ({"end_share": 0.1, "schedule": "constant"}, "end_share=0.1 has no effect with schedule=constant"),
        ({"power": 2.0}, "power=2.0 has no effect with schedule=cosine, only with polynomial"),
        ({"decay_epochs": (3.0,)}, r"decay_epochs=\(3.0,\) has no effect with schedule=cosine, only with step"),
        ({"decay_factor": 0.5}, "decay_factor=0.5 has no effect with schedule=cosine"),
        ({"target_threshold": 0.2}, "target_threshold=0.2 has no effect with loss=cross_entropy"),
        (
            {"schedule": "multi_step", "decay_epochs": (30.0, 60.0), "epochs": 20},
            r"rate never decays: decay_epochs=\(30.0, 60.0\) is beyond epochs=20; .*--decay-epochs",
        ),
        ({"schedule": "step", "decay_epochs": (20.0,), "epochs": 20}, "rate never decays"),
        ({"sampler": "balanced", "class_weights": "balanced"}, "corrects the sizes of the classes twice"),
        ({"decoupled_weight_decay": True, "optimizer": "lars"}, "decoupled_weight_decay=True has no effect with"),
        (
            {"train_image_sizes": (6, 10), "epochs": 2},
            r"train_image_sizes=\(6, 10\), larger than the test images, image_size=8; .*--train-image-sizes",
        ),
    ],
)
def test_unlikely_settings_give_a_warning(change: dict[str, Any], words: str) -> None:
    (warning,) = replace(LEAST, **change).warnings()
    assert re.match(f"warning: .*{words}", warning)


@pytest.mark.parametrize(
    "change",
    [
        {"momentum": 0.8, "optimizer": "muon"},
        {"end_share": 0.1, "schedule": "linear"},
        {"power": 2.0, "end_share": 0.1, "schedule": "polynomial"},
        {"decay_epochs": (3.0,), "decay_factor": 0.5, "schedule": "exponential"},
        {"schedule": "multi_step", "decay_epochs": (19.0, 60.0), "epochs": 20},
        {"target_threshold": 0.2, "loss": "binary_cross_entropy"},
        {"decoupled_weight_decay": True, "optimizer": "adamw"},
        {"train_image_sizes": (6, 8), "epochs": 2},
        {"sampler": "balanced"},
        {"class_weights": "balanced"},
    ],
)
def test_settings_that_have_an_effect_go_without_a_warning(change: dict[str, Any]) -> None:
    assert replace(LEAST, **change).warnings() == []


def test_no_recipe_needs_a_warning() -> None:
    for arch in ("alexnet", "googlenet", "resnet50", "resnext50_32x4d", "resnet20_cifar"):
        for dataset in ("digits", "imagenet2012"):
            for name in (None, *RECIPES):
                assert recipe_for(arch, dataset, name).warnings() == []


def test_unknown_recipes_and_networks_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'resnet_2016'; expected one of alexnet_2012, .*finetune"):
        recipe_for("resnet50", name="resnet_2016")
    with pytest.raises(InputError, match="unknown architecture 'resnet5'"):
        recipe_for("resnet5", name="fast")
