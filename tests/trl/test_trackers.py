"""What a tracker receives: the scalars of equipoise under their prefix, and the asymmetry map."""

import json

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainer_setup import config, trainer

from equipoise.diagnostics.asymmetry import asymmetry_figure
from equipoise.trl import asymmetry_map
from equipoise.trl.callbacks import MetricsRecorder

pytestmark = pytest.mark.slow

STALE = {"num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "num_generations": 4}


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    run = trainer(folder, report_to="tensorboard", asymmetry_map_every=2, max_steps=5, **STALE)
    run.add_callback(MetricsRecorder(folder))
    run.train()
    (file,) = folder.rglob("events.out.tfevents.*")
    return folder, EventAccumulator(str(file), {"images": 0, "scalars": 0}).Reload(), run


def test_every_scalar_of_equipoise_is_in_tensorboard_with_its_value(events):
    folder, read, _ = events
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line if name.startswith("equipoise/")}
    assert {"equipoise/entropy", "equipoise/expanding_flow", "equipoise/ratio_std", "equipoise/staleness"} <= names
    for name in names:
        logged = [(e.step, e.value) for e in read.Scalars(f"train/{name}")]
        expected = [(line["update"], line[name]) for line in lines if line.get(name) is not None]
        logged = [(step, value) for step, value in logged if np.isfinite(value)]
        assert [step for step, _ in logged] == [step for step, _ in expected], name
        assert [v for _, v in logged] == pytest.approx([v for _, v in expected], rel=1e-6), name


def test_the_asymmetry_map_comes_every_so_many_updates(events):
    _, read, _ = events
    images = read.Images("equipoise/asymmetry_map")
    assert [image.step for image in images] == [2, 4]
    assert all(
        image.width == 770 and image.height == 550 and len(image.encoded_image_string) > 5_000 for image in images
    )


def test_the_map_changes_nothing_in_training(events, tmp_path):
    run = trainer(tmp_path, max_steps=5, **STALE)
    run.train()
    for mine, theirs in zip(run.model.parameters(), events[2].model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_map_shows_action_tokens_of_the_whole_update_and_a_bounded_sample(tmp_path, monkeypatch):
    shown, seen = [], []
    monkeypatch.setattr(
        asymmetry_map, "asymmetry_figure", lambda *columns, title: shown.append((columns, title)) or "figure"
    )
    monkeypatch.setattr(asymmetry_map.AsymmetryMap, "_send", lambda self, figure, update: None)
    observe = asymmetry_map.AsymmetryMap.observe

    def poisoned(self, batch):
        seen.append((self.trainer.state.global_step, batch.statistics.entropy[batch.action_mask].tolist()))
        for x in batch.statistics:
            x.data[~batch.action_mask] = torch.nan
        observe(self, batch)

    settings = {"report_to": "tensorboard", "asymmetry_map_every": 2, "max_steps": 2, **STALE}
    with monkeypatch.context() as patch:
        patch.setattr(asymmetry_map.AsymmetryMap, "observe", poisoned)
        trainer(tmp_path / "whole", **settings).train()
    ((columns, title),) = shown
    entropies = sorted(e for step, values in seen if step == 1 for e in values)
    assert sorted(columns[1]) == pytest.approx(entropies)
    assert title.startswith(f"Update 2: {len(entropies)} tokens")
    logprob, entropy, threshold, polarity = columns
    assert (logprob <= 0).all()
    assert (entropy >= 0).all()
    assert ((threshold > 0) & (threshold <= 1)).all()
    assert polarity.min() < 0 < polarity.max()

    monkeypatch.setattr(asymmetry_map, "MAP_TOKENS", 10)
    trainer(tmp_path / "bounded", **settings).train()
    bounded = shown[1][0]
    assert len(bounded[1]) == 10
    assert set(bounded[1].round(9)) <= set(np.round(entropies, 9))


def test_a_map_of_one_token_can_be_drawn():
    one = np.array([-0.5])
    figure = asymmetry_figure(one, -one, -one, 0 * one, title="one")
    assert figure.axes[0].get_title() == "one"
    assert figure.axes[0].get_xlim() == (0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"asymmetry_map_every": 5, "report_to": "none"}, "asymmetry_map_every=5 needs a tracker that takes figures"),
        ({"asymmetry_map_every": -1}, "asymmetry_map_every must be >= 0, got asymmetry_map_every=-1"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)
