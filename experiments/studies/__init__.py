"""Studies. Each module tests one claim and is a command."""
