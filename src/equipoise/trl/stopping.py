"""A run that is told to end, by Ctrl-C or by SIGTERM, finishes its update and writes a checkpoint first.

The middle of an update cannot be saved: gradients are half summed, and tokens drawn that nobody has kept. Where there
is nothing to save yet, or the checkpoints are not to resume from, the run ends at once, and so it does when it is told
a second time.
"""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from equipoise.interrupts import STOPPING, Interrupted, handled

logger = logging.getLogger("equipoise")

AGAIN_SECONDS = 1.0
"""A launcher and a terminal may both pass on one and the same wish: only later is it a second one."""


class Stopping(TrainerCallback):
    """Ends training after the update in which a signal came, with a checkpoint. Processes agree on the update.

    Args:
        trainer: whose run it is.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.received: int | None = None
        self._since, self._first_update = 0.0, 0
        self._in_training = False

    @contextmanager
    def watching(self, signals: tuple[signal.Signals, ...] = STOPPING, *, raises: bool = True) -> Iterator[None]:
        """Within the block, signals are for this callback.

        Args:
            signals: which.
            raises: say so at the end of the block as well, where training ended after an update.

        Raises:
            Interrupted: one came: at once, or at the end of the block, when the checkpoint is written.
        """
        self.received = None
        with handled(self._handle, signals):
            yield
        if raises and self.received is not None:
            raise Interrupted(self.received)

    def on_train_begin(self, args, state, control, **kwargs):
        self._first_update, self._in_training = state.global_step, True

    def on_train_end(self, args, state, control, **kwargs):
        self._in_training = False

    def on_step_end(self, args, state, control, **kwargs):
        if self._told():
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        if self._told():  # since the end of the update
            control.should_training_stop = True

    def _told(self) -> bool:
        """Whether any process was told; asked at the same moments on all."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes > 1:
            number = torch.tensor(self.received or 0, device=accelerator.device)
            number = int(accelerator.gather(number.view(1)).max())
            self.received = number or None
        return self.received is not None

    def _handle(self, number: int, _frame: Any) -> None:
        now = time.monotonic()
        if self.received is not None and now - self._since < AGAIN_SECONDS:
            return
        if self.received is not None or not self._can_save():
            raise Interrupted(number)
        self.received, self._since = number, now
        logger.warning(
            "Update %d is finished and a checkpoint written, then the run ends; once more, and it ends at once.",
            self.trainer.state.global_step + 1,
        )

    def _can_save(self) -> bool:
        """Whether an update was made that no checkpoint would tell of, and a checkpoint would be one to resume from."""
        state = self.trainer.state
        return self._in_training and state.global_step > self._first_update and not self.trainer.args.save_only_model
