"""Commands: `python -m experiments.train`, `evaluate`, `predict`, `report`."""
