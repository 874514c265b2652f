"""How fast is it here: python -m experiments.benchmark --data SOURCE."""

import argparse
import json
from dataclasses import replace

from experiments.command import run
from jaxnets.benchmarking.data import PEERS, ROUNDS, benchmark_data
from jaxnets.data.datasets import absolute
from jaxnets.training.progress import counting
from jaxnets.training.recipes import recipe_for


def main() -> None:
    """Says how many images a second a data set gives, beside its decoder alone, and what limits training with it."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=main.__doc__)
    parser.add_argument("--data", required=True, help="what train takes as --dataset")
    parser.add_argument("--data-dir", help="where TFDS keeps its data sets (default: its own choice)")
    parser.add_argument("--arch", default="resnet50", help="network whose recipe and step count (default: resnet50)")
    parser.add_argument("--image-size", type=int, help="pixels a side")
    parser.add_argument("--batch-size", type=int, help="images a step")
    parser.add_argument("--peer", choices=PEERS, help="measure torchvision's loader too, in turns")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    name = absolute(arguments.data)
    given = {key: getattr(arguments, key) for key in ("image_size", "batch_size")}
    recipe = replace(recipe_for(arguments.arch, name), **{key: n for key, n in given.items() if n is not None})
    with counting("measuring", ROUNDS) as (done, _):
        result = benchmark_data(name, arguments.arch, recipe, arguments.data_dir, arguments.peer, done)
    if arguments.json:
        print(json.dumps(result))
        return
    low, high = result["images_per_second_spread"]
    print(
        f"{name}: {recipe.image_size} px, batches of {recipe.batch_size}, {result['threads']} threads; images a second"
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
    print(f"  to the device     {result['transfer_images_per_second']:10,.0f}")
    print(f"  training step     {result['compute_images_per_second']:10,.0f}  ({arguments.arch}, {result['device']})")
    print(f"training is limited by {result['limited_by']}")


if __name__ == "__main__":
    run(main)
