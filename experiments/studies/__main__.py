"""`python -m experiments.studies` is `jaxnets study`."""

from experiments.command import run
from experiments.study import main

if __name__ == "__main__":
    run(main)
