"""The parts that commands share: arguments, loading, and errors."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging

from jaxnets.data.folder import named_images
from jaxnets.data.sources import Source
from jaxnets.data.verification import ON_BAD_IMAGE, usable
from jaxnets.errors import InputError
from jaxnets.ops import keep_memory
from jaxnets.pretrained import Pretrained, load_pretrained
from jaxnets.training.checkpoint import CHECKPOINTS, load_classifier
from jaxnets.training.config import Config
from jaxnets.training.contents import TrainedClassifier
from jaxnets.training.interruption import Interrupted
from jaxnets.training.progress import counting
from jaxnets.weights.download import cache_folder


def run(main: Callable[[], None]) -> None:
    """Runs a command. What a user can mend becomes one line on standard error and exit code 2; Ctrl-C exits 130."""
    logging.set_verbosity(logging.FATAL)  # orbax reports each of its steps, and each failure at length
    _keep_compiled_programs()
    keep_memory()
    try:
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
        _fail(f"{place}{error.strerror or error}; is the disk full, or the folder not yours?")
    except MemoryError:
        _fail("out of memory; try a smaller --batch-size or --image-size")
    except Interrupted as interrupted:
        print(f"{interrupted}: all is saved; the same command with --resume goes on", file=sys.stderr)
        sys.exit(interrupted.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        _exit(1)


def _keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles for the next start, in jaxnets' cache unless JAX is configured to use another.

    JAX_ENABLE_COMPILATION_CACHE=0 turns it off.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def program(command: str) -> str:
    """The command as the user typed it, for usage lines: "jaxnets train" or "python -m experiments.train"."""
    console = f"jaxnets {command}"
    return console if sys.argv[0] == console else f"python -m experiments.{command}"


def add_classifier(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of commands that use a run."""
    parser.add_argument("workdir", type=Path, help="folder of a run of experiments.train")
    parser.add_argument(
        "--checkpoint",
        choices=CHECKPOINTS,
        default="latest",
        help="the latest checkpoint (default), or that of the best test",
    )
    return parser


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name the parts of a folder of images."""
    parser.add_argument(
        "--train-folder",
        metavar="FOLDER",
        help="folder in --dataset with the class folders to train on, if names such as train/ do not say so",
    )
    parser.add_argument("--test-folder", metavar="FOLDER", help="folder in --dataset with the class folders to test on")


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
        "--checkpoint",
        choices=CHECKPOINTS,
        default="latest",
        help="the latest checkpoint (default), or that of the best test",
    )
    if images:
        parser.add_argument("--batch-size", type=int, default=32, help="images computed at once (default: 32)")
        parser.add_argument(
            "--on-bad-image", choices=ON_BAD_IMAGE, default="error", help="stop at a bad one (default), or leave it out"
        )
    return parser


def weights_of(arguments: argparse.Namespace) -> tuple[str, Pretrained]:
    """The network's name, and itself with its weights."""
    if arguments.arch is not None:
        return arguments.arch, load_pretrained(arguments.arch, arguments.weights)
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
    if arguments.on_bad_image == "skip":
        with counting("checking images", len(images)) as (done, say):
            images, bad, _ = usable(images, 1, done)
            for image in bad:
                say(f"left out: {image.where}: {image.reason}")
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
    print(f"error: {line}", file=sys.stderr)
    _exit(2)


def _exit(code: int) -> None:
    if jax.distributed.is_initialized():
        # Otherwise JAX would wait here for minutes for the other processes to end as well.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
