"""Episodes in training: whose tokens count, steps side by side, failures that do not end the run, evaluation."""

import json
import pickle
import threading
import time

import episode_setup
import pytest
import torch
from episode_setup import Scripted, episode_trainer, model, sums
from resume_setup import TIMINGS
from trl import GRPOTrainer

from equipoise.errors import InputError
from equipoise.models.warm_starts import calculator_tokenizer
from equipoise.tasks.environments import EpisodeLimits, EpisodeReward, EpisodesFailedError, guarded
from equipoise.tasks.environments.calculator import Calculator, CalculatorReward
from equipoise.trl import EquipoiseTrainer, run
from equipoise.trl.episodes import Transcript, evaluate_episodes, neutral_rewards

pytestmark = pytest.mark.filterwarnings("ignore::trl.import_utils.TRLExperimentalWarning")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def rollout(trainer, count=2):
    trainer.model.train()
    return trainer._generate_and_score_completions([row for row in sums(count).to_list() for _ in range(4)])


def test_only_what_the_model_says_is_its_own(tmp_path):
    batch = rollout(episode_trainer(tmp_path))
    names = {number: word for word, number in calculator_tokenizer().get_vocab().items()}
    for ids, own, mask in zip(batch["completion_ids"], batch["tool_mask"], batch["completion_mask"], strict=True):
        said = " ".join(names[i] for i in ids[(own & mask).bool()].tolist())
        seen = " ".join(names[i] for i in ids[((1 - own) & mask).bool()].tolist())
        assert "<call>" in said
        assert "<tool>" not in said
        assert seen.count("<tool>") == seen.count("<assistant>") == 2
    assert batch["advantages"].tolist() == pytest.approx([-0.8659, 0.8659] * 4, abs=1e-3)


class Poisoned(Scripted):
    """Garbage for the statistics of tokens that the environment wrote; NaN where TRL itself does not multiply it."""

    poison = True

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if self.poison and "old_per_token_logps" in batch:
            batch["old_per_token_logps"] = torch.where(self._own(batch), batch["old_per_token_logps"], -0.3)
        return batch

    def _compute_loss(self, model, inputs):
        self._inputs = inputs
        return super()._compute_loss(model, inputs)

    def _own(self, inputs):
        return (inputs["completion_mask"] * inputs["tool_mask"]).bool()

    def _statistics(self, model, *args, **kwargs):
        statistics, (logprob, entropy, *rest) = super()._statistics(model, *args, **kwargs)
        if not self.poison:
            return statistics, (logprob, entropy, *rest)
        own = self._own(self._inputs)
        assert (~own & self._inputs["completion_mask"].bool()).sum() > 30

        def spoilt(values, garbage):
            return torch.where(own, values, garbage)

        poisoned = type(statistics)(
            spoilt(statistics.logprob, -9.0),
            spoilt(statistics.entropy, torch.nan),
            spoilt(statistics.tendency, torch.nan),
            spoilt(statistics.correction, torch.nan),
        )
        return poisoned, (spoilt(logprob, -9.0), spoilt(entropy, 1e6), *rest)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"clipping": "balanced", "polarity": "papo", "papo_warmup_updates": 1},
        {"clipping": "balanced", "bapo_scope": "lagged", "loss_type": "grpo"},
        {"importance_sampling_level": "sequence"},
        {"top_entropy_quantile": 0.5},
        {"entropy_control": "kl_cov"},
        {"entropy_control": "clip_cov"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_tokens_of_the_environment_change_nothing(tmp_path, settings):
    """Loss, entropy, flows, contributions and the trained weights, to the last bit."""
    histories, weights = [], []
    for poison in (True, False):
        kind = type("Kind", (Poisoned,), {"poison": poison})
        subject = episode_trainer(tmp_path / str(poison), kind=kind, num_iterations=3, max_steps=6, **settings)
        subject.train()
        entries = [entry for entry in subject.state.log_history if "loss" in entry]
        assert len(entries) == 6
        histories.append([{k: v for k, v in entry.items() if k not in TIMINGS} for entry in entries])
        weights.append(subject.model.state_dict())
    for poisoned, clean in zip(*histories, strict=True):
        assert poisoned == pytest.approx(clean, rel=0, abs=0, nan_ok=True)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert histories[1][-1]["equipoise/ratio_std"] > 0
    assert all(torch.isfinite(value).all() for value in weights[0].values())


class Together(Calculator):
    """No step ends before those of all episodes have begun."""

    barrier = threading.Barrier(8)

    def calculate(self, expression: str) -> str:
        """As of the calculator.

        Args:
            expression: the operation.
        """
        self.barrier.wait(10)
        return super().calculate(expression)


def test_steps_of_all_episodes_run_side_by_side(tmp_path):
    subject = episode_trainer(tmp_path, environment=Together, limits=EpisodeLimits(4, 30))
    rollout(subject)
    assert [episode.outcome for episode in subject.environments] == ["open"] * 8
    assert [episode.num_steps for episode in subject.environments] == [2] * 8


class Spoilt(Calculator):
    """The third sum hangs, the fourth crashes, the fifth talks nonsense."""

    release = threading.Event()

    def reset(self, answer: str, **row):
        """A new sum."""
        self.answer = answer

    def calculate(self, expression: str):
        """As of the calculator.

        Args:
            expression: the operation.
        """
        if self.answer == "11":
            self.release.wait(20)
        if self.answer == "13":
            raise OSError("battery empty")
        if self.answer == "15":
            return {1, 2}
        return super().calculate(expression)


@pytest.mark.slow
def test_failed_episodes_are_recorded_and_the_others_learned_from(tmp_path):
    reward = CalculatorReward(1.0)
    reward.record = tmp_path / "failed.jsonl"
    subject = episode_trainer(
        tmp_path / "run", environment=Spoilt, reward=reward, limits=EpisodeLimits(4, 0.3), max_steps=4
    )
    begin = time.perf_counter()
    try:
        subject.train()
    finally:
        Spoilt.release.set()
    assert time.perf_counter() - begin < 15
    rows = [json.loads(line) for line in reward.record.read_text().splitlines()]
    causes = {(row["outcome"], row["cause"]) for row in rows}
    assert causes == {
        ("timeout", "calculate took longer than 0.3 s"),
        ("error", "calculate raised OSError: battery empty"),
        ("nonsense", "calculate returned {1, 2}, not an observation"),
    }
    assert len(rows) == 12, "four episodes of each of three sums"
    entries = [entry for entry in subject.state.log_history if "loss" in entry]
    failed = sum(
        entry[f"episodes/{outcome}_fraction"] for entry in entries for outcome in ("timeout", "error", "nonsense")
    )
    assert failed * 8 == pytest.approx(12)
    assert all(torch.isfinite(value).all() for value in subject.model.state_dict().values())


def test_a_prompt_whose_episodes_all_fail_moves_nothing(tmp_path):
    reward = CalculatorReward(1.0)
    subject = episode_trainer(tmp_path, environment=Spoilt, reward=reward)
    rows = [row for row in sums(4).to_list() if row["answer"] in ("7", "13")]
    subject.model.train()
    batch = subject._generate_and_score_completions([row for row in rows for _ in range(4)])
    assert batch["advantages"][:4].abs().min() > 0.5
    assert batch["advantages"][4:].tolist() == [0.0] * 4


def test_too_many_failures_end_the_run_with_the_causes(tmp_path):
    class Dead(Calculator):
        def reset(self, **row):
            """Fails."""
            raise ConnectionError("no server")

    subject = episode_trainer(tmp_path, environment=Dead, reward=CalculatorReward(0.5), max_steps=10)
    with pytest.raises(EpisodesFailedError, match="100% of the last 16 episodes failed .* reset raised Connection"):
        subject.train()


def test_a_call_that_the_loop_will_not_ask_for_does_not_begin(tmp_path):
    subject = episode_trainer(tmp_path, max_tool_calling_iterations=1)
    rollout(subject)
    assert [episode.num_steps for episode in subject.environments] == [1] * 8
    assert not any(episode._begun for episode in subject.environments)


def test_messages_that_are_no_calls_begin_nothing():
    episode = guarded(Calculator, episode_setup.LIMITS)()
    transcript = Transcript([{"role": "assistant", "content": "42"}], episode, 4)
    transcript.append({"role": "assistant", "tool_calls": [{"type": "function"}]})
    assert len(transcript) == 2
    assert not episode._begun


class Plain:
    """An environment as TRL takes it, without our guard."""

    def __init__(self):
        self.calls = 0

    def reset(self, **row) -> None:
        """A new sum."""
        self.calls = 0

    def calculate(self, expression: str) -> str:
        """The result of one operation.

        Args:
            expression: two numbers with + or - between them.
        """
        self.calls += 1
        first, sign, second = expression.split()
        return str(int(first) + (int(second) if sign == "+" else -int(second)))


def test_a_plain_environment_trains_what_it_does_on_trls_trainer(tmp_path, monkeypatch):
    """Its completions are plain lists, whatever a reward function asks of them."""
    kinds, ends = set(), []

    def reward(completions, environments, **columns):
        kinds.update(map(type, completions))
        return [e.calls + len(str(c[-1]["content"])) for e, c in zip(environments, completions, strict=True)]

    monkeypatch.setattr(episode_setup, "guarded", lambda environment, limits: environment)
    for base in (GRPOTrainer, EquipoiseTrainer):
        said = {name: vars(Scripted)[name] for name in ("_generate_single_turn", "script")}
        kind = type("Said", (base,), said)
        subject = episode_trainer(tmp_path, environment=Plain, reward=reward, kind=kind, optim="sgd")
        subject.train()
        ends.append(subject.model.state_dict())
    assert kinds == {list}
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-6)


def test_a_transcript_travels_to_other_processes_as_a_plain_list(tmp_path):
    subject = episode_trainer(tmp_path)
    rollout(subject)
    messages = [{"role": "assistant", "content": "42"}]
    copy = pickle.loads(pickle.dumps([Transcript(messages, subject.environments[0], 4)]))
    assert copy == [messages]
    assert type(copy[0]) is list


def test_failed_episodes_are_neutral_in_groups_of_the_rows_that_all_ranks_gather():
    reward = EpisodeReward()
    reward.last_scores = [None, 1.0]  # of this rank
    gathered = torch.tensor([torch.nan, 1.0, 0.5, torch.nan, torch.nan, torch.nan, torch.nan, torch.nan])
    seen = []

    def gather(own):
        seen.append(own.tolist())
        return gathered.double()

    rewards = torch.tensor([[0.0, 9.0], [1.0, 8.0], [0.5, 7.0], [0.5, 6.0]] + [[5.0, 5.0]] * 4)
    neutral = neutral_rewards(rewards, [reward, print], 4, gather)
    assert seen[0] == pytest.approx([torch.nan, 1.0], nan_ok=True)
    assert neutral[:, 0].tolist() == [0.75, 1.0, 0.5, 0.75, 0.0, 0.0, 0.0, 0.0]
    assert torch.equal(neutral[:, 1], rewards[:, 1])


def test_evaluation_leaves_the_training_as_it_is(tmp_path):
    subject = episode_trainer(tmp_path)
    subject.model.train()
    before = torch.get_rng_state()
    values = evaluate_episodes(subject, sums(6), subject.reward_funcs[0], seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert subject.model.training
    assert not subject._metrics["eval"]
    assert subject.state.num_input_tokens_seen == 0
    assert (values["num_prompts"], values["num_samples"], values["failed_fraction"]) == (6, 4, 0.0)
    assert values["pass_at"]["1"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert values["mean_reward"] == 0.5


def test_failed_episodes_are_neither_right_nor_wrong_in_an_evaluation(tmp_path):
    subject = episode_trainer(tmp_path, environment=Spoilt, reward=CalculatorReward(1.0))
    Spoilt.release.set()
    values = evaluate_episodes(subject, sums(5), subject.reward_funcs[0])
    assert values["failed_fraction"] == pytest.approx(2 / 5)
    assert values["pass_at"]["1"]["mean"] == 0.5


MODULE = """
class Guess:
    made = 0

    def __init__(self):
        type(self).made += 1

    def reset(self, secret, **row):
        \"\"\"Begin.\"\"\"
        if secret == "lost" or FAILS:
            raise OSError("no such game")
        self.secret = secret

    def guess(self, number: int) -> str:
        \"\"\"Guess a number.

        Args:
            number: the guess.
        \"\"\"
        return "yes" if str(number) == self.secret else "no"

    def get_reward(self):
        \"\"\"Half.\"\"\"
        return 0.5
"""


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """Settings of a run with an environment of the user; the module is imported from the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model().save_pretrained(tmp_path / "base")
    calculator_tokenizer().save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"{n} =", "answer": "1", "secret": "lost" if n == 3 else "1"} for n in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(tmp_path / "base"), "task": f"data:{tmp_path / 'prompts.jsonl'}", "chat": True, "max_steps": 4,
        "environment_steps": 2, "output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 8,
        "num_generations": 4, "max_completion_length": 16, "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "no",
    }  # fmt: skip


def written(tmp_path, name, fails):
    (tmp_path / f"{name}.py").write_text(f"FAILS = {fails}\n{MODULE}")
    return f"{name}:Guess"


def test_a_run_with_an_environment_of_the_user(keys, tmp_path):
    name = written(tmp_path, "game_of_test", False)
    folder = run.train(keys | {"environment": name, "max_failed_fraction": 0.5})
    assert (folder / "model").is_dir()
    rows = [json.loads(line) for line in (folder / "failed_episodes.jsonl").read_text().splitlines()]
    assert [row["cause"] for row in rows] == ["reset raised OSError: no such game"] * 4
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["reward"] for line in lines] == pytest.approx([0.5, 0.5, 0.5, 0.5], abs=0.26)


def test_a_run_whose_environment_is_broken_stops(keys, tmp_path):
    name = written(tmp_path, "broken_game_of_test", True)
    with pytest.raises(
        EpisodesFailedError, match="100% of the last 16 episodes failed by their environment, more than "
    ):
        run.train(keys | {"environment": name})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": "nowhere_of_test:Guess"}, "environment 'nowhere_of_test:Guess': module .* cannot be imported"),
        ({"environment": "json:nothing"}, "environment 'json:nothing': .* has no 'nothing'"),
        ({"environment": "Guess"}, "the environment must be \"module:name\", got 'Guess'"),
        ({"environment": "json:JSONDecoder"}, "environment JSONDecoder must have a method reset"),
        ({"chat": False}, "needs chat messages as prompts: set chat"),
        ({"environment_steps": 0}, "environment_steps must be >= 1"),
        ({"environment_seconds": -1.0}, "environment_seconds must be > 0"),
        ({"max_failed_fraction": 0.0}, r"max_failed_fraction must be in \(0, 1\], got max_failed_fraction=0"),
        ({"reward": "exact"}, "environment needs a data set of prompts .* and brings its own reward"),
        (
            {"environment": None, "task": "calculator", "eval_task": "ladder", "chat": False},
            "task calculator has episodes and held-out prompts of its own: leave eval_task out",
        ),
        (
            {"environment": None, "task": "ladder", "eval_task": "calculator", "chat": False},
            "task calculator has episodes and held-out prompts of its own: leave eval_task out",
        ),
        (
            {"environment": None, "task": "calculator", "eval_task": "data:prompts.jsonl"},
            "task calculator has episodes and held-out prompts of its own: leave eval_task out",
        ),
        ({"task": "ladder"}, "environment needs a data set of prompts .* and brings its own reward"),
    ],
)
def test_environments_that_cannot_be_used_leave_nothing_behind(keys, tmp_path, change, message):
    name = written(tmp_path, "refused_game_of_test", False)
    with pytest.raises(InputError, match=message):
        run.train(keys | {"environment": name} | change)
    assert not (tmp_path / "run").exists()


def test_a_reward_of_episodes_is_what_the_environment_says(tmp_path):
    class Half(Calculator):
        def get_reward(self):
            """Half."""
            return 0.5

    subject = episode_trainer(tmp_path, environment=Half, reward=EpisodeReward())
    rollout(subject)
    assert subject._rewards.flatten().tolist() == [0.5] * 8
