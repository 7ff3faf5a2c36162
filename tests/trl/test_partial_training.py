"""Partial rollouts in the trainer: segments of different policies, whole groups, and nothing lost or scored twice."""

import pytest
import torch
from datasets import Dataset
from off_policy_setup import PARTIAL, SETTINGS, Witness, witness
from trainer_setup import character_tokenizer, config, digit_reward, prompts, tiny_model, trainer

from equipoise.errors import InputError
from equipoise.rollouts import PartialRollouts
from equipoise.trl import EquipoiseTrainer
from equipoise.trl.continuation import Round

pytestmark = pytest.mark.slow

GROUPS, SIZE = 4, 4


def questions(count=16):
    return Dataset.from_dict(
        {"prompt": [f"{i}+{i + 3}=" for i in range(count)], "answer": [str(2 * i + 3) for i in range(count)]}
    )


class Scored:
    """A reward that sees whether every completion is scored with the row of its own prompt."""

    __name__ = "scored"

    def __init__(self):
        self.rows: list[tuple[str, str]] = []

    def __call__(self, prompts, completions, answer, **columns):
        for prompt, expected in zip(prompts, answer, strict=True):
            first, second = prompt.rstrip("=").split("+")
            assert expected == str(int(first) + int(second))
        self.rows += zip(prompts, completions, strict=True)
        return digit_reward(completions)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    subject = Witness(
        model=tiny_model(),
        reward_funcs=Scored(),
        args=config(tmp_path_factory.mktemp("partial"), **(SETTINGS | PARTIAL | {"max_steps": 16})),
        train_dataset=questions(),
        processing_class=character_tokenizer(),
    )
    subject.opened, original = [], PartialRollouts.open

    def count(self, row, *args):
        subject.opened.append(row["prompt"])
        original(self, row, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialRollouts, "open", count)
        subject.train()
    return subject


def test_every_segment_has_the_logprobs_and_the_version_of_its_own_policy(run):
    mixed = 0
    for step, batch in run.batches:
        mask = batch["completion_mask"].bool()
        torch.testing.assert_close(
            batch["old_per_token_logps"][mask].double(), run.behavior(batch)[mask], rtol=1e-4, atol=1e-5
        )
        versions = [row[m].tolist() for row, m in zip(batch["policy_version"], mask, strict=True)]
        assert all(row == sorted(row) and row[-1] <= step for row in versions)
        mixed += sum(len(set(row)) > 1 for row in versions)
    assert mixed > 20, "some trajectories must go on under a later policy for this test to say anything"


def test_ratios_are_taken_token_by_token_against_the_policy_of_the_segment(run):
    stale = []
    for step, inputs, (ratio, expected) in run.measured:
        mask = inputs["completion_mask"].bool()
        torch.testing.assert_close(ratio[mask].double(), expected[mask], rtol=5e-4, atol=1e-5)
        stale += (ratio[mask & (inputs["policy_version"] < step - step % 2)] - 1).abs().tolist()
    assert torch.tensor(stale).gt(1e-3).float().mean() > 0.9


def test_no_trajectory_grows_by_more_than_the_budget_in_a_round(run):
    rounds = [e["equipoise/rollout_rounds"] for e in run.state.log_history if "equipoise/rollout_rounds" in e]
    assert max(rounds) > 1 == min(rounds), "the first batch needs more rounds; later ones find the carried over"
    for (_, batch), _count in zip(run.batches, rounds, strict=True):
        for row, mask in zip(batch["policy_version"], batch["completion_mask"].bool(), strict=True):
            for version in row[mask].unique().tolist():
                most = 3 * rounds[[step for step, _ in run.batches].index(version)]
                assert int((row[mask] == version).sum()) <= most


def test_groups_are_whole_scored_once_with_their_own_rows_and_none_is_lost(run):
    taken = []
    for _, batch in run.batches:
        ids = batch["prompt_ids"].view(GROUPS, SIZE, -1)
        assert (ids == ids[:, :1]).all()
        rewards_add_up = batch["advantages"].view(GROUPS, SIZE).sum(1)
        torch.testing.assert_close(rewards_add_up, torch.zeros(GROUPS), atol=1e-4, rtol=0)
        taken += run.processing_class.batch_decode(ids[:, 0], skip_special_tokens=True)
    taken = ["".join(text.split()) for text in taken]
    in_flight = [prompt.row["prompt"] for prompt in run.off_policy.partial.prompts]
    assert sorted(taken + in_flight) == sorted(run.opened)
    assert 0 < len(in_flight) <= GROUPS
    assert [prompt for prompt, _ in run.reward_funcs[0].rows[::SIZE]] == taken


def test_completions_are_finished_by_their_end_or_their_full_length(run):
    for _, batch in run.batches:
        for ids, mask in zip(batch["completion_ids"], batch["completion_mask"].bool(), strict=True):
            kept = ids[mask].tolist()
            assert (kept[-1] == 1) or len(kept) == 8
            assert 1 not in kept[:-1]


def test_a_budget_of_the_full_length_samples_what_is_sampled_without(tmp_path):
    batches = []
    for settings in ({}, {"rollout_token_budget": 8}):
        subject = trainer(tmp_path, **(SETTINGS | settings), dataset=prompts(16))
        subject.model.train()
        torch.manual_seed(5)
        batches.append(
            subject._generate_and_score_completions([{"prompt": f"{i}+1="} for i in (3, 12) for _ in "1234"])
        )
    for name in ("prompt_ids", "completion_ids", "advantages", "num_items_in_batch"):
        assert torch.equal(batches[0][name], batches[1][name])
    assert len(subject.off_policy.partial) == 0


def custom(folder, **changes):
    arguments = {
        "model": tiny_model(),
        "reward_funcs": digit_reward,
        "args": config(folder, **(SETTINGS | PARTIAL)),
        "train_dataset": prompts(16),
        "processing_class": character_tokenizer(),
    }
    return EquipoiseTrainer(**(arguments | changes))


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout_func": lambda prompts, trainer: {}}, "rollout_token_budget does not go with a rollout_func"),
        ({"train_dataset": prompts(16).to_iterable_dataset()}, "does not go with a streamed"),
    ],
    ids=["rollout_func", "streamed"],
)
def test_what_partial_rollouts_do_not_support_is_refused_at_the_start(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        custom(tmp_path, **changes)


def test_columns_that_cannot_wait_in_a_checkpoint_are_refused(tmp_path):
    data = prompts(16).add_column("made", [__import__("datetime").datetime(2026, 1, 1)] * 16)
    with pytest.raises(InputError, match="column 'made' of the training data holds datetime; only text, numbers"):
        custom(tmp_path, train_dataset=data).train()


class FakeVLLM:
    """Gives log-probs with its tokens, as TRL's vLLM does: [sequence][token][top], None where it has none."""

    def __init__(self, model, *, missing=False):
        self.model, self.missing = model, missing
        self.max_completion_length = 8
        self.enable_sleep_mode = False
        self.most: list[int] = []
        self.num_generations: list[int] = []

    def sync_weights(self):
        pass

    @torch.no_grad()
    def generate(self, prompts, images, num_generations, profiler):
        self.most.append(self.max_completion_length)
        self.num_generations.append(num_generations)
        completions, logprobs_ = [], []
        for prompt in prompts:
            ids, values = list(prompt), []
            while len(values) < self.max_completion_length and (not values or ids[-1] != 1):
                distribution = (self.model(input_ids=torch.tensor([ids])).logits[0, -1] / 0.8).log_softmax(-1)
                ids.append(int(torch.multinomial(distribution.exp(), 1)))
                values.append([None if self.missing else float(distribution[ids[-1]])])
            completions.append(ids[len(prompt) :])
            logprobs_.append(values)
        return prompts, completions, logprobs_, None


class SleepingVLLM(FakeVLLM):
    """Sleeps between calls, as TRL's does with sleep mode: asleep it has no weights, and wakes only when they come."""

    def __init__(self, model):
        super().__init__(model)
        self.enable_sleep_mode, self._llm_weights_sleeping, self.has_cache = True, True, False
        self.sent, self.llm = 0, self

    def sync_weights(self):
        self.sent, self._llm_weights_sleeping = self.sent + 1, False

    def wake_up(self, tags):
        assert not self._llm_weights_sleeping
        self.has_cache = self.has_cache or tags == ["kv_cache"]

    def sleep(self, level):
        self._llm_weights_sleeping, self.has_cache = True, False

    def generate(self, *args, **kwargs):
        if self.enable_sleep_mode:
            if self._llm_weights_sleeping:
                self.sync_weights()
            self.wake_up(["kv_cache"])
        assert self.has_cache
        assert not self._llm_weights_sleeping
        sampled = super().generate(*args, **kwargs)
        if self.enable_sleep_mode:
            self.sleep(2)
        return sampled


def test_an_engine_that_sleeps_is_sent_the_weights_once_per_rollout_batch(tmp_path):
    subject = with_vllm(witness(tmp_path, **PARTIAL, max_steps=6), kind=SleepingVLLM)
    engine = subject.vllm_generation
    subject.train()
    rounds = [e["equipoise/rollout_rounds"] for e in subject.state.log_history if "equipoise/rollout_rounds" in e]
    assert sum(rounds) > engine.sent == len(rounds) == 3
    assert engine.enable_sleep_mode
    assert engine._llm_weights_sleeping
    assert not engine.has_cache


def with_vllm(subject, kind=FakeVLLM, **settings):
    """The trainer as if vLLM sampled for it: what TRL's vLLM path reads, with vLLM itself replaced."""
    subject.use_vllm, subject.vllm_importance_sampling_correction, subject._last_loaded_step = True, False, -1
    subject.vllm_generation = kind(subject.model, **settings)
    return subject


@pytest.mark.parametrize("settings", [PARTIAL, {"replay_fraction": 0.5}], ids=str)
def test_logprobs_of_vllm_are_used_through_the_same_seam(tmp_path, settings):
    subject = with_vllm(witness(tmp_path, **settings, max_steps=6))
    subject.train()
    for _, batch in subject.batches:
        mask = batch["completion_mask"].bool()
        torch.testing.assert_close(
            batch["old_per_token_logps"][mask].double(), subject.behavior(batch)[mask], rtol=1e-4, atol=1e-5
        )
    fake = subject.vllm_generation
    assert fake.max_completion_length == 8, "the limit is put back"
    if "rollout_token_budget" in settings:
        assert set(fake.most) <= {1, 2, 3}
        assert set(fake.num_generations) == {1}, "sequences of a group have grown apart"


@pytest.mark.parametrize(
    ("shared", "rows"), [({}, [1, 3, 2]), ({"vllm_mode": "server"}, [5, 5, 5])], ids=["own", "shared"]
)
def test_a_process_takes_part_in_every_round_with_as_many_rows_as_the_engine_needs(tmp_path, monkeypatch, shared, rows):
    """A shared engine's answers are cut into slices of one size by TRL."""
    subject = with_vllm(witness(tmp_path, **PARTIAL))
    subject.model.train()
    for name, value in shared.items():
        setattr(subject, name, value)
    continuation = subject.off_policy.continuation
    monkeypatch.setattr(type(subject.accelerator), "num_processes", 2)
    agreed = Round(missing=1, sequences=5, growth=3)
    for own, asked in zip(([], [[5, 6]] * 3, [[7]] * 2), rows, strict=True):
        ids, logprobs_ = continuation._sample(agreed, own, 1)
        assert len(ids) == len(logprobs_) == len(own), "what is sampled beside its own is thrown away"
        assert subject.sampled[-1] == asked
        assert subject.vllm_generation.most[-1] == 3, "as many tokens as on every process"


def test_tokens_that_vllm_has_no_logprob_for_are_refused(tmp_path):
    with pytest.raises(InputError, match="rollout_token_budget: .*one behaviour log-prob per token"):
        with_vllm(witness(tmp_path / "partial", **PARTIAL), missing=True).train()
    with pytest.raises(InputError, match="replay_fraction: behaviour log-probs .* got nan"):
        with_vllm(witness(tmp_path / "replay", replay_fraction=0.5), missing=True).train()


def test_no_more_than_a_batch_of_groups_is_carried_over_however_small_the_budget(tmp_path):
    subject = witness(tmp_path, rollout_token_budget=1, max_steps=6)
    subject.train()
    carried = [
        e["equipoise/rollout_carried_over"] for e in subject.state.log_history if "equipoise/rollout_rounds" in e
    ]
    assert carried == [GROUPS] * 3
    assert max(subject.sampled) <= 2 * GROUPS * SIZE
