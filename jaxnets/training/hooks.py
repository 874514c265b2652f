"""Hooks: code of the user that a run calls as it goes."""

from pathlib import Path
from typing import Any

from jaxnets.training.evaluation import Evaluation


class Hook:
    """Base class of hooks; override what you need. Each method does nothing by default.

    A run calls its hooks in process 0 alone, in order. A hook may print and write files, but must not start a
    computation on the devices of other processes. An exception in a hook ends the run. A resumed run continues from a
    checkpoint: steps that came after that checkpoint run again, and their hooks are called again.
    """

    def after_step(self, step: int, metrics: dict[str, Any]) -> None:
        """Called once for each training step, counted from 1, with the means over its batch.

        `metrics` are read while the next step runs, so the call comes up to one step late.
        """

    def after_val(self, epoch: int, evaluation: Evaluation, variables: Any) -> None:
        """Called after each epoch, counted from 1, with the evaluation of the val part; not called without one.

        `variables` are the evaluated ones, on the devices; read them during the call only, as training then goes on.
        """

    def after_test(self, epoch: int, evaluation: Evaluation, variables: Any) -> None:
        """Called once, at the end of the run, with the evaluation of the test part; not called without one.

        `variables` are those of the best `epoch` by val, or of the last epoch without a val part.
        """

    def after_checkpoint(self, step: int, folder: Path) -> None:
        """Called when a checkpoint, of the state after `step` steps, is complete on the disk."""
