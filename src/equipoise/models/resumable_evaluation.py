"""An evaluation that survives an interruption: samples are on disk, batch by batch, and a rerun goes on after them."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from equipoise.errors import InputError
from equipoise.files import write_at_once, writing
from equipoise.models.evaluation import Evaluation, check_settings, sample_records, summary
from equipoise.models.randomness import seeded
from equipoise.progress import progress_bar
from equipoise.tasks.task import RewardFunction


def evaluate_in_batches(
    sampler: Any,
    dataset: Dataset,
    prompt_ids: list[list[int]],
    reward: RewardFunction,
    *,
    num_samples: int,
    ks: Sequence[int],
    temperature: float,
    batch_size: int,
    seed: int,
    samples: "SampleFile | None" = None,
    progress: bool = True,
    name: str = "evaluate",
) -> Evaluation:
    """As `evaluate_policy`, a few prompts at a time; an interrupted evaluation ends as if it had not been.

    Args:
        sampler: `Sampler`, or what samples as it does.
        dataset: columns "prompt", "answer" and what the reward asks for.
        prompt_ids: the prompts, encoded.
        reward: scores completions.
        num_samples: per prompt.
        ks: of pass@k.
        temperature: of the samples.
        batch_size: completions at a time: so many prompts as have about that many samples.
        seed: of the samples; every batch follows from it and from its first prompt.
        samples: where samples are kept and taken up; None: nowhere.
        progress: show a bar on stderr.
        name: on the bar.

    Raises:
        InputError: numbers out of range, or samples of other settings.
    """
    check_settings(dataset, num_samples, ks, temperature, sampler.max_new_tokens, batch_size)
    at_once = max(1, batch_size // num_samples)
    records = [] if samples is None else samples.begin(at_once)
    begun = len(records)
    per_prompt = num_samples + 1
    bar = progress_bar(name, len(prompt_ids) * per_prompt, "completion", done=begun * per_prompt, shown=progress)
    with bar:
        for begin in range(begun, len(prompt_ids), at_once):
            rows = range(begin, min(begin + at_once, len(prompt_ids)))
            sampler.seed = (seed * 1_000_003 + begin) % 2**31
            with seeded(sampler.seed):
                part = sample_records(
                    sampler, dataset.select(rows), [prompt_ids[row] for row in rows], reward, num_samples, temperature,
                    True, 1.0, bar.update,
                )  # fmt: skip
            records += part
            if samples is not None:
                samples.append(part)
    return summary(records, ks, temperature=temperature, seed=seed)


class SampleFile:
    """A JSONL file of samples, one line per prompt, and beside it the settings they were made with.

    Args:
        path: NAME.jsonl; the settings are in NAME.settings.json.
        settings: JSON-able; samples of other settings are refused.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.settings_path = path.with_suffix(".settings.json")

    def check(self) -> None:
        """Refuses a file of other settings, before anything is loaded or sampled.

        Raises:
            InputError: naming the setting and both values.
        """
        if not self.settings_path.exists():
            if self.path.exists():
                raise InputError(f"{self.path} exists without {self.settings_path.name}; choose another folder")
            return
        try:
            made_with = dict(json.loads(self.settings_path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, OSError) as error:
            raise InputError(f"{self.settings_path} is damaged ({error}); remove it and {self.path.name}") from error
        for key in self.settings | made_with:
            if made_with.get(key) != self.settings.get(key):
                raise InputError(
                    f"{self.path} holds samples made with {key}={made_with.get(key)!r}, not "
                    f"{self.settings.get(key)!r}; choose another --samples_output"
                )

    def begin(self, at_once: int) -> list[dict[str, Any]]:
        """The records of whole batches, `at_once` prompts each; what was cut off is forgotten.

        Raises:
            InputError: as `check`.
        """
        self.check()
        with writing(f"samples {self.path}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_at_once(self.settings_path, json.dumps(self.settings, indent=2) + "\n")
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
        records = []
        for line in lines:
            try:
                records.append(dict(json.loads(line)))
            except (ValueError, TypeError):  # cut off by an interruption
                break
        if len(records) < self.settings["num_prompts"]:
            records = records[: len(records) // at_once * at_once]
        if len(records) < len(lines):
            write_at_once(self.path, "".join(map(_line, records)))
        return records

    def append(self, records: list[dict[str, Any]]) -> None:
        """Write the records of a batch; they are on disk when this returns.

        Raises:
            InputError: they cannot be written.
        """
        advice = "; what was sampled before is kept: once that is mended, the same command goes on"
        with writing(f"samples {self.path}", advice), self.path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, records)))
            file.flush()
            os.fsync(file.fileno())


def data_fingerprint(dataset: Dataset) -> str:
    """A digest of the prompts and answers of a data set."""
    digest = hashlib.sha256()
    for name in ("prompt", "answer"):
        if name in dataset.column_names:
            digest.update(json.dumps(dataset[name][:], ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
