"""Benchmarks against the machine's limits and against other libraries, in one run."""
