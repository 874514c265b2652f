"""Measures speed: python -m experiments.benchmark --arch NAME, or --data SOURCE."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.arguments import add_options, options_in, parser_of
from experiments.command import run
from jaxnets.benchmarking import data, step, tables
from jaxnets.benchmarking.worker import DTYPES, MODES, PARALLELS, Job
from jaxnets.data.datasets import absolute
from jaxnets.errors import InputError
from jaxnets.training.progress import counting
from jaxnets.training.recipes import recipe_for

# Options that can't be combined with --data.
_STEP_OPTIONS = ("network_options", "mode", "dtype", "parallel", "rounds", "peer_settings", "profile")


def main() -> None:
    """Measures the images per second of a network's training or inference, and compares them with the machine's limits
    and a peer. With --data, measures the reading of a data set, and what limits training on it.
    """
    parser = parser_of("benchmark", main.__doc__)
    parser.add_argument(
        "--arch", help="network; with --data, the network of the recipe and the step (default: resnet50)"
    )
    add_options(parser)
    parser.add_argument("--image-size", type=int, help="image size in pixels (default: that of the network)")
    parser.add_argument("--batch-size", type=int, help="images per step (default: 32; with --data, that of the recipe)")
    parser.add_argument("--mode", choices=MODES, help="what to measure (default: train)")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the computation (default: float32)")
    parser.add_argument("--parallel", choices=PARALLELS, help="how to use several devices (default: jit)")
    parser.add_argument("--rounds", type=int, help=f"number of rounds; results are medians (default: {step.ROUNDS})")
    parser.add_argument(
        "--peer", choices=step.PEERS, help="compare with torchvision's network or, with --data, its loader"
    )
    parser.add_argument(
        "--peer-settings",
        nargs="+",
        choices=step.TORCH_SETTINGS,
        metavar="SETTING",
        help=f"torch's settings to compare: {', '.join(step.TORCH_SETTINGS)} (default: all)",
    )
    parser.add_argument("--profile", type=Path, help="folder for a trace of three steps, for TensorBoard")
    parser.add_argument("--data", help="measure this data set (a value of train's --dataset)")
    parser.add_argument("--data-dir", help="folder of TFDS data sets (default: that of TFDS)")
    parser.add_argument(
        "--table",
        nargs="?",
        type=Path,
        const=Path("benchmark.jsonl"),
        metavar="FILE",
        help="measure the tables of docs/performance.md, or only the rows with the --arch, --image-size, --batch-size "
        "and --mode that are given; results go to FILE, and rows there are not measured again (default: %(const)s)",
    )
    parser.add_argument("--output", type=Path, metavar="PAGE", help="with --table, a page to write the tables into")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.table is not None:
        _measure_tables(arguments)
    elif arguments.output is not None:
        raise InputError(f"--output {arguments.output} needs --table; give it, or leave --output out")
    elif arguments.data is None:
        _measure_step(arguments)
    else:
        _measure_data(arguments)


def _measure_step(arguments: argparse.Namespace) -> None:
    if arguments.arch is None:
        raise InputError("nothing to measure; give a network as --arch, such as resnet50, or a data set as --data")
    if arguments.data_dir is not None:
        raise InputError(f"--data-dir {arguments.data_dir} has no effect without --data; leave it out, or give both")
    size = step.default_image_size(arguments.arch) if arguments.image_size is None else arguments.image_size
    options = {name: getattr(arguments, name) for name in ("batch_size", "mode", "dtype", "parallel")}
    changes = options_in(arguments)
    if changes and arguments.peer is not None:
        raise InputError(f"--peer {arguments.peer} has the network without options; leave out --set, or --peer")
    given = {name: value for name, value in options.items() if value is not None}
    job = Job(arguments.arch, size, options=changes, **given)
    rounds = step.ROUNDS if arguments.rounds is None else arguments.rounds
    settings = tuple(arguments.peer_settings or ())
    total = step.measurements(rounds, arguments.peer, settings)
    with counting("measuring", total) as (done, say):
        result = step.benchmark_step(
            job,
            rounds=rounds,
            peer=arguments.peer,
            peer_settings=settings,
            profile=arguments.profile and arguments.profile.absolute(),
            done=done,
        )
        if arguments.profile is not None:
            say(f"a trace of three steps is in {arguments.profile}; view it with tensorboard --logdir")
    if arguments.json:
        print(json.dumps(result))
    else:
        _print_step(result)


def _print_step(result: dict[str, Any]) -> None:
    low, high = result["images_per_second_spread"]
    print(
        f"{result['arch']}, {result['mode']}, {result['dtype']}: {result['image_size']} px, batches of "
        f"{result['batch_size']}, {result['device']} ({result['cores']} cores), {result['rounds']} rounds; "
        "images per second"
    )
    print(
        f"  jaxnets                {result['images_per_second']:10,.1f}  ({low:,.1f} to {high:,.1f}; "
        f"compiled in {result['compile_seconds']:.1f} s)"
    )
    for setting, peer in result.get("peer_settings", {}).items():
        low, high = peer["spread"]
        compiled = f"; compiled in {peer['compile_seconds']:.1f} s" if peer["compile_seconds"] else ""
        name = setting if setting == result["peer"] else f"{result['peer']} {setting}"
        print(f"  {name:22} {peer['images_per_second']:10,.1f}  ({low:,.1f} to {high:,.1f}{compiled})")
    if "ratio" in result:
        low, high = result["ratio_spread"]
        print(f"jaxnets is {result['ratio']:.2f} times as fast as {result['peer_setting']} ({low:.2f} to {high:.2f})")
    print(
        f"{result['percent_of_arithmetic']:.0f} % of the {result['arithmetic_ceiling_flops'] / 1e9:,.0f} GFLOP/s of a "
        f"large matrix product ({result['flops_per_image'] / 1e9:.2f} GFLOP per image); memory bandwidth: "
        f"{result['bandwidth_ceiling_bytes'] / 1e9:,.0f} GB/s"
    )
    print(
        f"initial state in {result['initial_seconds']:.1f} s; first step after {result['first_step_seconds']:.1f} s, "
        f"then {result['step_seconds']:.3f} s per step; at most {_memory(result)} of memory"
    )
    for setting, peer in result.get("peer_settings", {}).items():
        print(f"  {setting}: at most {_memory(peer)}")


def _memory(result: dict[str, Any]) -> str:
    return f"{result['peak_memory_bytes'] / 1e6:,.0f} MB ({result['import_memory_bytes'] / 1e6:,.0f} after the imports)"


def _measure_tables(arguments: argparse.Namespace) -> None:
    others = ("network_options", "dtype", "parallel", "peer", "peer_settings", "profile", "data", "data_dir")
    if unused := [name for name in others if getattr(arguments, name) is not None]:
        raise InputError(f"{_flags(unused)} can't be combined with --table; leave --table out to measure one network")
    fields = {name: getattr(arguments, name) for name in ("arch", "image_size", "batch_size", "mode")}
    chosen = tables.chosen(**fields)
    if arguments.output is not None:
        tables.write_to_page(arguments.output, None)
    rounds = step.ROUNDS if arguments.rounds is None else arguments.rounds
    results = tables.Results(arguments.table, rounds)
    lines = []
    with counting("measuring", results.left(chosen)) as (done, say):
        for peer in sorted({peer for table in chosen for peer in table.peers} - {*results.peers}):
            say(f"{peer} is not installed, so its columns are missing: pip install 'jaxnets[peer]'")
        for line in results.markdown(chosen, done):
            lines.append(line)
            print(line, flush=True)
    if arguments.output is not None:
        tables.write_to_page(arguments.output, lines)


def _flags(names: list[str]) -> str:
    flags = {"network_options": "set"}
    return ", ".join(f"--{flags.get(name, name).replace('_', '-')}" for name in names)


def _measure_data(arguments: argparse.Namespace) -> None:
    unused = [name for name in _STEP_OPTIONS if getattr(arguments, name) is not None]
    if unused:
        raise InputError(f"{_flags(unused)} can't be combined with --data; leave --data out to measure the network")
    if arguments.peer not in (None, *data.PEERS):
        raise InputError(f"--peer {arguments.peer} has no loader; with --data give --peer {', '.join(data.PEERS)}")
    name, arch = absolute(arguments.data), arguments.arch or "resnet50"
    sizes = {key: getattr(arguments, key) for key in ("image_size", "batch_size")}
    recipe = replace(recipe_for(arch, name), **{key: size for key, size in sizes.items() if size is not None})
    with counting("measuring", data.ROUNDS) as (done, _):
        result = data.benchmark_data(name, arch, recipe, arguments.data_dir, arguments.peer, done)
    if arguments.json:
        print(json.dumps(result))
        return
    low, high = result["images_per_second_spread"]
    print(
        f"{name}: {recipe.image_size} px, batches of {recipe.batch_size}, {result['threads']} threads; "
        "images per second"
    )
    print(f"  pipeline          {result['images_per_second']:10,.0f}  ({low:,.0f} to {high:,.0f})")
    if "decoder_images_per_second" in result:
        print(
            f"  decoder alone     {result['decoder_images_per_second']:10,.0f}  "
            f"(whole images; the pipeline reaches {result['ratio_to_decoder']:.2f} of it)"
        )
    if "peer_images_per_second" in result:
        print(
            f"  torchvision       {result['peer_images_per_second']:10,.0f}  "
            f"(the pipeline is {result['ratio_to_peer']:.2f} times as fast)"
        )
    if "evaluation_images_per_second" in result:
        print(f"  evaluation images {result['evaluation_images_per_second']:10,.0f}")
    if "peer_evaluation_images_per_second" in result:
        print(
            f"  torchvision       {result['peer_evaluation_images_per_second']:10,.0f}  "
            f"(evaluation images: jaxnets is {result['ratio_to_peer_evaluation']:.2f} times as fast)"
        )
    print(f"  to the device     {result['transfer_images_per_second']:10,.0f}")
    print(f"  training step     {result['compute_images_per_second']:10,.0f}  ({arch}, {result['device']})")
    print(f"training is limited by {result['limited_by']}")


if __name__ == "__main__":
    run(main)
