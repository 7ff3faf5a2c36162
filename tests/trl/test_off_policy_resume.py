"""With a replay buffer and completions in flight a resumed run ends as if it had not been interrupted."""

import shutil

import pytest
import torch
from equality import equal
from off_policy_setup import PARTIAL, REPLAY, SETTINGS
from resume_setup import history, weights
from trainer_setup import character_tokenizer, prompts, tiny_model, trainer

from equipoise.trl.checkpoints import CheckpointError, read_marker, write_marker

pytestmark = pytest.mark.slow

KINDS = {"replay": REPLAY, "partial": PARTIAL, "both": REPLAY | PARTIAL | {"replay_sampling": "advantage"}}
SAVED = {"save_strategy": "steps", "save_steps": 1, "max_steps": 12, "polarity": "papo", "papo_warmup_updates": 2}


def make(folder, kind="both", **settings):
    return trainer(folder, **(SETTINGS | SAVED | KINDS[kind] | settings), dataset=prompts(16))


@pytest.fixture(scope="module", params=list(KINDS))
def uninterrupted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    subject = make(folder, request.param)
    subject.train()
    return request.param, folder, subject


@pytest.mark.parametrize("step", [1, 2, 5, 8, 12])
def test_resumed_run_ends_the_same_with_the_same_in_store(uninterrupted, tmp_path, step):
    kind, folder, whole = uninterrupted
    shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    subject = make(tmp_path, kind)
    torch.manual_seed(99)
    subject.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(subject).items())
    assert history(subject) == history(whole)
    assert equal(subject.off_policy.state_dict(), whole.off_policy.state_dict())


def test_a_resumed_run_without_its_store_would_end_otherwise(uninterrupted, tmp_path):
    """What the test above could not see, if the store made no difference."""
    kind, folder, whole = uninterrupted
    shutil.copytree(folder / "checkpoint-5", tmp_path / "checkpoint-5")
    subject = make(tmp_path, kind)
    subject.off_policy.load = lambda folder: None
    subject.train(resume_from_checkpoint=True)
    assert not all(torch.equal(value, weights(whole)[name]) for name, value in weights(subject).items())


def test_a_new_run_of_the_same_trainer_begins_with_nothing_in_store(tmp_path):
    subject = make(tmp_path, max_steps=4, save_strategy="no")
    subject.train()
    assert len(subject.off_policy.buffer) > 0
    assert subject.state.global_step == 4
    subject.train()
    shares = [e.get("equipoise/replay_fraction_used") for e in history(subject)]
    assert shares == [0, None, 0.5, None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make(folder, max_steps=3, save_steps=3).train()
    return folder


def tamper(folder, change):
    path = folder / "checkpoint-3" / "replay_0.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def marked_again(checkpoint):
    """As if what is there had been written so: the list of files finds nothing."""
    state = {name: value for name, value in read_marker(checkpoint).items() if name not in ("files", "xxh3_128")}
    write_marker(checkpoint, state)


def test_a_file_of_something_else_is_refused_in_one_line_and_stays(saved, tmp_path):
    for number, (spoil, message) in enumerate(
        [
            (truncate, r"replay_0.pt is damaged and cannot be read \(.*\); resume from another checkpoint"),
            (lambda path: path.write_bytes(b""), "replay_0.pt is damaged and cannot be read"),
            (lambda path: path.write_text("hello"), "replay_0.pt is damaged and cannot be read"),
            (lambda path: torch.save([1, 2], path), "replay_0.pt cannot be used: "),
            (lambda path: torch.save({"origin": {}}, path), "replay_0.pt cannot be used: .* another format: None"),
            (lambda path: path.unlink(), "has no replay_0.pt: the run was saved without replay_fraction"),
        ]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        path = folder / "checkpoint-3" / "replay_0.pt"
        spoil(path)
        marked_again(folder / "checkpoint-3")
        content = path.read_bytes() if path.exists() else None
        with pytest.raises(CheckpointError, match=message) as refusal:
            make(folder, max_steps=6).train(resume_from_checkpoint=True)
        assert "\n" not in str(refusal.value)
        assert (path.read_bytes() if path.exists() else None) == content
        assert (folder / "checkpoint-3" / "model.safetensors").exists()


def without_logprobs(state):
    state["buffer"]["groups"]["behavior_logprob"][3] = float("nan")


def without_segment_logprobs(state):
    state["partial"][0]["trajectories"][0] |= {"behavior_logprob": [], "completion_ids": [5], "policy_version": [0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_logprobs, "behaviour log-probs of sampled tokens must be finite and <= 0, got nan"),
        (
            lambda state: state["buffer"]["groups"].pop("behavior_logprob"),
            "it is not what equipoise writes .*behavior_logprob",
        ),
        (without_segment_logprobs, "one behaviour log-prob and one policy version per token"),
        (lambda state: state.update(buffer=None), "it holds no buffer state"),
        (lambda state: state["origin"].update(format=0), "of another format: 0, this run has 1"),
        (lambda state: state["origin"].update(group_size=8), "of another group size: 8, this run has 4"),
        (lambda state: state["buffer"].update(generator=torch.zeros(3)), "RNG state must be a torch.ByteTensor"),
    ],
    ids=["nan", "none", "segment", "off", "format", "group", "generator"],
)
def test_contents_that_cannot_be_used_are_refused_and_nothing_of_them_is_kept(saved, tmp_path, change, message):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    tamper(tmp_path, change)
    subject = make(tmp_path, max_steps=6)
    with pytest.raises(CheckpointError, match=f"replay_0.pt cannot be used: .*{message}"):
        subject.off_policy.load(tmp_path / "checkpoint-3")
    assert len(subject.off_policy.buffer) == len(subject.off_policy.partial) == 0


def test_a_store_of_another_model_tokenizer_or_temperature_is_refused(saved, tmp_path):
    other = character_tokenizer()
    other.add_tokens(["x"])
    for made, message in [
        (make(tmp_path, temperature=0.7), "another temperature: 0.8, this run has 0.7"),
        (trainer(tmp_path, **(SETTINGS | KINDS["both"]), model=tiny_model(hidden_size=32)), "of another model: '"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            made.off_policy.load(saved / "checkpoint-3")
    subject = make(tmp_path)
    subject.processing_class = other
    with pytest.raises(CheckpointError, match="of another tokenizer: '"):
        type(subject.off_policy)(subject).load(saved / "checkpoint-3")


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    original = torch.save

    def disk_full(value, target, *args, **kwargs):
        if "checkpoint-3/replay_0" in str(target):
            raise OSError(28, "No space left on device")
        return original(value, target, *args, **kwargs)

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(CheckpointError, match="checkpoint-3 could not be written: .*checkpoint-2, is complete"):
        make(tmp_path, max_steps=4).train()
    monkeypatch.undo()
    resumed = make(tmp_path, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
