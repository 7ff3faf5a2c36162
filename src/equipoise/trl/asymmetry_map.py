"""The asymmetry map of every n-th update, in the trackers that take figures: TensorBoard and Weights & Biases."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback

from equipoise.diagnostics.asymmetry import asymmetry_figure
from equipoise.polarity import entropy_polarity, expansion_threshold
from equipoise.steering import MicroBatch

MAP_TOKENS = 2_000
"""Tokens of a map: enough to see the shape, little enough to draw in a fraction of a second."""

TAG = "equipoise/asymmetry_map"


class AsymmetryMap(TrainerCallback):
    """Keeps a uniform random sample of the tokens of an update that is due, draws it, and sends it to the trackers.

    Only the tokens of the main process are in it. The random numbers are its own: training goes on as without it.

    Args:
        trainer: whose callbacks are asked for trackers.
        every: updates between maps, >= 1.
        seed: of the sample.
    """

    def __init__(self, trainer: Any, every: int, seed: int) -> None:
        self.trainer, self.every, self.seed = trainer, every, seed
        self._generator: np.random.Generator | None = None
        self._rows = np.empty((0, 5))  # key, logprob, entropy, threshold, polarity

    def on_step_begin(self, args, state, control, **kwargs):
        """An update begins; `state.global_step` are done."""
        update = state.global_step + 1
        due = state.is_world_process_zero and update % self.every == 0
        self._generator = np.random.default_rng((self.seed, update)) if due else None
        self._rows = np.empty((0, 5))

    @torch.no_grad()
    def observe(self, batch: MicroBatch) -> None:
        """Take in a micro-batch, if the update is due."""
        if self._generator is None:
            return
        mask, statistics = batch.action_mask, batch.statistics
        polarity = entropy_polarity(statistics, batch.advantage)
        columns = (statistics.logprob, statistics.entropy, expansion_threshold(statistics), polarity)
        values = [column.detach()[mask].double().cpu().numpy() for column in columns]
        # The smallest of uniform keys are a uniform sample, whatever the split into micro-batches.
        rows = np.column_stack([self._generator.random(len(values[0])), *values])
        self._rows = np.concatenate([self._rows, rows])
        self._rows = self._rows[np.argsort(self._rows[:, 0])[:MAP_TOKENS]]

    def on_step_end(self, args, state, control, **kwargs):
        """Draw and send what was kept."""
        if len(self._rows):
            title = f"Update {state.global_step}: {len(self._rows)} tokens; left of p*(s) (black), A > 0 expands"
            self._send(asymmetry_figure(*self._rows.T[1:], title=title), state.global_step)
        self._rows = np.empty((0, 5))

    def _send(self, figure: Figure, update: int) -> None:
        for tracker in self.trainer.callback_handler.callbacks:
            if isinstance(tracker, TensorBoardCallback) and tracker.tb_writer is not None:
                tracker.tb_writer.add_figure(TAG, figure, update, close=False)
            elif isinstance(tracker, WandbCallback):  # not tested: wandb needs its service
                wandb: Any = tracker._wandb
                wandb.log({TAG: wandb.Image(figure), "train/global_step": update})
