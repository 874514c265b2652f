"""Every choice of a run can be made on the command line, on top of a recipe."""

import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from experiments.train import make_parser, parse
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.new_workdir import workdir_or_new
from jaxnets.training.parallel import Parallel
from jaxnets.training.recipe import Recipe
from jaxnets.training.recipes import RECIPES, recipe_for

# What is typed for each setting of a recipe, and what it means; no recipe of those below has it already.
OPTIONS: dict[str, tuple[str, Any]] = {
    "image_size": ("--image-size 96", 96),
    "sampler": ("--sampler balanced", "balanced"),
    "class_weights": ("--class-weights balanced", "balanced"),
    "epochs": ("--epochs 77", 77),
    "batch_size": ("--batch-size 48", 48),
    "optimizer": ("--optimizer muon", "muon"),
    "learning_rate": ("--lr 3e-2", 0.03),
    "weight_decay": ("--weight-decay 0.003", 0.003),
    "momentum": ("--momentum 0.8", 0.8),
    "decoupled_weight_decay": ("--decoupled-weight-decay", True),
    "decay_norms_and_biases": ("--decay-norms-and-biases", True),
    "clip_norm": ("--clip-norm 1", 1.0),
    "accumulation": ("--accumulation 2", 2),
    "loss": ("--loss binary_cross_entropy", "binary_cross_entropy"),
    "label_smoothing": ("--label-smoothing 0.05", 0.05),
    "target_threshold": ("--target-threshold 0.25", 0.25),
    "aux_weight": ("--aux-weight 0.2", 0.2),
    "schedule": ("--schedule one_cycle", "one_cycle"),
    "warmup_epochs": ("--warmup-epochs 2.5", 2.5),
    "decay_epochs": ("--decay-epochs 30 60.5", (30.0, 60.5)),
    "decay_factor": ("--decay-factor 0.2", 0.2),
    "end_share": ("--end-share 0.01", 0.01),
    "power": ("--power 2", 2.0),
    "train_image_sizes": ("--train-image-sizes 128 160", (128, 160)),
    "crop_pct": ("--crop-pct 0.9", 0.9),
    "min_crop_area": ("--min-crop-area 0.5", 0.5),
    "shift": ("--shift 0.15", 0.15),
    "flip": ("--flip 0.4", 0.4),
    "color_jitter": ("--color-jitter 0.35", 0.35),
    "trivial_augment": ("--trivial-augment", True),
    "random_erasing": ("--random-erasing 0.25", 0.25),
    "mixup_alpha": ("--mixup-alpha 0.8", 0.8),
    "cutmix_alpha": ("--cutmix-alpha 0.7", 0.7),
    "repeats": ("--repeats 2", 2),
    "head_epochs": ("--head-epochs 2", 2),
    "layer_decay": ("--layer-decay 0.8", 0.8),
    "dropout_rate": ("--dropout-rate 0.3", 0.3),
    "stochastic_depth_rate": ("--stochastic-depth-rate 0.2", 0.2),
    "zero_init_residual": ("--zero-init-residual", True),
    "batch_norm": ("--batch-norm synchronised", "synchronised"),
    "precise_batch_norm_images": ("--precise-batch-norm-images 500", 500),
    "ema_decay": ("--ema-decay 0.99", 0.99),
    "remat": ("--remat", True),
    "patience_epochs": ("--patience-epochs 4", 4),
}
FLAGS = {name: typed.split()[0] for name, (typed, _) in OPTIONS.items()}
KINDS = get_type_hints(Recipe)


def recipe_of(*arguments: str) -> Recipe:
    config, _ = parse(["--arch", "resnet50", *arguments])
    return config.recipe


def test_every_setting_has_an_option() -> None:
    assert sorted(OPTIONS) == sorted(setting.name for setting in fields(Recipe))


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_changes_its_setting_alone(name: str) -> None:
    typed, value = OPTIONS[name]
    before = recipe_for("resnet50")
    assert getattr(before, name) != value
    after = recipe_of(*typed.split())
    assert after == replace(before, **{name: value})
    assert type(getattr(after, name)) is type(value)
    # And on top of a named recipe.
    assert recipe_of("--recipe", "finetune", *typed.split()) == replace(
        recipe_for("resnet50", "digits", "finetune"), **{name: value}
    )


def test_options_switch_off_what_a_recipe_switches_on() -> None:
    flags = [name for name, kind in KINDS.items() if kind is bool]
    assert len(flags) == 5
    for name in flags:
        flag = FLAGS[name][2:]
        assert getattr(recipe_of(f"--{flag}"), name) is True
        assert getattr(recipe_of(f"--{flag}", f"--no-{flag}"), name) is False
    v2 = recipe_of("--dataset", "cifar10", "--recipe", "torchvision_v2", "--no-trivial-augment", "--train-image-sizes")
    assert v2 == replace(RECIPES["torchvision_v2"], trivial_augment=False, train_image_sizes=())


def test_a_named_recipe_is_taken_as_it_is() -> None:
    for name, recipe in RECIPES.items():
        assert recipe_of("--recipe", name, "--dataset", "cifar10") == recipe


def test_what_is_no_recipe_arrives_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = (
        "--arch resnet18 --dataset ./photos --data-dir data --test-share 0.3 --on-bad-image skip --dtype bfloat16"
    )
    more = (
        "--seed 5 --log-every 3 --workdir run --resume --parallel pmap --checkpoint-interval 7.5 --tensorboard "
        "--steps-per-call 4 --dry-run"
    )
    config, launch = parse([*arguments.split(), *more.split()])
    assert config == Config(
        "resnet18", recipe_for("resnet18", "photos"), str(tmp_path / "photos"), 5, "bfloat16", str(tmp_path / "data"),
        0.3, "skip", 3,
    )  # fmt: skip
    assert asdict(launch) == {
        "workdir": Path("run"), "resume": True, "parallel": "pmap", "checkpoint_interval": 7.5, "tensorboard": True,
        "steps_per_call": 4, "dry_run": True,
    }  # fmt: skip
    config, launch = parse(["--arch", "resnet18"])
    assert config == Config("resnet18", recipe_for("resnet18"))
    assert asdict(launch) == {
        "workdir": None, "resume": False, "parallel": "auto", "checkpoint_interval": 60.0,
        "tensorboard": False, "steps_per_call": 1, "dry_run": False,
    }  # fmt: skip


def test_a_run_without_a_workdir_gets_one_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def workdir(*arguments: str) -> str:
        config, launch = parse(["--arch", "resnet18", *arguments])
        with workdir_or_new(launch.workdir, config, Parallel.choose("jit")) as path:
            assert path.is_dir() == (launch.workdir is None)
            return str(path)

    assert workdir() == workdir() == "runs/resnet18-digits"
    assert not (tmp_path / "runs").exists()  # nothing was written to it
    for number in ("", "-2"):
        (tmp_path / f"runs/resnet18-digits{number}").mkdir(parents=True)
    assert workdir() == "runs/resnet18-digits-3"
    assert workdir("--dataset", "../my photos/") == "runs/resnet18-my-photos"
    assert workdir("--workdir", "~/run") == str(Path("~/run").expanduser())


def test_a_run_goes_on_by_its_own_recipe(tmp_path: Path) -> None:
    config = Config("resnet18", replace(RECIPES["fast"], flip=0.3), "photos", 3, log_every=4)
    (tmp_path / "config.json").write_text(config.to_json())
    resume = ["--resume", "--workdir", str(tmp_path)]
    assert parse(resume)[0] == config
    assert parse([*resume, "--flip", "0.1"])[0] == replace(config, recipe=replace(config.recipe, flip=0.1))
    assert parse([*resume, "--arch", "resnet34"])[0] == Config("resnet34", recipe_for("resnet34"))
    with pytest.raises(InputError, match="--recipe finetune needs --arch"):
        parse([*resume, "--recipe", "finetune"])
    with pytest.raises(InputError, match="--arch resnet50"):
        parse(["--resume", "--workdir", str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match="--resume needs the --workdir"):
        parse(["--resume", "--arch", "resnet18"])


def numbers() -> list[str]:
    return [name for name, kind in KINDS.items() if {int, float} & {kind, *get_args(kind)}]


@pytest.mark.parametrize("name", numbers())
def test_numbers_that_can_not_be_are_refused_by_name(name: str) -> None:
    whole = int in (KINDS[name], *get_args(KINDS[name]))
    rule = next(setting.metadata for setting in fields(Recipe) if setting.name == name)
    bad = ["-1"] if whole else ["-1", "-0.0001", "nan", "inf"]
    bad += [str(rule["most"] + 1 if whole else rule["most"] * 1.001)] if rule["most"] < float("inf") else []
    bad += ["0"] if rule["least"] > 0 else []
    for value in bad:
        with pytest.raises(InputError, match=rf"^{name}=\S+; expected a number of at least \S+( and at most \S+)?$"):
            recipe_of(FLAGS[name], value)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind is str])
def test_names_that_do_not_exist_are_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=f"^unknown {name} 'nonsense'; expected one of .*, "):
        recipe_of(FLAGS[name], "nonsense")


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_no_value_at_all_is_refused_by_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = FLAGS[name]
    wrong = [f"{flag}=maybe"] if KINDS[name] is bool else [flag, "many"] if name in numbers() else [flag]
    with pytest.raises(SystemExit) as raised:
        recipe_of(*wrong)
    assert raised.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"error: argument {flag}(/--no-\S+)?: ", last)


@pytest.mark.parametrize("width", [80, 200])
def test_help_has_a_line_for_every_option(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = make_parser().format_help()
    words = " ".join(text.split())
    assert "==SUPPRESS==" not in text
    assert "%%" not in text
    assert "up to 1 % of them" in words
    assert max(map(len, text.splitlines()[1:])) < width
    groups = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert groups == [
        "options",
        "starting from weights",
        "devices and machines",
        "recipe",
        "augmentation, as part of the recipe",
        "checkpoints",
    ]
    for setting in fields(Recipe):
        assert re.search(rf"^  {FLAGS[setting.name]}\b", text, re.MULTILINE)
        assert setting.metadata["help"] in words
        assert len(setting.metadata["help"]) < 100
        for choice in setting.metadata["of"]:
            assert choice in words
    for name in RECIPES:
        assert name in words
