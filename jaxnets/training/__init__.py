"""Configuration, recipes, optimisers, losses, the step, the loop and checkpoints."""
