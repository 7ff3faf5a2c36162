"""The run folder of one process, without Ray: what a start, a checkpoint and a batch that is filled up make of it."""

import functools
import json
import os
from types import SimpleNamespace

import pytest
import torch

from equipoise.errors import InputError

PLACE = "actor_rollout_ref.actor.policy_loss.equipoise"


@pytest.fixture(scope="module")
def one_rank():
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def tokenizer(model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@pytest.fixture
def worker_of(one_rank, tokenizer, monkeypatch):
    """An extended worker around an engine that does nothing; each step of its is one update."""
    import torch.distributed as dist
    from verl.workers.config import FSDPActorConfig
    from verl.workers.engine import BaseEngine
    from verl.workers.engine_workers import TrainingWorker
    from verl.workers.utils.losses import ppo_loss

    from equipoise.verl import EquipoiseLossConfig, EquipoiseWorker

    def one_update(worker, data):
        worker.updates.number += 1
        if worker.updates.folder.recorder is not None:
            record(worker.updates.folder, update=worker.updates.number - 1)
        worker.updates.folder.log(worker.updates.number, {"loss": 0.0})
        return data

    monkeypatch.setattr(TrainingWorker, "train_mini_batch", one_update)
    for name in ("save_checkpoint", "load_checkpoint"):
        monkeypatch.setattr(TrainingWorker, name, lambda *arguments: None)

    def made(**keys):
        loss = EquipoiseLossConfig(loss_mode="equipoise", equipoise=keys)
        config = FSDPActorConfig(
            strategy="fsdp2", rollout_n=4, ppo_micro_batch_size_per_gpu=4, policy_loss=loss, use_dynamic_bsz=False
        )
        worker = object.__new__(EquipoiseWorker)
        worker.engine = object.__new__(BaseEngine)
        worker.engine.get_data_parallel_group = lambda: dist.group.WORLD
        worker.optimizer_config = SimpleNamespace(total_training_steps=10)
        worker.model_config = Model(tokenizer=tokenizer)
        worker.set_loss_fn(functools.partial(ppo_loss, config=config))
        return worker

    return made


class Model(SimpleNamespace):
    def get(self, name, default=None):
        return getattr(self, name, default)


def step():
    from tensordict import TensorDict

    old = torch.zeros(4, 3)
    columns = {"input_ids": torch.ones(4, 6).long(), "loss_mask": torch.ones(4, 3).long()}
    return TensorDict(columns | {"old_log_probs": old, "rollout_log_probs": old.clone()}, [4])


def record(folder, *, update=0, filled=()):
    """One micro-batch of four answers of three tokens; rows that only fill the batch have no token of the policy's."""
    from tensordict import TensorDict

    from equipoise.steering import MicroBatch, Steered, Update
    from equipoise.types import ClipBounds, TokenStatistics
    from equipoise.verl.origin import GROUP, REWARD, SAMPLE

    ones = torch.ones(4, 3)
    mask = ones.bool()
    mask[list(filled)] = False
    data = TensorDict(
        {
            "prompts": torch.ones(4, 2).long(), "responses": torch.ones(4, 3).long(),
            "attention_mask": torch.ones(4, 5).long(), SAMPLE: torch.arange(4), GROUP: torch.zeros(4).long(),
            REWARD: torch.ones(4),
        },
        [4],
    )  # fmt: skip
    batch = MicroBatch.of(
        TokenStatistics(-ones, ones, ones, ones), old_logprob=-ones, advantage=ones, action_mask=mask, loss_mask=mask,
        staleness=torch.zeros(4, 3).long(),
    )  # fmt: skip
    steered = Steered(ClipBounds(0.8, 1.2), ones)
    folder.record(Update(update, None, None, "gradient", None), data, batch, steered)


def updates_recorded(folder):
    from equipoise.diagnostics.records import read_records

    return sorted(set(read_records(folder).to_pandas()["update"]))


def updates_logged(folder):
    return [json.loads(line)["update"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_drops_what_it_writes_again_and_goes_on_recording(worker_of, tmp_path):
    keys = {"output_dir": str(tmp_path / "run"), "record_tokens": 1}
    first = worker_of(**keys)
    for _ in range(2):
        first.train_mini_batch(step())
    first.save_checkpoint(str(tmp_path), None, 2)
    for _ in range(2):
        first.train_mini_batch(step())
    assert updates_logged(tmp_path / "run") == updates_recorded(tmp_path / "run") == [1, 2, 3, 4]

    second = worker_of(**keys)  # after it was killed
    second.load_checkpoint(str(tmp_path))
    second.train_mini_batch(step())
    assert updates_logged(tmp_path / "run") == updates_recorded(tmp_path / "run") == [1, 2, 3]

    second.load_checkpoint(str(tmp_path))  # the same process, once more
    second.train_mini_batch(step())
    assert updates_logged(tmp_path / "run") == updates_recorded(tmp_path / "run") == [1, 2, 3]
    assert not list((tmp_path / "run").glob("found-*"))


def test_a_run_that_begins_anew_keeps_what_it_finds(worker_of, tmp_path):
    for _ in range(2):
        worker_of(output_dir=str(tmp_path), record_tokens=1).train_mini_batch(step())
    assert updates_logged(tmp_path) == updates_recorded(tmp_path) == [1]
    assert (tmp_path / "found-1-metrics.jsonl").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_sampled(worker_of, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"output_dir \S*file/run cannot be written: "):
        worker_of(output_dir=str(tmp_path / "file" / "run"))


def test_a_tilde_is_the_home_folder(worker_of, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    worker_of(output_dir="~/run").train_mini_batch(step())
    assert updates_logged(tmp_path / "home" / "run") == [1]
    assert os.listdir(tmp_path) == ["home"]


def test_a_steered_actor_is_given_no_other_loss(worker_of):
    worker = worker_of()
    ours = worker.loss_fn
    with pytest.raises(InputError, match="another loss"):
        worker.set_loss_fn(functools.partial(print))
    assert worker.loss_fn is ours


def test_rows_that_only_fill_a_batch_are_not_recorded(worker_of, tmp_path):
    from equipoise.diagnostics.records import read_records

    folder = worker_of(output_dir=str(tmp_path), record_tokens=1).updates.folder
    folder.begin(0)
    record(folder, filled=[1, 3])
    folder.flush()
    assert sorted(read_records(tmp_path).to_pandas()["sample"]) == [0, 0, 0, 2, 2, 2]


def test_a_node_that_does_not_see_the_folder_says_where_its_records_stay(one_rank, tokenizer, tmp_path, caplog):
    from equipoise.verl.recording import RunFolder
    from equipoise.verl.settings import VerlSettings

    other = RunFolder(VerlSettings(output_dir=str(tmp_path), record_tokens=1), tokenizer, rank=1, world_size=2)
    other.begin(0)
    assert "rank 1" in caplog.text
    caplog.clear()
    RunFolder(VerlSettings(output_dir=str(tmp_path), record_tokens=1), tokenizer, rank=0, world_size=1).begin(0)
    other.end()
    other.begin(0)
    assert "rank 1" not in caplog.text


@pytest.mark.parametrize("key", ["epsilon", "epsilon_high"])
def test_a_bound_of_trls_is_refused_with_the_key_that_verl_has(key):
    from equipoise.verl.settings import settings_of

    with pytest.raises(InputError, match=rf"{key} is not known.*actor\.clip_ratio_(low|high)"):
        settings_of({key: 0.3})


def test_no_folder_is_not_the_folder_one_is_in():
    from equipoise.verl.settings import settings_of

    with pytest.raises(InputError, match=rf"{PLACE}: output_dir must be a folder"):
        settings_of({"output_dir": ""})


def test_another_librarys_worker_is_not_silently_replaced(monkeypatch):
    from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

    from equipoise.verl import EquipoiseWorker
    from equipoise.verl.registration import register

    theirs, extended = type("Theirs", (TrainingWorker,), {}), type("Extended", (EquipoiseWorker,), {})
    monkeypatch.setattr(ActorRolloutRefWorker, "actor_worker_cls", theirs)
    with pytest.raises(InputError, match=r"actor_worker_cls.*Theirs.*EquipoiseWorker"):
        register()
    assert ActorRolloutRefWorker.actor_worker_cls is theirs
    for found, then in ((extended, extended), (TrainingWorker, EquipoiseWorker), (EquipoiseWorker, EquipoiseWorker)):
        ActorRolloutRefWorker.actor_worker_cls = found
        register()
        assert ActorRolloutRefWorker.actor_worker_cls is then


def test_ratios_are_cut_where_verls_loss_cuts_them():
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.workers.config import FSDPActorConfig

    from equipoise.verl.updates import _in_reach

    logprob = torch.full((1, 7), -3.0)
    old = torch.tensor([[-3.5, -22.0, -24.0, -123.0, -torch.inf, 18.0, 97.0]])
    ratio = (logprob - _in_reach(old, logprob)).exp()
    config = FSDPActorConfig(
        strategy="fsdp2", rollout_n=4, ppo_micro_batch_size_per_gpu=4, clip_ratio_low=1.0, clip_ratio_high=1e30
    )
    config.global_batch_info.update(dp_size=1, batch_num_tokens=1, global_batch_size=1, loss_scale_factor=None)
    for token in range(7):
        mask = torch.arange(7)[None] == token
        loss, _ = compute_policy_loss_vanilla(old, logprob, torch.ones(1, 7), mask, "token-mean", config)
        assert -loss.item() == pytest.approx(ratio[0, token].item(), rel=1e-5)
