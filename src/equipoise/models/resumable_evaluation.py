"""An evaluation that survives an interruption: samples are on disk, batch by batch, and a rerun goes on after them."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from datasets import Dataset

from equipoise.errors import InputError, shortened
from equipoise.files import refuse_other_than_own, write_at_once, writing
from equipoise.inputs.json_text import JsonError, json_object, json_value
from equipoise.inputs.regular_files import open_regular
from equipoise.models.evaluation import Evaluation, check_settings, sample_records, summary
from equipoise.models.randomness import seeded
from equipoise.progress import SamplingBar
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
    records = [] if samples is None else samples.begin(at_once, dataset, num_samples)
    begun = len(records)
    per_prompt = num_samples + 1
    bar = SamplingBar(name, len(prompt_ids) * per_prompt, done=begun * per_prompt, shown=progress)
    sampler.watch = bar.watch
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
            made_with = json_object(self.settings_path)
        except InputError as error:
            raise InputError(f"{error}; remove it and {self.path.name}") from error
        for key in self.settings | made_with:
            if made_with.get(key) != self.settings.get(key):
                raise InputError(
                    f"{self.path} holds samples made with {key}={shortened(made_with.get(key))}, not "
                    f"{shortened(self.settings.get(key))}; choose another --samples_output"
                )

    def begin(self, at_once: int, dataset: Dataset, num_samples: int) -> list[dict[str, Any]]:
        """The records of whole batches, `at_once` prompts each; what was cut off is forgotten.

        Args:
            at_once: prompts of a batch.
            dataset: what the records must be of, in its order.
            num_samples: of each prompt.

        Raises:
            InputError: as `check`, or a line that is no record of its prompt.
        """
        self.check()
        refuse_other_than_own(self.path)
        records, whole = self._records(dataset, num_samples), True
        if len(records) < self.settings["num_prompts"]:
            kept = len(records) // at_once * at_once
            records, whole = records[:kept], False
        with writing(f"samples {self.path}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_at_once(self.settings_path, json.dumps(self.settings, indent=2) + "\n")
            if not whole and self.path.exists():
                write_at_once(self.path, "".join(map(_line, records)))
        return records

    def _records(self, dataset: Dataset, num_samples: int) -> list[dict[str, Any]]:
        """The lines that are whole; the last one is not where an interruption cut it off."""
        if not self.path.exists():
            return []
        *lines, _ = _content(self.path).split(b"\n")
        if len(lines) > len(dataset):
            raise InputError(f"{self.path} has {len(lines)} lines, of {len(dataset)} prompts; remove it")
        records = []
        for number, (line, row) in enumerate(zip(lines, dataset, strict=False), start=1):
            try:
                record = json_value(line)
            except JsonError:
                record = None
            if not _is_record(record, cast(dict, row), num_samples):
                raise InputError(
                    f"{self.path}, line {number} must hold the samples of prompt {number}, got {shortened(line)}; "
                    f"remove this line and all after it"
                )
            records.append(record)
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


def _content(path: Path) -> bytes:
    """All of a file: how much was sampled has no bound, so the file has none."""
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _is_record(record: Any, row: dict[str, Any], num_samples: int) -> bool:
    """Whether it is what `sample_records` makes of a row."""
    if (
        not isinstance(record, dict)
        or record.get("prompt") != row["prompt"]
        or record.get("answer") != row.get("answer")
    ):
        return False
    completions, greedy = record.get("completions"), record.get("greedy")
    return (
        isinstance(completions, list)
        and len(completions) == num_samples
        and all(map(_is_completion, [*completions, *([] if greedy is None else [greedy])]))
    )


def _is_completion(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    numbers = [value.get("length"), *(value[k] for k in ("reward", "entropy") if value.get(k) is not None)]
    return (
        all(isinstance(value.get(name), str) for name in ("text", "verdict"))
        and isinstance(value.get("given_answer", ""), str)
        and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
        and isinstance(value.get("truncated"), bool)
    )


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
