"""Tasks by name: reasoning-gym, mathematics with the columns of its authors, mixtures, held-out data."""

import json
import logging

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset

from equipoise.errors import InputError
from equipoise.tasks import known_tasks, ladder_task, named_task, templated, with_held_out
from equipoise.tasks.math_data import MATH_DATA
from equipoise.tasks.prompts import content_key

pytest.importorskip("reasoning_gym")

CHAIN = "reasoning_gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1"


def test_the_ladder_and_its_split():
    assert named_task("ladder").train["prompt"][:] == ladder_task().train["prompt"][:]
    assert named_task("ladder?seed=1").train["prompt"][:] == ladder_task(1).train["prompt"][:]


def test_reasoning_gym_brings_examples_and_their_scorer():
    task = named_task(CHAIN + "&size=20&held_out=10&seed=3")
    assert len(task.held_out) <= 10
    row = task.train[0]
    assert row["prompt"].startswith("State the final answer to the following arithmetic problem")
    wrong = str(int(row["answer"]) + 1)
    texts = [row["answer"], f"so <answer>{wrong}</answer>… <answer> {row['answer']} </answer>", wrong, ""]
    logged = {}
    rewards = task.reward(
        prompts=[row["prompt"]] * 4, completions=texts, entry=[row["entry"]] * 4, log_metric=logged.__setitem__
    )
    assert rewards[:2] == [1.0, 1.0]
    assert max(rewards[2:]) < 0.5
    assert logged == {f"verification/{name}_fraction": 0.0 for name in ("timeout", "memory", "refused", "error")}
    assert task.reward.__name__ == "reasoning_gym_chain_sum"
    chat = [[{"role": "assistant", "content": row["answer"]}]]
    assert task.reward(prompts=[[]], completions=chat, entry=[row["entry"]]) == [1.0]


def test_a_template_must_ask_for_what_the_reward_reads():
    task = named_task(CHAIN + "&size=3&held_out=0")
    with pytest.raises(InputError, match="form boxed, and the reward of the task .* reads answer_tags alone"):
        templated(task, "boxed")
    with pytest.raises(InputError, match="form boxed"):
        named_task(f"0.5*{CHAIN}&size=3&held_out=0 + 0.5*ladder", template=r"{prompt} Put it into \boxed{}.")
    assert "<answer>" in templated(task, "answer_tags").train["prompt"][0]
    assert templated(task, "Answer shortly: {prompt}").train["prompt"][0].startswith("Answer shortly")


def test_no_held_out_prompt_of_reasoning_gym_is_trained_on(caplog):
    with caplog.at_level(logging.WARNING):
        task = named_task(CHAIN + "&size=2000&held_out=50")
    train, tested = ({content_key(p) for p in data["prompt"]} for data in (task.train, task.held_out))
    assert train
    assert not train & tested
    assert len(train) == len(task.train)  # each content once
    assert any("training prompts are also in the held-out data" in message for message in caplog.messages)
    assert any("different train prompts instead of 2000" in message for message in caplog.messages)


def test_reasoning_gym_repeats_itself_by_seed():
    texts = [named_task(f"{CHAIN}&size=5&held_out=0&seed={seed}").train["prompt"][:] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_scorer_that_fails_on_a_completion_is_counted():
    logged = {}
    chain = named_task(CHAIN + "&size=2&held_out=0")
    del chain.reward.entries["train/0"]["answer"]
    texts, keys = ["1", "1"], ["train/0", "train/1"]
    assert chain.reward(prompts=[""] * 2, completions=texts, entry=keys, log_metric=logged.__setitem__)[0] == 0.0
    assert logged["verification/error_fraction"] == 0.5
    assert chain.reward.counts["error"] == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reasoning_gym:chain_som", "reasoning_gym has no data set 'chain_som'; did you mean chain_sum"),
        ("reasoning_gym:", "task reasoning_gym: needs a name after the colon"),
        (
            "reasoning_gym:chain_sum?min_trems=2",
            "reasoning_gym:chain_sum has no parameter 'min_trems'; did you mean min_terms",
        ),
        ("reasoning_gym:chain_sum?min_terms=0", "reasoning_gym:chain_sum does not accept min_terms=0"),
        ("reasoning_gym:chain_sum?min_terms=a", "reasoning_gym:chain_sum does not accept min_terms='a'"),
        ("reasoning_gym:chain_sum?size=0", "parameter size must be a whole number >= 1, got 0"),
        ("reasoning_gym:chain_sum?held_out=-1", "parameter held_out must be a whole number >= 0, got -1"),
        ("ladder?sead=1", "task ladder has no parameter 'sead'; did you mean seed"),
        ("aime_2024?splitt=train", "task aime_2024 has no parameter 'splitt'; did you mean split"),
        ("aime_2024?path=nowhere.jsonl", "task aime_2024: path nowhere.jsonl: no such file"),
        ("aime2024", "task 'aime2024' is not known; did you mean aime_2024"),
        ("data:nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("data:", "task data: needs a name after the colon"),
    ],
)
def test_unusable_names(name, message):
    with pytest.raises(InputError, match=message):
        named_task(name)


def test_a_scorer_that_takes_none_of_its_own_answers_is_refused(monkeypatch):
    from reasoning_gym.arithmetic.chain_sum import ChainSumDataset

    make = ChainSumDataset.__getitem__
    monkeypatch.setattr(ChainSumDataset, "__getitem__", lambda self, index: make(self, index) | {"answer": b"1"})
    with pytest.raises(InputError, match="its scorer gives less than full marks to 3 of 3 of its own answers, such as"):
        named_task(CHAIN + "&size=3&held_out=0")


ROWS = {
    "dapo_math_17k": {"prompt": "1+1?", "reward_model": {"ground_truth": "2", "style": "rule"}, "solution": "2"},
    "skywork_or1_math": {
        "prompt": [{"role": "user", "content": "1+1?"}],
        "reward_model": {"ground_truth": '["2", "4/2"]', "style": "rule"},
    },
    "aime_2024": {"id": 1, "problem": "1+1?", "solution": "It is 2.", "answer": "2"},
    "aime_2025": {"id": "1", "problem": "1+1?", "answer": "2"},
    "amc": {"id": 1, "problem": "1+1?", "answer": 2.0},
    "math_500": {"problem": "1+1?", "solution": "…", "answer": r"\frac{4}{2}", "level": 1, "unique_id": "x"},
    "minerva_math": {"question": "1+1?", "answer": "2"},
    "olympiad_bench": {"id": 1, "question": "1+1?", "final_answer": ["$2$"], "solution": ["…"]},
}


@pytest.mark.parametrize("name", MATH_DATA)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "hub"])
def test_mathematics_by_name_with_the_columns_of_its_authors(tmp_path, monkeypatch, name, suffix):
    second = json.loads(json.dumps(ROWS[name]).replace("1+1?", "0+2?"))
    rows, calls = [ROWS[name], second], []
    path = tmp_path / f"copy.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:

        def load_dataset(*arguments, **settings):
            calls.append((*arguments, settings["split"]))
            return Dataset.from_list(rows)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = named_task(name if suffix == "hub" else f"{name}?path={path}")
    assert len(task.train) == 2
    prompts = task.train["prompt"][:]
    assert prompts[0] in ("1+1?", [{"role": "user", "content": "1+1?"}])
    texts = [r"\boxed{2}", r"\boxed{3}"]
    assert task.reward(prompts=prompts, completions=texts, answer=task.train["answer"][:]) == [1.0, 0.0]
    if calls:
        source, _, configuration = MATH_DATA[name].source.partition(":")
        assert calls == [(source, configuration or None, MATH_DATA[name].split)]


def data(tmp_path, name, *texts, answer="2", **columns):
    path = tmp_path / name
    path.write_text("".join(json.dumps({"prompt": text, "answer": answer} | columns) + "\n" for text in texts))
    return path


def test_a_local_file_as_a_task(tmp_path):
    path = data(tmp_path, "mine.jsonl", *[f"{i}?" for i in range(20)], " 3 ?", right="2")
    task = named_task(f"data:{path}?held_out=0.25&limit=12&seed=1", reward="math + 0.5*format")
    assert task.name == "mine"
    assert (len(task.train), len(task.held_out)) == (9, 3)
    assert not set(task.train["prompt"]) & set(task.held_out["prompt"])
    assert {int(p.rstrip("?")) for p in [*task.train["prompt"], *task.held_out["prompt"]]} == set(range(12))
    scored = {"prompts": ["", ""], "completions": [r"\boxed{2}", "$2$"], "answer": ["2", "2"]}
    assert task.reward(**scored) == [1.5, 1.0]
    assert task.evaluation_reward(**scored) == [1.0, 1.0]
    assert len(named_task(f"data:{path}").train) == 20  # " 3 ?" is the content of "3?"


def test_prompts_that_are_not_wanted_are_not_checked(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [(f"{i // 2}?", str(i)) for i in range(200)] + [("bad?", "(1,2")] * 50
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows))
    kept = named_task(f"data:{path}", reward="exact")
    for only in (1, 7, 150, 1000):
        few = named_task(f"data:{path}", reward="exact", only=only)
        assert few.train[:only] == kept.train[:only], "the same prompts, first and all"
    assert len(named_task(f"data:{path}", only=100).train) == 100, "an answer behind them is not looked at"
    assert len(named_task(f"data:{path}?limit=100").train) == 100
    for query, only in (("", None), ("", 201), ("?held_out=5", 5)):  # what is held out follows from all that there is
        with pytest.raises(InputError, match="row 201"):
            named_task(f"data:{path}{query}", only=only)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("held_out=3", "held_out=3 leaves nothing to train on of 3 prompts"),
        ("held_out=-1", "limit and held_out must be >= 0"),
        ("prompt_column=problem", "no column 'problem' for the prompt, the columns are prompt, answer"),
    ],
)
def test_parameters_that_do_not_fit_the_data(tmp_path, query, message):
    path = data(tmp_path, "mine.jsonl", "a", "b", "c")
    with pytest.raises(InputError, match=message):
        named_task(f"data:{path}?{query}")


def test_answers_that_do_not_parse_are_listed_before_training(tmp_path):
    path = tmp_path / "bad.jsonl"
    answers = ["1", "(1,2", "2", *["(1,2"] * 2, *[rf"\frac{{{i}}}{{" for i in range(9)]]
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "answer": a}) + "\n" for i, a in enumerate(answers)))
    with pytest.raises(
        InputError, match=r"row 2, column 'answer': .* of the rows 4, 5, 6, 7 and 7 more \(12 of 14 rows"
    ):
        named_task(f"data:{path}")


def test_a_row_that_cannot_be_verified_is_left_out_or_refused_as_asked(tmp_path):
    path = tmp_path / "mine.jsonl"
    answers = [*["2"] * 120, "(1,2"]
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "answer": a}) + "\n" for i, a in enumerate(answers)))
    assert len(named_task(f"data:{path}").train) == 120
    with pytest.raises(InputError, match="row 121, column 'answer'"):
        named_task(f"data:{path}?unverifiable_golds=refuse")


@pytest.mark.parametrize(
    ("truth", "answers"),
    [
        ('["42", "6*7"]', ["42", "6*7"]),
        ("(3, 4)", ["(3, 4)"]),
        ("[1,2]", ["[1,2]"]),
        ("1,000", ["1,000"]),
        ("42", ["42"]),
    ],
)
def test_lists_written_as_text_are_those_of_texts(tmp_path, truth, answers):
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"prompt": "a", "reward_model": {"ground_truth": truth}}))
    task = named_task(f"skywork_or1_math?path={path}")
    assert task.train["answer"][:] == [answers]
    assert task.reward(prompts=["a"], completions=[rf"\boxed{{{answers[0]}}}"], answer=[answers]) == [1.0]
    assert task.reward(prompts=["a"], completions=[r"\boxed{3}"], answer=[answers]) == [0.0]


def test_a_list_of_answers_that_is_empty_is_refused(tmp_path):
    row = {"prompt": "a", "reward_model": {"ground_truth": "[]"}}
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"s.jsonl, row 1: the list of answers must not be empty, got '\[\]'"):
        named_task(f"skywork_or1_math?path={path}")


def test_mixtures_by_name(tmp_path):
    path = data(tmp_path, "mine.jsonl", *[f"{i}?" for i in range(30)])
    task = named_task(f"0.25*{CHAIN}&size=30 + 0.75*data:{path}", reward="math", template="Q: {prompt}")
    shares = {name: task.train["task"].count(name) / len(task.train) for name in ("reasoning_gym:chain_sum", "mine")}
    assert shares["mine"] == pytest.approx(0.75, abs=0.02)
    assert all(prompt.startswith("Q: ") for prompt in [*task.train["prompt"], *task.held_out["prompt"]])
    mine = task.train["task"].index("mine")
    row = {key: [value] for key, value in task.train[mine].items()}
    prompts = row.pop("prompt")
    assert task.reward(prompts=prompts, completions=["2"], **row) == [1.0]


def test_a_reward_for_tasks_that_bring_theirs_is_refused():
    with pytest.raises(InputError, match="task ladder has a reward of its own: leave reward out, got 'math'"):
        named_task("ladder", reward="math")
    with pytest.raises(InputError, match="task ladder has plain text prompts: leave chat out"):
        named_task("ladder", chat=True)
    with pytest.raises(InputError, match="prompt_template does not fit the task ladder: its prompts are fixed"):
        templated(named_task("ladder"), "boxed")


def test_chat_messages_for_reasoning_gym():
    task = named_task(CHAIN + "&size=3&held_out=1", chat=True, template="Q: {prompt}")
    message = task.train["prompt"][0][0]
    assert message["role"] == "user"
    assert message["content"].startswith("Q: ")


def test_another_task_held_out(tmp_path, caplog):
    train = named_task(f"data:{data(tmp_path, 'a.jsonl', 'a', 'b', 'c')}")
    bench = named_task(f"data:{data(tmp_path, 'b.jsonl', 'B', 'x')}", reward="exact")
    with caplog.at_level(logging.WARNING):
        both = with_held_out(train, bench)
    assert both.train["prompt"][:] == ["a", "c"]
    assert both.held_out["prompt"][:] == ["B", "x"]
    assert both.evaluation_reward.__name__ == "exact_reward"
    assert "a: 1 of 3 training prompts are also in the held-out data" in caplog.messages[0]
    with pytest.raises(InputError, match="all 3 training prompts are also in the held-out data"):
        with_held_out(train, train)


def test_every_known_task_has_a_row_in_this_test():
    assert set(ROWS) == set(MATH_DATA)
    own = {"ladder", "categories", "calculator", "textworld"}
    assert set(known_tasks()) == own | {"reasoning_gym:", "data:"} | set(MATH_DATA)
