"""What goes wrong around a run, done to it on purpose and counted: `python -m tests.faults`."""
