"""Distinct correct answers are those that the reward reads, wherever an evaluation runs; texts where it reads none."""

import json
from collections import Counter

import pytest
from datasets import Dataset
from thread_ranks import on_threads
from trainer_setup import character_tokenizer, tiny_model

from equipoise.diagnostics.estimators import distinct_at_k
from equipoise.errors import InputError
from equipoise.models.evaluation import evaluate_policy
from equipoise.models.evaluation_ranks import EvaluationRanks
from equipoise.models.prompts import encoded_prompts
from equipoise.models.resumable_evaluation import SampleFile, evaluate_in_batches
from equipoise.models.sampling import Sampler
from equipoise.tasks import Task, mixture

NUM_SAMPLES, K = 8, 5
DATA = Dataset.from_dict({"prompt": [f"{n}+{n}=" for n in range(5)], "answer": ["1"] * 5})
MODELS = [tiny_model() for _ in range(2)]


class FirstDigit:
    """Right is any completion with a digit below 7; the first digit, odd or even, is the answer given."""

    __name__ = "first_digit"

    def __init__(self, known=True):
        self.known = known

    def __call__(self, *, prompts, completions, **columns):
        return [float(digit is not None and digit < "7") for digit in map(first_digit, completions)]

    def given_answers(self, *, prompts, completions, completion_ids, answer, **columns):
        assert len(prompts) == len(completion_ids) == len(answer) == len(completions)
        digits = map(first_digit, completions)
        return [None if digit is None or not self.known else ("even", "odd")[int(digit) % 2] for digit in digits]


def first_digit(text):
    return next((character for character in text if character.isdigit()), None)


def evaluated(reward, ranks=None, model=0, data=DATA):
    return evaluate_policy(
        MODELS[model], character_tokenizer(), data, reward, num_samples=NUM_SAMPLES, ks=(1, K), max_new_tokens=4,
        batch_size=16, seed=1, progress=False, ranks=ranks,
    )  # fmt: skip


def expected(samples, kind):
    means = []
    for record in samples:
        right = [c for c in record["completions"] if first_digit(c["text"]) and first_digit(c["text"]) < "7"]
        counts = Counter(kind(completion["text"]) for completion in right)
        means.append(distinct_at_k(list(counts.values()), NUM_SAMPLES, K))
    return sum(means) / len(means)


def parity(text):
    return int(first_digit(text)) % 2


def test_answers_are_counted_where_the_reward_reads_them_and_texts_where_not():
    read, unread, plain = evaluated(FirstDigit()), evaluated(FirstDigit(known=False)), evaluated(FirstDigit().__call__)
    by_answer, by_text = expected(read.samples, parity), expected(read.samples, str)
    assert by_text - by_answer > 0.5, "or this shows nothing"
    assert read.distinct_correct_at[K]["mean"] == pytest.approx(by_answer)
    assert unread == plain
    assert plain.distinct_correct_at[K]["mean"] == pytest.approx(by_text)
    assert (read.pass_at, read.verdicts, read.greedy) == (plain.pass_at, plain.verdicts, plain.greedy)


def test_the_record_of_a_completion_has_the_answer_read_in_it(tmp_path):
    evaluation = evaluated(FirstDigit())
    evaluation.write_samples(tmp_path / "samples.jsonl")
    records = list(map(json.loads, (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()))
    seen = set()
    for record in records:
        for completion in (record["greedy"], *record["completions"]):
            digit = first_digit(completion["text"])
            given = {} if digit is None else {"given_answer": ("even", "odd")[int(digit) % 2]}
            assert {name: completion[name] for name in completion if name == "given_answer"} == given
            seen.add((digit is None, completion["verdict"]))
    assert seen == {(True, "wrong"), (False, "correct"), (False, "wrong")}, "also where no or a wrong answer was given"
    assert not any("given_answer" in c for record in evaluated(len_reward).samples for c in record["completions"])


def len_reward(completions, **columns):
    return [float(len(text)) for text in completions]


def test_several_ranks_count_as_one():
    alone = evaluated(FirstDigit(), EvaluationRanks(own_seeds=True))
    both = on_threads(
        2, lambda rank, gather: evaluated(FirstDigit(), EvaluationRanks(rank, 2, gather, own_seeds=True), rank)
    )
    assert both == [alone, alone]


def test_a_mixture_counts_each_prompt_as_its_own_task_does():
    parts = [DATA.select(range(3)), DATA.select(range(3, 5))]
    rewards = [FirstDigit(), FirstDigit().__call__]
    tasks = [Task(name, part, part, reward, None) for name, part, reward in zip("ab", parts, rewards, strict=True)]
    tasks = [Task(task.name, train_of(task.name), task.held_out, task.reward, None) for task in tasks]
    mixed = mixture(tasks, [1, 1])
    samples = evaluated(mixed.evaluation_reward, data=mixed.held_out)
    means = [expected(samples.samples[:3], parity) * 3, expected(samples.samples[3:], str) * 2]
    assert samples.distinct_correct_at[K]["mean"] == pytest.approx(sum(means) / 5)


def train_of(name):
    return Dataset.from_dict({"prompt": [f"{name}"], "answer": ["1"]})


def in_batches(samples):
    tokenizer = character_tokenizer()
    return evaluate_in_batches(
        Sampler(MODELS[0], tokenizer, 4, 16), DATA, encoded_prompts(tokenizer, DATA["prompt"][:]), FirstDigit(),
        num_samples=NUM_SAMPLES, ks=(K,), temperature=1.0, batch_size=16, seed=1, samples=samples, progress=False,
    )  # fmt: skip


def test_an_evaluation_that_goes_on_counts_the_answers_that_it_finds(tmp_path, monkeypatch):
    file = SampleFile(tmp_path / "s.jsonl", {"num_prompts": 5})
    whole = in_batches(file)
    assert whole.distinct_correct_at[K]["mean"] == pytest.approx(expected(whole.samples, parity))
    lines = file.path.read_text(encoding="utf-8").splitlines(keepends=True)
    file.path.write_text("".join(lines[:3]), encoding="utf-8")
    assert in_batches(file) == whole
    monkeypatch.setattr(FirstDigit, "given_answers", None)  # all is on disk: nothing is read again
    assert in_batches(file) == whole


def test_a_file_whose_given_answer_is_no_text_is_refused(tmp_path):
    file = SampleFile(tmp_path / "s.jsonl", {"num_prompts": 5})
    in_batches(file)
    file.path.write_text(file.path.read_text(encoding="utf-8").replace('"given_answer": "odd"', '"given_answer": 1'))
    with pytest.raises(InputError, match="must hold the samples of prompt"):
        in_batches(file)
