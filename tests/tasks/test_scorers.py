"""Scorers of reasoning-gym judge what is hostile as wrong, in time, and leave no trace; and what is right as right."""

import os
import signal
import time

import pytest

pytest.importorskip("reasoning_gym")

from equipoise.tasks import named_task
from equipoise.tasks.procedural import ProceduralReward
from equipoise.tasks.workers.pool import WorkerPool

pytestmark = pytest.mark.slow

HOSTILE = [
    "print.__self__.open('x','w')", "print.__self__.open('x', 'w').write('1')", "__import__('os').system('touch x')",
    "print.__self__.__import__('pathlib').Path('x').write_text('1')", "print.__self__.__import__('os').fork()",
    "print.__self__.__import__('os').kill(print.__self__.__import__('os').getppid(), 9)", "exec('open(\"x\", \"w\")')",
    "print.__self__.__import__('socket').create_connection(('127.0.0.1', 9))", "().__class__.__base__.__subclasses__()",
    "print.__self__.__import__('numpy').save('x.npy', 1)",
    "print.__self__.__import__('ctypes').CDLL(None).creat(b'x', 511)",
    "print.__self__.open('/etc/passwd').read()", "print.__self__.__import__('threading').Thread(target=print).start()",
    "sympify('open(\"x\", \"w\")')", "eval('1')", "[open('x', 'w')]", "[__import__('os').system('touch x')]",
    "Symbol('x').name.__class__", "print.__self__.__import__('os')._exit(0)", "[0 for i in iter(int, 1)]",
    "'{\"identity\": \"0\", \"outcome\": \"done\", \"value\": 1.0}'", "input()", "breakpoint()",
]  # fmt: skip
COSTLY = ["9**9**9**9", "9**9**9", "factorial(10**9)", "100000000!", "2**(10**11)", "[[0]*10**6]*10**9 + [0]*10**11"]
DEEP = [
    "(" * 5000 + "1" + ")" * 5000, "-" * 100_000 + "1", "[" * 5000 + "]" * 5000, "sin(" * 3000 + "x" + ")" * 3000,
    "1+" * 50_000 + "1",
]  # fmt: skip
NAMES = ["countdown", "puzzle24", "simple_integration", "polynomial_multiplication", "n_queens", "string_insertion"]


@pytest.fixture(scope="module")
def pool():
    pool = WorkerPool("reasoning_gym", 1, seconds=1)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def rewards(pool):
    from reasoning_gym.factory import DATASETS

    made = {}
    for name in NAMES:
        dataset_class, config_class = DATASETS[name]
        settings = {"size": 2, "seed": 1}
        entries = {f"train/{i}": example for i, example in enumerate(dataset_class(config_class(**settings)))}
        made[name] = ProceduralReward(f"reasoning_gym:{name}", (name, settings), entries, pool=pool)
    return made


def scored(reward, texts):
    logged = {}
    right = str(reward.entries["train/0"]["answer"])
    scores = reward(
        prompts=[""] * (len(texts) + 1), completions=[*texts, right], entry=["train/0"] * (len(texts) + 1),
        log_metric=logged.__setitem__,
    )  # fmt: skip
    assert scores[-1] == 1.0, "what comes after is judged as if nothing had been"
    return scores[:-1], logged


@pytest.mark.parametrize("name", NAMES)
def test_texts_that_act_are_worth_nothing_and_leave_no_trace(rewards, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin = time.monotonic()
    scores, logged = scored(rewards[name], HOSTILE)
    assert max(scores) <= 0.01  # some scorers give a hundredth for any text
    assert not list(tmp_path.iterdir())
    assert time.monotonic() - begin < 60
    if name in ("countdown", "puzzle24", "simple_integration", "polynomial_multiplication"):
        assert logged["verification/refused_fraction"] > 0.7


@pytest.mark.parametrize("name", ["countdown", "simple_integration", "string_insertion"])
def test_texts_that_cost_too_much_are_zero_and_counted(rewards, name):
    scores, logged = scored(rewards[name], COSTLY[:4])
    assert max(scores) <= 0.01
    if name != "string_insertion":
        assert logged["verification/timeout_fraction"] + logged["verification/memory_fraction"] >= 0.4


@pytest.mark.parametrize("name", ["countdown", "n_queens"])
def test_deep_and_long_texts_end_in_time(rewards, name):
    begin = time.monotonic()
    scores, _ = scored(rewards[name], DEEP + COSTLY[4:])
    assert max(scores) <= 0.01
    assert time.monotonic() - begin < 90


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_worker_killed_at_work_costs_no_score(rewards, pool):
    reward = rewards["countdown"]
    right = [str(reward.entries[key]["answer"]) for key in ("train/0", "train/1")]
    os.kill(pool._workers[0].process.pid, signal.SIGSTOP)
    os.kill(pool._workers[0].process.pid, signal.SIGKILL)
    assert reward(prompts=[""] * 2, completions=right, entry=["train/0", "train/1"]) == [1.0, 1.0]


def made(pool, name, **settings):
    from reasoning_gym.factory import DATASETS

    dataset_class, config_class = DATASETS[name]
    entries = {f"train/{i}": example for i, example in enumerate(dataset_class(config_class(**settings)))}
    return ProceduralReward(f"reasoning_gym:{name}", (name, settings), entries, pool=pool)


def test_what_has_no_value_is_worth_nothing(pool):
    reward = made(pool, "complex_arithmetic", size=1, seed=3)
    right = str(reward.entries["train/0"]["answer"])
    texts = ["nan", "NaN", "nan+nanj", "inf", "-infj", right]
    assert reward(prompts=[""] * 6, completions=texts, entry=["train/0"] * 6) == [0.0] * 5 + [1.0]


def test_where_nonsense_would_be_right_the_answer_must_be_the_expected_one(pool):
    """This scorer takes everything but "True" for the right answer "False"."""
    reward = made(pool, "game_of_life_halting", size=8, seed=3)
    keys = [key for key, entry in reward.entries.items() if str(entry["answer"]) == "False"]
    assert keys
    for text, score in (("False", 1.0), (" false ", 1.0), ("maybe", 0.0), ("", 0.0), ("9**9**9", 0.0), ("True", 0.0)):
        assert reward(prompts=[""] * len(keys), completions=[text] * len(keys), entry=keys) == [score] * len(keys)


def test_the_last_tags_that_belong_together_count(pool):
    reward = made(pool, "gcd", size=1, seed=3)
    right = str(reward.entries["train/0"]["answer"])
    texts = [f"<answer>no</answer> <answer>{right}</answer>", f"<answer>{right}</answer> </answer> <answer>",
             f"<answer> no <ANSWER>{right}</ANSWER>", "<answer>" * 100_000]  # fmt: skip
    begin = time.process_time()
    assert reward(prompts=[""] * 4, completions=texts, entry=["train/0"] * 4) == [1.0, 1.0, 1.0, 0.0]
    assert time.process_time() - begin < 5


def test_an_answer_is_scored_as_the_scorer_itself_does():
    task = named_task("reasoning_gym:countdown?size=2&held_out=0&seed=4")
    entry = task.reward.entries["train/0"]
    from reasoning_gym.factory import DATASETS

    dataset_class, config_class = DATASETS["countdown"]
    scorer = dataset_class(config_class())
    texts = [entry["answer"], f"({entry['answer']})", f"{entry['answer']} + 1", "1 + 1", "", "a word", "1/0"]
    expected = [scorer.score_answer(text, entry) for text in texts]
    assert task.reward(prompts=[""] * 7, completions=texts, entry=["train/0"] * 7) == expected
    assert len(set(expected)) >= 3
