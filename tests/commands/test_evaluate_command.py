"""`equipoise evaluate`: several benchmarks, one table, samples that outlive an interruption, and vLLM by a stand-in."""

import csv
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from terminal import Terminal
from trainer_setup import character_tokenizer, tiny_model

from equipoise.cli import main
from equipoise.commands import evaluate as comparison
from equipoise.commands.evaluation_table import as_csv, as_markdown, print_compared, print_evaluations
from equipoise.errors import InputError
from equipoise.models import resumable_evaluation
from equipoise.models.resumable_evaluation import SampleFile, evaluate_in_batches
from equipoise.models.sampling import Completion, Sampler
from equipoise.models.vllm_sampling import VllmSampler, vllm_engine
from equipoise.tasks import math_reward


def digits(prompts, completions, **columns):
    return [float(sum(c.isdigit() for c in text) >= 4) for text in completions]


DATA = Dataset.from_dict({"prompt": [f"{i}+{i}=" for i in range(7)], "answer": [str(2 * i) for i in range(7)]})
SETTINGS = {"num_samples": 3, "ks": (1, 3), "temperature": 1.3, "batch_size": 6, "seed": 4, "progress": False}


@pytest.fixture
def sampler():
    return Sampler(tiny_model().eval(), character_tokenizer(), 8, 6, measures_entropy=True)


@pytest.fixture
def encoded():
    return [character_tokenizer()(prompt)["input_ids"] for prompt in DATA["prompt"]]


def sample_file(folder, **changes):
    return SampleFile(Path(folder) / "s.jsonl", {"num_prompts": 7, "seed": 4} | changes)


def test_an_interrupted_evaluation_ends_as_if_it_had_not_been(sampler, encoded, tmp_path):
    whole = evaluate_in_batches(sampler, DATA, encoded, digits, **SETTINGS)
    assert 0 < whole.average["mean"] < 1
    calls = []

    def broken(prompts, completions, **columns):
        calls.append(len(completions))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return digits(prompts, completions)

    with pytest.raises(KeyboardInterrupt):
        evaluate_in_batches(sampler, DATA, encoded, broken, **SETTINGS, samples=sample_file(tmp_path))
    path = tmp_path / "s.jsonl"
    assert len(path.read_text().splitlines()) == 4, "two batches of two prompts"
    with path.open("a") as file:
        file.write('{"prompt": "4+4=", "answer"')  # cut off
    calls.clear()

    def counted(prompts, completions, **columns):
        calls.append(len(completions))
        return digits(prompts, completions)

    resumed = evaluate_in_batches(sampler, DATA, encoded, counted, **SETTINGS, samples=sample_file(tmp_path))
    assert resumed == whole
    assert calls == [2, 6, 1, 3], "only what was missing"
    assert [json.loads(line) for line in path.read_text().splitlines()] == whole.samples
    calls.clear()
    assert evaluate_in_batches(sampler, DATA, encoded, counted, **SETTINGS, samples=sample_file(tmp_path)) == whole
    assert not calls
    assert {p.name for p in tmp_path.iterdir()} == {"s.jsonl", "s.settings.json"}


def test_half_a_batch_is_sampled_again(sampler, encoded, tmp_path):
    whole = evaluate_in_batches(sampler, DATA, encoded, digits, **SETTINGS, samples=sample_file(tmp_path))
    path = tmp_path / "s.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:3]))
    assert evaluate_in_batches(sampler, DATA, encoded, digits, **SETTINGS, samples=sample_file(tmp_path)) == whole


def test_samples_of_other_settings_are_refused(sampler, encoded, tmp_path):
    evaluate_in_batches(sampler, DATA, encoded, digits, **SETTINGS, samples=sample_file(tmp_path))
    with pytest.raises(InputError, match="holds samples made with seed=4, not 5; choose another --samples_output"):
        sample_file(tmp_path, seed=5).check()
    (tmp_path / "s.settings.json").write_text("{")
    with pytest.raises(InputError, match=r"s\.settings\.json is no JSON.*remove it and s\.jsonl"):
        sample_file(tmp_path).check()
    (tmp_path / "s.settings.json").unlink()
    with pytest.raises(InputError, match=r"exists without s\.settings\.json"):
        sample_file(tmp_path).check()


def _first(change):
    def changed(lines):
        record = json.loads(lines[0])
        change(record)
        return [json.dumps(record), *lines[1:]]

    return changed


@pytest.mark.parametrize("changed", [
    lambda lines: ["null", *lines[1:]],
    lambda lines: ["{", *lines[1:]],
    lambda lines: ["[" * 100000, *lines[1:]],
    lambda lines: [lines[1], lines[0], *lines[2:]],
    lambda lines: [*lines, lines[0]],
    lambda lines: ["\udcff" + lines[0], *lines[1:]],
    _first(lambda record: record.pop("prompt")),
    _first(lambda record: record.update(completions=None)),
    _first(lambda record: record["completions"].pop()),
    _first(lambda record: record["completions"][1].update(length="3")),
    _first(lambda record: record["completions"][1].update(reward=float("nan"))),
    _first(lambda record: record["completions"][1].update(verdict=None)),
    _first(lambda record: record["completions"][1].pop("truncated")),
    _first(lambda record: record.update(greedy="4")),
])  # fmt: skip
def test_samples_that_are_none_of_their_prompt_are_refused_and_left_alone(sampler, encoded, tmp_path, changed):
    evaluate_in_batches(sampler, DATA, encoded, digits, **SETTINGS, samples=sample_file(tmp_path))
    path = tmp_path / "s.jsonl"
    text = "".join(line + "\n" for line in changed(path.read_text().splitlines()))
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"s\.jsonl"):
        evaluate_in_batches(sampler, DATA, encoded, digits, **SETTINGS, samples=sample_file(tmp_path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0c"])
def test_samples_with_line_separators_in_them_are_whole(sampler, encoded, tmp_path, monkeypatch, separator):
    """They end no line of the file, whatever str.splitlines says."""
    made = resumable_evaluation.sample_records

    def with_separators(*arguments, **named):
        records = made(*arguments, **named)
        for record in records:
            record["completions"][0]["text"] = separator
        return records

    monkeypatch.setattr(resumable_evaluation, "sample_records", with_separators)
    whole = evaluate_in_batches(sampler, DATA, encoded, digits, **SETTINGS, samples=sample_file(tmp_path))
    monkeypatch.setattr(resumable_evaluation, "sample_records", None)  # nothing is sampled again
    again = evaluate_in_batches(sampler, DATA, encoded, digits, **SETTINGS, samples=sample_file(tmp_path))
    assert again == whole


def test_the_entropy_is_that_of_the_distributions_sampled_from(sampler, encoded):
    """Against a forward pass over prompt and completion, token by token."""
    evaluation = evaluate_in_batches(sampler, DATA, encoded, digits, **SETTINGS)
    total, count = 0.0, 0
    tokenizer, completions = character_tokenizer(), []
    again = sampler.completions(encoded, 1.3, lambda n: None)
    for prompt, completion in zip(encoded, again, strict=True):
        with torch.no_grad():
            logits = sampler.model(torch.tensor([prompt + completion.ids])).logits[0, len(prompt) - 1 : -1] / 1.3
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        assert completion.entropy == pytest.approx(entropy.mean().item(), abs=1e-5)
        completions.append(tokenizer.decode(completion.ids))
    for record in evaluation.samples:
        assert "entropy" not in record["greedy"]
        for completion in record["completions"]:
            total, count = total + completion["entropy"] * completion["length"], count + completion["length"]
    assert evaluation.mean_entropy == pytest.approx(total / count)


class Engine:
    """Answers like `vllm.LLM.generate`: the sum to every second prompt, else an endless row of digits."""

    def __init__(self):
        self.asked = []

    def generate(self, prompts, sampling_params, use_tqdm):
        self.asked += list(zip(prompts, sampling_params, strict=True))
        tokenizer = character_tokenizer()
        outputs = []
        for place, prompt in enumerate(prompts):
            number = int(tokenizer.decode(prompt["prompt_token_ids"]).replace(" ", "").split("+")[0])
            right = place % 2 == 0
            ids = tokenizer(str(2 * number))["input_ids"] + [1] if right else tokenizer("777")["input_ids"]
            finished = SimpleNamespace(token_ids=tuple(ids), finish_reason="stop" if right else "length")
            outputs.append(SimpleNamespace(outputs=[finished]))
        return outputs


def test_vllm_by_a_stand_in(encoded):
    engine = Engine()
    sampler = VllmSampler(engine, SimpleNamespace, character_tokenizer(), 3)
    settings = SETTINGS | {"seed": 0, "num_samples": 2, "ks": (1, 2), "batch_size": 100}
    evaluation = evaluate_in_batches(sampler, DATA, encoded, math_reward_of_text, **settings)
    assert len(engine.asked) == 7 + 14
    greedy, sampled = engine.asked[0][1], engine.asked[7][1]
    assert (greedy.temperature, sampled.temperature, sampled.max_tokens, sampled.n) == (0.0, 1.3, 3, 1)
    assert (sampled.top_p, sampled.top_k, sampled.min_p, sampled.repetition_penalty) == (1.0, 0, 0.0, 1.0)
    assert len({settings.seed for _, settings in engine.asked[7:]}) == 14, (
        "samples of one prompt need seeds of their own"
    )
    assert [asked["prompt_token_ids"] for asked, _ in engine.asked[:7]] == encoded
    assert evaluation.average["mean"] == 0.5
    assert evaluation.pass_at[2]["mean"] == 1.0
    assert evaluation.truncated_fraction == 0.5
    assert evaluation.mean_entropy is None


def test_vllm_tells_of_every_completion_that_has_ended(encoded, monkeypatch):
    class Running(Engine):
        """Draws its bars as vLLM does: over the requests that it takes, then over those that end."""

        def generate(self, prompts, sampling_params, use_tqdm):
            list(use_tqdm(prompts, desc="Rendering prompts"))
            bar = use_tqdm(total=len(prompts), desc="Processed prompts", dynamic_ncols=True)
            for _ in prompts:
                bar.postfix = f"est. speed output: {3 / bar.format_dict['elapsed']:.2f} toks/s"
                bar.update(1)
            bar.close()
            return super().generate(prompts, sampling_params, use_tqdm)

    class Steps(resumable_evaluation.SamplingBar):
        def step(self, tokens, completions):
            told.append((tokens, completions))
            super().step(tokens, completions)

        def __init__(self, *args, **settings):
            nonlocal watched
            super().__init__(*args, **settings)
            watched = self

    watched, told = None, []
    monkeypatch.setattr(resumable_evaluation, "SamplingBar", Steps)
    settings = SETTINGS | {"num_samples": 2, "ks": (1, 2), "batch_size": 100}
    plain = evaluate_in_batches(
        VllmSampler(Engine(), SimpleNamespace, character_tokenizer(), 3), DATA, encoded, math_reward_of_text, **settings
    )
    monkeypatch.setattr("sys.stderr", Terminal())
    sampler = VllmSampler(Running(), SimpleNamespace, character_tokenizer(), 3)
    settings["progress"] = True
    assert evaluate_in_batches(sampler, DATA, encoded, math_reward_of_text, **settings) == plain
    assert [n for tokens, n in told if not tokens] == [*range(1, 8), *range(1, 15)]
    assert sum(tokens for tokens, _ in told) == watched.num_tokens > 21
    assert watched.completions == 21


def math_reward_of_text(completions, answer, **columns):
    return [float(text.replace(" ", "") == gold) for text, gold in zip(completions, answer, strict=True)]


def test_vllm_that_is_not_installed_is_one_line():
    with pytest.raises(InputError, match="--backend vllm needs vLLM"):
        vllm_engine("model", seed=0)


class Told:
    """A sampler whose completions are known."""

    max_new_tokens, seed = 9, 0

    def __init__(self, texts):
        self.texts = texts

    def completions(self, prompt_ids, temperature, done):
        done(len(prompt_ids))
        return [Completion([5] * len(text), text, False) for text, _ in zip(self.texts, prompt_ids, strict=False)]


def test_verdicts_and_reasons_of_math_are_kept():
    data = Dataset.from_dict({"prompt": ["1+1="], "answer": ["2"]})
    told = Told(["\\boxed{2}", "\\boxed{3}", "no idea at all"])
    evaluation = evaluate_in_batches(told, data, [[1]], math_reward, **(SETTINGS | {"ks": (1, 3)}))
    assert [c["verdict"] for c in evaluation.samples[0]["completions"]] == ["correct", "wrong", "unparsable"]
    assert [c["reward"] for c in evaluation.samples[0]["completions"]] == [1.0, 0.0, 0.0]
    assert all("reason" in c for c in evaluation.samples[0]["completions"])
    assert evaluation.verdicts == {"correct": 1, "unparsable": 1, "wrong": 1}
    assert evaluation.average["mean"] == pytest.approx(1 / 3)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        tiny_model(number).save_pretrained(f"model{number}")
        character_tokenizer().save_pretrained(f"model{number}")
    for name, count in (("first", 4), ("second", 3)):
        rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(count)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


COMMAND = ["evaluate", "model0", "model1", "--task", "data:first.jsonl", "data:second.jsonl", "--samples", "4", "--k",
           "1", "2", "4", "--max_new_tokens", "6"]  # fmt: skip


def test_several_models_on_several_benchmarks_in_one_table(workplace, capsys):
    assert main([*COMMAND, "--output", "e.json", "e.csv", "e.md", "--samples_output", "samples"]) == 0
    said = capsys.readouterr().out
    for heading in ("model0 on first", "avg@4", "pass@2", "pass@4", "entropy", "length", "truncated"):
        assert heading in said
    numbers = json.loads(Path("e.json").read_text())
    assert {m: list(b) for m, b in numbers.items()} == {name: ["first", "second"] for name in ("model0", "model1")}
    rows = list(csv.DictReader(Path("e.csv").read_text().splitlines()))
    assert [(row["model"], row["benchmark"], row["prompts"]) for row in rows] == [
        ("model0", "first", "4"), ("model0", "second", "3"), ("model1", "first", "4"), ("model1", "second", "3"),
    ]  # fmt: skip
    first = numbers["model0"]["first"]
    assert float(rows[0]["avg@4"]) == first["average"]["mean"]
    assert float(rows[0]["pass@2_low"]) == first["pass_at"]["2"]["low"]
    assert float(rows[0]["entropy"]) == first["mean_entropy"] > 0
    assert sum(int(rows[0][name] or 0) for name in rows[0] if name.startswith("verdict ")) == 16
    lines = Path("e.md").read_text().splitlines()
    assert len(lines) == 2 + 4 + 2
    assert lines[0].startswith("| model | benchmark | prompts | greedy | avg@4 | pass@2 | pass@4 |")
    assert len({line.count("|") for line in lines[:6]}) == 1
    files = sorted(p.name for p in Path("samples").glob("*.jsonl"))
    assert files == ["0-model0-first.jsonl", "0-model0-second.jsonl", "1-model1-first.jsonl", "1-model1-second.jsonl"]
    record = json.loads((Path("samples") / files[0]).read_text().splitlines()[0])
    assert len(record["completions"]) == 4
    assert {"text", "reward", "verdict", "reason", "length", "truncated", "entropy"} == record["completions"][0].keys()


ESTIMATE = {"mean": 0.1234, "low": 0.0567, "high": 0.2345}
EVALUATION = {
    "num_prompts": 1319, "num_samples": 16, "temperature": 1.0, "greedy": ESTIMATE, "average": ESTIMATE,
    "pass_at": {"1": ESTIMATE, "8": ESTIMATE}, "distinct_correct_at": {"1": ESTIMATE, "8": ESTIMATE},
    "mean_entropy": 0.512, "mean_length": 123.4, "truncated_fraction": 0.034, "verdicts": {"correct": 3},
}  # fmt: skip


@pytest.fixture(params=[(80, True), (60, True), (200, True), (60, False)], ids=lambda p: f"{p[0]}-{p[1]}")
def shown(request, monkeypatch):
    """What a function prints, on a terminal of so many columns or to a file, and how wide that may be."""
    columns, terminal = request.param
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")

    def lines(function, *args):
        monkeypatch.setattr("sys.stdout", stream)
        function(*args)
        return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines(), columns if terminal else 80

    return lines


def test_no_number_is_folded_or_lost_in_a_narrow_terminal(shown):
    evaluations = {"runs/mine": {"gsm8k": EVALUATION}, "SmolLM2-135M-Instruct": {"gsm8k": EVALUATION}}
    lines, width = shown(print_evaluations, evaluations)
    assert max(map(len, lines)) <= width
    said = "\n".join(lines)
    for number in ("1319", "0.512", "123.4", "0.034", "runs/mine", "SmolLM2-135M-Instruct"):
        assert number in said
    assert said.count("0.123 [0.057, 0.234]") == 2 * 4


def test_the_quick_starts_models_stand_side_by_side_in_80_columns(shown):
    lines, width = shown(print_compared, dict.fromkeys(("warm start", "GRPO", "equipoise"), EVALUATION))
    assert max(map(len, lines)) <= width
    said = "\n".join(lines)
    assert len(re.findall(r"0\.123\b", said)) == len(re.findall(r"\[0\.057, 0\.234\]", said)) == 3 * 4
    for number in ("1319", "16 samples", "warm start", "GRPO", "equipoise", "pass@8"):
        assert number in said
    assert any({"greedy", "pass@1", "pass@8"} <= set(line.split()) for line in lines) == (width >= 80)


def test_a_second_call_goes_on_and_gives_the_same(workplace, monkeypatch, capsys):
    assert main([*COMMAND, "--samples_output", "samples", "--output", "a.json"]) == 0

    def none_left(*args):
        raise AssertionError("everything was sampled before")

    monkeypatch.setattr(resumable_evaluation, "sample_records", none_left)
    assert main([*COMMAND, "--samples_output", "samples", "--output", "b.json"]) == 0
    assert Path("a.json").read_text() == Path("b.json").read_text()
    assert main([*COMMAND, "--samples_output", "samples", "--seed", "1"]) == 2
    assert "made with seed=0, not 1" in capsys.readouterr().err


def test_changed_data_is_noticed(workplace, capsys):
    assert main([*COMMAND, "--samples_output", "samples"]) == 0
    Path("second.jsonl").write_text(Path("second.jsonl").read_text().replace('"2"', '"3"'))
    assert main([*COMMAND, "--samples_output", "samples"]) == 2
    assert "second.jsonl holds samples made with data=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--output", "e.txt"], "--output must end in one of .json, .csv, .md, got e.txt"),
        (["--output", "first.jsonl"], "output first.jsonl exists"),
        (["--samples_output", "first.jsonl"], "output first.jsonl exists"),
        (["--backend", "vllm"], "--backend vllm needs vLLM"),
        (["--task", "data:first.jsonl", "data:first.jsonl"], "each task can be given once"),
        (["--task", "data:first.jsonl", "chess"], "task 'chess' is not known"),
    ],
)
def test_refusals(workplace, capsys, flags, expected):
    assert main([*COMMAND, *flags]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("equipoise: ")
    assert expected in line


def test_two_benchmarks_of_one_name_are_told_apart(workplace):
    Path("other").mkdir()
    Path("other/first.jsonl").write_text(Path("second.jsonl").read_text())
    options = ["evaluate", "model0", "--task", "data:first.jsonl", "data:other/first.jsonl", "--samples", "2",
               "--k", "1", "--max_new_tokens", "2", "--output", "e.json"]  # fmt: skip
    assert main(options) == 0
    assert list(json.loads(Path("e.json").read_text())["model0"]) == ["data:first.jsonl", "data:other/first.jsonl"]


def test_tables_of_what_was_not_measured():
    estimate = {"mean": 0.5, "low": 0.25, "high": 0.75}
    e = {"num_prompts": 2, "num_samples": 3, "temperature": 1.0, "average": estimate, "greedy": None,
         "pass_at": {"1": estimate, "3": estimate}, "distinct_correct_at": {"1": estimate, "3": estimate},
         "mean_entropy": None, "mean_length": 12.34, "truncated_fraction": 0.125,
         "verdicts": {"correct": 3}}  # fmt: skip
    evaluations = {"a|b": {"task": e}}
    row = as_markdown(evaluations).splitlines()[2]
    assert row == "| a\\|b | task | 2 | – | " + 3 * "0.500 [0.250, 0.750] | " + "– | 12.3 | 0.125 |"
    (values,) = csv.DictReader(as_csv(evaluations).splitlines())
    assert (values["greedy"], values["entropy"], values["avg@3_high"]) == ("", "", "0.75")
    assert comparison.WRITERS[".csv"](evaluations) == as_csv(evaluations)
