"""Commands: `python -m experiments.NAME`, or `jaxnets NAME`; `jaxnets --help` lists them."""
