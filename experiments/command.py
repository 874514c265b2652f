"""The parts that commands share: arguments, loading, and errors."""

import argparse
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging

from jaxnets.data.folder import named_images
from jaxnets.data.sources import Source
from jaxnets.data.verification import ON_BAD_IMAGE, judge, usable
from jaxnets.devices import devices
from jaxnets.errors import InputError
from jaxnets.models.options import assignments, checked_options
from jaxnets.ops import keep_memory
from jaxnets.pretrained import Pretrained, load_pretrained
from jaxnets.training.checkpoint import CHECKPOINTS, load_classifier
from jaxnets.training.config import Config
from jaxnets.training.contents import TrainedClassifier
from jaxnets.training.interruption import Interrupted
from jaxnets.training.progress import counting
from jaxnets.training.views import VIEWS
from jaxnets.weights.download import cache_folder
from jaxnets.weights.runs import first_line

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or give another folder"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "check the permissions, or give another folder"),
}
# JAX's checks that would refuse code which relies on broadcasting, on type promotion or on implicit transfers.
_CHECKS = {
    "jax_numpy_rank_promotion": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_transfer_guard": "allow",
    "jax_debug_key_reuse": False,
}


def run(main: Callable[[], None]) -> None:
    """Runs a command. What a user can mend becomes one line on standard error and exit code 2; Ctrl-C exits 130."""
    logging.set_verbosity(logging.FATAL)  # orbax reports each of its steps, and each failure at length
    _open_standard_streams()
    try:
        _configure_jax()
        keep_memory()
        main()
        sys.stdout.flush()
    except InputError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader has closed the output, as in `predict ... | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        advice = _ADVICE.get(error.errno or 0)
        _fail(f"{place}{error.strerror or error}" + (f"; {advice}" if advice else ""))
    except MemoryError:
        _fail("out of memory; try a smaller --batch-size or --image-size")
    except Interrupted as interrupted:
        print(f"{interrupted}: all is saved; the same command with --resume goes on", file=sys.stderr)
        sys.exit(interrupted.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            _fail(f"out of memory ({first_line(error)}); try a smaller --batch-size, or end other programs")
        if isinstance(error, RuntimeError) and "home directory" in str(error):
            _fail("the home folder, which ~ stands for, is unknown; set HOME, or give paths without ~")
        _fail_without_devices()
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        _exit(1)


def _open_standard_streams() -> None:
    """Opens the null device for streams that are closed, and lets names of any bytes be printed.

    Otherwise the next file that is opened would get the number of the stream, and what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _configure_jax() -> None:
    """Sets what jaxnets needs of JAX.

    JAX keeps what it compiles for the next start, in jaxnets' cache unless JAX is configured to use another;
    JAX_ENABLE_COMPILATION_CACHE=0 turns it off. The environment's checks of how JAX is used are meant for other code,
    and are turned off.
    """
    for name, value in _CHECKS.items():
        jax.config.update(name, value)
    if getattr(jax.config, "jax_disable_jit", False):
        raise InputError("JAX_DISABLE_JIT is set, but jaxnets compiles its steps; unset it")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = _cache_of_programs()
        if folder is not None:
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _cache_of_programs() -> Path | None:
    """The folder of compiled programs; None, with a warning, if it can't be written."""
    try:
        folder = cache_folder() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reason = f"{folder} can't be written"
    except (InputError, OSError) as error:
        reason = str(error)
    print(f"warning: compiled programs are not kept for the next start: {reason}", file=sys.stderr)
    return None


def _fail_without_devices() -> None:
    """Fails with the reason if JAX has no device, which many errors may be the consequence of."""
    try:
        devices()
    except InputError as error:
        _fail(str(error))


def program(command: str) -> str:
    """The command as the user typed it, for usage lines: "jaxnets train" or "python -m experiments.train"."""
    console = f"jaxnets {command}"
    return console if sys.argv[0] == console else f"python -m experiments.{command}"


def parser_of(command: str, description: str | None, **options: Any) -> argparse.ArgumentParser:
    """The parser of a command. It refuses abbreviated flags, which a new flag could make ambiguous."""
    return argparse.ArgumentParser(prog=program(command), description=description, allow_abbrev=False, **options)


def add_classifier(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of commands that use a run."""
    parser.add_argument("workdir", type=Path, help="folder of a run of experiments.train")
    parser.add_argument(
        "--checkpoint",
        choices=CHECKPOINTS,
        default="best",
        help="the best checkpoint by val (default; the latest if there is none), or the latest",
    )
    return parser


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name the parts of a folder of images."""
    parser.add_argument(
        "--train-folder",
        metavar="FOLDER",
        help="folder in --dataset with the class folders to train on, if names such as train/ do not say so",
    )
    for part, purpose in (("val", "choose the best epoch by"), ("test", "test on")):
        help = f"folder in --dataset with the class folders to {purpose}"
        parser.add_argument(f"--{part}-folder", metavar="FOLDER", help=help)


def add_division(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say how parts are held out; those that are not given are absent."""
    help = "share of the training images to hold out if there are no {} images (default: {})"
    absent = argparse.SUPPRESS
    parser.add_argument("--val-share", type=float, metavar="X", default=absent, help=help.format("val", 0.1))
    parser.add_argument("--test-share", type=float, metavar="X", default=absent, help=help.format("val or test", 0.2))
    parser.add_argument(
        "--fold", metavar="K/N", default=absent, help="take fold K of N of the training images as val, such as 1/5"
    )
    parser.add_argument(
        "--group-by",
        metavar="REGEX|COLUMN",
        default=absent,
        help="keep images together whose paths have the same match (or its first group), or, in a CSV file, the same "
        "value in a column",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that sets options of a network; `options_in` reads it."""
    parser.add_argument(
        "--set",
        action="append",
        dest="network_options",
        metavar="NAME=VALUE",
        help="set an option of the network, such as activation=gelu or groups=8 (repeatable); a wrong name lists all",
    )


def options_in(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the network `arguments.arch`, checked, as JSON has them."""
    return checked_options(arguments.arch, assignments(arguments.network_options or ()))


def add_weights(parser: argparse.ArgumentParser, *, images: bool = False) -> argparse.ArgumentParser:
    """The arguments of commands that use a run or other weights; with `images`, on those."""
    parser.usage = f"%(prog)s (WORKDIR | --arch NAME [--weights W]) {'IMAGE... ' if images else ''}[options]"
    help = "folder of a run, unless --arch is given" + ("; then image files, and folders of them" if images else "")
    parser.add_argument("paths", type=Path, nargs="*", metavar="path", help=help)
    parser.add_argument("--arch", help="network, such as resnet50 or package.module:factory, instead of a run's folder")
    parser.add_argument(
        "--weights", default="DEFAULT", help="weights for --arch: a published name (default: DEFAULT) or a file"
    )
    parser.add_argument(
        "--weights-key",
        metavar="KEY",
        help="entry of a torch checkpoint to read, such as model (default: the moving average, if there is one)",
    )
    parser.add_argument(
        "--checkpoint",
        choices=CHECKPOINTS,
        default="best",
        help="the best checkpoint by val (default; the latest if there is none), or the latest",
    )
    if images:
        parser.add_argument("--batch-size", type=int, default=32, help="images computed at once (default: 32)")
        parser.add_argument(
            "--on-bad-image",
            choices=ON_BAD_IMAGE,
            default="error",
            help="stop at a bad image (default), leave it out, or stop at any damage (strict)",
        )
    return parser


def add_tta(parser: argparse.ArgumentParser) -> None:
    """Adds the argument of test-time augmentation."""
    parser.add_argument(
        "--tta",
        choices=VIEWS,
        help="take the mean probabilities over each image and its mirror image (flip), or over its corners and centre "
        "(five-crop)",
    )


def weights_of(arguments: argparse.Namespace) -> tuple[str, Pretrained]:
    """The network's name, and itself with its weights."""
    if arguments.arch is not None:
        return arguments.arch, load_pretrained(arguments.arch, arguments.weights, weights_key=arguments.weights_key)
    if arguments.weights_key is not None:
        raise InputError(f"--weights-key {arguments.weights_key} needs --arch and --weights with a torch checkpoint")
    if arguments.weights != "DEFAULT":
        raise InputError(f"--weights {arguments.weights} needs the network they are for, as --arch")
    if not arguments.paths:
        raise InputError("give the folder of a run, or a network as --arch")
    arguments.workdir = arguments.paths[0]
    run = classifier_of(arguments)
    return run.config.arch, Pretrained(run.model, run.variables, run.preprocessing, run.class_names)


def images_of(arguments: argparse.Namespace) -> Source:
    """The images that are named beside the weights. Bad ones are left out, and named, if that is asked for."""
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size {arguments.batch_size}; expected at least 1")
    paths = arguments.paths if arguments.arch is not None else arguments.paths[1:]
    if not paths:
        raise InputError("no images; name image files, or folders of them")
    images: Source = named_images(paths)
    if arguments.on_bad_image != "error":
        count = len(images)
        with counting("checking images", count) as (done, say):
            images, bad, _ = usable(images, 1, done)
            if arguments.on_bad_image == "strict":
                judge(bad, count, "strict", say)
            for image in bad:
                say(f"{'damaged, but used' if image.used else 'left out'}: {image.where}: {image.reason}")
        if not len(images):
            raise InputError(f"none of {len(bad)} images can be read; the first is {bad[0].where} ({bad[0].reason})")
    return images


def classifier_of(arguments: argparse.Namespace) -> TrainedClassifier:
    """The classifier of the run that the arguments name."""
    prepare_for(arguments.workdir)
    return load_classifier(arguments.workdir, arguments.checkpoint)


def prepare_for(workdir: Path) -> None:
    """Allows 64-bit types where the run was trained in them."""
    config = workdir / "config.json"
    if os.path.exists(config) and Config.read(config).dtype == "float64":
        jax.config.update("jax_enable_x64", True)


def _fail(line: str) -> None:
    # Paths may hold line breaks.
    print(f"error: {' '.join(line.splitlines())}", file=sys.stderr)
    _exit(2)


def _exit(code: int) -> None:
    if jax.distributed.is_initialized():
        # Otherwise JAX would wait here for minutes for the other processes to end as well.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
