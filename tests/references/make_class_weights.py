"""Writes class_weights.json, weighted losses by torch 2.14.1: python -m tests.references.make_class_weights.

Needs torch.
"""

import json
from pathlib import Path

import torch


def main() -> None:
    """Writes the file beside this one."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    labels, weights = [0, 3, 1, 1, 0, 2], [0.25, 2.0, 0.0, 5.5]
    cases = []
    for smoothing in (0.0, 0.1):
        inputs = logits.clone().requires_grad_()
        loss = torch.nn.CrossEntropyLoss(torch.tensor(weights, dtype=torch.float64), label_smoothing=smoothing)(
            inputs, torch.tensor(labels)
        )
        loss.backward()
        cases.append({"label_smoothing": smoothing, "loss": loss.item(), "gradient": inputs.grad.tolist()})
    values = {"torch": torch.__version__, "logits": logits.tolist(), "labels": labels, "weights": weights}
    text = json.dumps({**values, "cases": cases}, indent=1)
    Path(__file__).with_name("class_weights.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
