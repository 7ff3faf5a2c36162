"""What a run writes while it goes: metrics and evaluations as JSON lines, a progress bar, held-out evaluations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from equipoise.diagnostics.json_lines import JsonLines
from equipoise.diagnostics.run_folder import EVALUATION_FILE, METRICS_FILE
from equipoise.progress import progress_bar


class MetricsRecorder(TrainerCallback):
    """One line per logged update in `metrics.jsonl`."""

    def __init__(self, folder: Path):
        self.lines = JsonLines(folder / METRICS_FILE)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.lines.drop_after(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and "loss" in logs:
            self.lines.append({"update": state.global_step, **logs})


class HeldOutEvaluation(TrainerCallback):
    """Evaluates before the first update, every N updates and after the last: lines in `evaluation.jsonl`.

    Args:
        folder: the run folder.
        evaluate: returns the evaluation of the current policy as a JSON-able mapping; called on every process at the
            same time, as they share the prompts, or each holds a part of the model.
        every: updates between evaluations; 0 for the last only.
    """

    def __init__(self, folder: Path, evaluate: Callable[[], dict[str, Any]], every: int):
        self.lines, self.evaluate, self.every = JsonLines(folder / EVALUATION_FILE), evaluate, every

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.lines.drop_after(state.global_step)
        if state.global_step == 0 and self.every:
            self._run(state)

    def on_step_end(self, args, state, control, **kwargs):
        last = state.global_step == state.max_steps
        if last or (self.every and state.global_step % self.every == 0):
            self._run(state)

    def _run(self, state) -> None:
        values = self.evaluate()
        if state.is_world_process_zero:
            self.lines.append({"update": state.global_step, **values})


class ProgressBar(TrainerCallback):
    """A bar over the updates with the time left, and the numbers that tell how the run goes."""

    SHOWN = (
        ("reward", "equipoise/rollout_reward"),
        ("entropy", "equipoise/entropy"),
        ("low", "equipoise/bounds_low"),
        ("high", "equipoise/bounds_high"),
        ("phase", "equipoise/phase"),
    )

    def __init__(self, description: str):
        self.description = description
        self.bar: Any = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = progress_bar(self.description, state.max_steps, "update", done=state.global_step, stays=True)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is not None and logs:
            shown = {label: f"{logs[key]:.2f}" for label, key in self.SHOWN if isinstance(logs.get(key), float)}
            self.bar.set_postfix(shown, refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
