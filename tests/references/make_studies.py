"""Writes studies.json from the results of ten seeds: python tests/references/make_studies.py RESULTS.

The results are those of `jaxnets study --seeds 10 --dataset digits --output RESULTS`. Of each claim the file has the
numbers of the seeds, their verdict, and the margin around their mean within which a further seed has to be: four
standard deviations, and a twentieth of the claim's bound for numbers that only differ by rounding.
"""

import json
import sys
from pathlib import Path

import numpy as np

from experiments.studies import STUDIES, load_study

SEEDS = 10


def main() -> None:
    results, claims = Path(sys.argv[1]), {}
    for name in STUDIES:
        study = load_study(name)
        result = json.loads((results / name / "result.json").read_text(encoding="utf-8"))
        assert result["dataset"] == "digits"
        assert result["seeds"] == (1 if study.exact else SEEDS), f"{name} has {result['seeds']} seeds"
        bounds = {claim.name: claim.below if claim.above is None else claim.above for claim in study.claims}
        claims[name] = {
            verdict["claim"]: {
                "values": verdict["values"],
                "verdict": verdict["verdict"],
                "margin": 4 * verdict["deviation"] + abs(bounds[verdict["claim"]] or np.mean(verdict["values"])) / 20
                if verdict["values"]
                else None,
            }
            for verdict in result["verdicts"]
        }
    text = json.dumps(claims, indent=1)
    Path(__file__).with_name("studies.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
