"""One module a claim, each run by a command of its own."""
