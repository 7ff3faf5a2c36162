import dataclasses

import pytest

from equipoise.errors import InputError


@pytest.fixture
def compatibility():
    from equipoise.verl import compatibility

    return compatibility


def test_what_is_used_of_verl_is_there(compatibility):
    assert {symbol.name: lack for symbol in compatibility.SYMBOLS if (lack := compatibility.lacking(symbol))} == {}


@pytest.mark.parametrize("version", ["0.8.0", "0.10.0", "1.0"])
def test_another_version_is_refused_in_one_line(version, compatibility, monkeypatch):
    monkeypatch.setattr(compatibility.importlib.metadata, "version", lambda name: version)
    with pytest.raises(InputError, match=rf"verl >= 0\.9, < 0\.10.*{version}"):
        compatibility.check()


@pytest.mark.parametrize(
    ("change", "lack"),
    [
        ({"name": "verl.workers.engine_workers:TrainingWorker.train_micro_batch"}, "train_micro_batch"),
        ({"name": "verl.workers.engines:BaseEngine.forward_backward_batch"}, "verl.workers.engines"),
        ({"parameters": ("data", "temperature")}, "temperature"),
    ],
)
def test_a_name_that_has_moved_is_named(change, lack, compatibility, monkeypatch):
    symbol = dataclasses.replace(compatibility.SYMBOLS[1], **change)
    monkeypatch.setattr(compatibility, "SYMBOLS", (symbol,))
    with pytest.raises(InputError) as refused:
        compatibility.check()
    assert lack in str(refused.value)
    assert "\n" not in str(refused.value)
