"""The run folder of a verl run: metrics.jsonl and token records, as `equipoise report` and `doctor` read them."""

import dataclasses
import json
import logging
import platform
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from transformers import PreTrainedTokenizerBase

import equipoise
from equipoise.diagnostics.json_lines import JsonLines
from equipoise.diagnostics.records import TokenRecorder, drop_after
from equipoise.diagnostics.records.columns import steered_columns
from equipoise.diagnostics.run_folder import (
    ENVIRONMENT_FILE,
    METRICS_FILE,
    RECORDS_FOLDER,
    RESOLVED_FILE,
    check_writable,
)
from equipoise.files import set_aside, write_at_once, writing
from equipoise.models.decoding import token_decoder
from equipoise.redaction import redacted
from equipoise.settings.reading import written_keys
from equipoise.steering import MicroBatch, Steered, Update
from equipoise.verl.origin import GROUP, REWARD, SAMPLE
from equipoise.verl.settings import PLACE, VerlSettings
from equipoise.verl.statistics import token_rows

logger = logging.getLogger("equipoise")


class RunFolder:
    """What one rank writes of a run.

    Args:
        settings: with an `output_dir`.
        tokenizer: of the policy.
        rank: of this one among those that share an update; the first writes the metrics.
        world_size: of them.
    """

    def __init__(self, settings: VerlSettings, tokenizer: PreTrainedTokenizerBase, rank: int, world_size: int):
        self.folder, self.rank, self.world_size = Path(str(settings.output_dir)).expanduser(), rank, world_size
        self.settings, self.every, self.fraction = settings, settings.record_tokens, settings.record_tokens_fraction
        self.lines = JsonLines(self.folder / METRICS_FILE)
        self.tokenizer = tokenizer
        self.recorder: TokenRecorder | None = None
        self.begun = False

    def make(self) -> None:
        """Make the folder, on the first rank, and see that files can be written there: before hours of rollouts.

        Raises:
            InputError: they cannot.
        """
        if self.rank == 0:
            with writing(f"{PLACE}.output_dir {self.folder}"):
                self.folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=self.folder).close()

    def begin(self, updates: int) -> None:
        """Make ready, before the first update of this process or after a checkpoint; all ranks are there.

        Nothing where that is done. What a resumed run writes again is dropped; what another run left, which began
        anew, is moved aside.

        Args:
            updates: optimizer updates that are done.

        Raises:
            InputError: the folder cannot be written.
        """
        if self.begun:
            return
        self.begun = True
        check_writable(self.folder)
        records = self.folder / RECORDS_FOLDER
        if self.rank == 0:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                if not updates:
                    self._keep_found(records, self.lines.path)
                write_at_once(
                    self.folder / ENVIRONMENT_FILE, json.dumps(redacted(self._environment()), indent=2) + "\n"
                )
                write_at_once(self.folder / RESOLVED_FILE, written_keys(redacted(dataclasses.asdict(self.settings))))
            self.lines.drop_after(updates)
            if updates:
                drop_after(records, updates)
        if self.every:
            torch.distributed.barrier()
            self._see_the_others()
            self.recorder = TokenRecorder(
                records,
                run=self.folder.name,
                decode=token_decoder(self.tokenizer),
                rank=self.rank,
                fraction=self.fraction,
            )

    def end(self) -> None:
        """Close what is open; the next `begin` makes ready anew."""
        if self.recorder is not None:
            self.recorder.close()
        self.recorder, self.begun = None, False

    def _see_the_others(self) -> None:
        if not (self.folder / ENVIRONMENT_FILE).is_file():  # which the first rank has written
            logger.warning(
                "output_dir %s is not the folder of the first rank, whose node does not share it: token records of "
                "rank %d stay on %s.", self.folder, self.rank, platform.node(),
            )  # fmt: skip

    def _keep_found(self, *paths: Path) -> None:
        for path in (path for path in paths if path.exists()):
            kept = set_aside(path).name
            logger.warning("%s is of another run, and this one begins anew: it is kept as %s.", path, kept)

    def _environment(self) -> dict[str, Any]:
        names = ("torch", "verl", "ray", "transformers")
        return {
            "host": "verl",
            "python": platform.python_version(),
            "machine": platform.platform(),
            "world_size": self.world_size,
            "versions": {"equipoise": equipoise.__version__} | {name: version(name) for name in names},
        }

    def record(self, update: Update, data: TensorDict, batch: MicroBatch, steered: Steered) -> None:
        """Record the tokens of a micro-batch, when its update is one that is recorded."""
        if self.recorder is None or update.number % self.every:
            return
        columns = steered_columns(update.number + 1, batch, steered, clips=update.selection is not None)
        known = data.select(*(name for name in ("responses", "rollout_log_probs") if name in data)).to_padded_tensor()
        lengths = torch.tensor([len(row) for row in token_rows(data, "responses")])
        width = batch.ratio.shape[1]
        real = batch.action_mask.any(1).cpu()  # verl fills a batch up with rows that have no token of a policy
        self.recorder.record(
            update=update.number + 1,
            token_mask=(torch.arange(width)[None] < lengths[:, None]) & real[:, None],
            sample=data[SAMPLE],
            group=data[GROUP],
            reward=data[REWARD],
            token_id=known["responses"][:, :width],
            prompt=[row.cpu().numpy() for row in token_rows(data, "prompts")],
            behavior_logprob=known.get("rollout_log_probs", columns["old_logprob"]),
            **columns,
        )

    def log(self, update: int, values: Mapping[str, float | None]) -> None:
        """One line of the metrics, on the first rank."""
        if self.rank == 0:
            self.lines.append({"update": update, **values})

    def flush(self) -> None:
        """Bring the records to disk: a worker of Ray's may be ended without a word."""
        if self.recorder is not None:
            self.recorder.flush()
