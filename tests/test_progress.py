import io
import sys

import pytest

from equipoise.progress import SamplingBar, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(monkeypatch, stream, **settings):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("work", 3, "thing", **settings) as bar:
        bar.update(2)
    return stream.getvalue()


def test_a_terminal_is_shown_what_is_done_and_what_is_left(monkeypatch):
    assert "work" in drawn(monkeypatch, Terminal())
    assert "1/3" in drawn(monkeypatch, Terminal(), done=1)


@pytest.mark.parametrize(("stream", "settings"), [(io.StringIO(), {}), (Terminal(), {"shown": False})])
def test_a_file_and_whoever_wants_no_bar_get_nothing(monkeypatch, stream, settings):
    assert drawn(monkeypatch, stream, **settings) == ""


def test_a_bar_goes_away_unless_it_is_to_stay(monkeypatch):
    assert drawn(monkeypatch, Terminal()).endswith("\r")
    assert drawn(monkeypatch, Terminal(), stays=True).endswith("\n")


def test_a_bar_of_samples_moves_within_a_batch(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    with SamplingBar("evaluate", 20, done=4) as bar:
        bar.bar.mininterval = 0
        assert bar.watch is bar
        for step in range(1, 5):
            bar.step(8, 8 * step / 8)
            assert bar.bar.n == 4 + step
        bar.update(8)
        assert (bar.bar.n, bar.num_tokens) == (12, 32)
    lines = stream.getvalue().split("\r")
    assert any("5/20 completions" in line and "tokens/s" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_where_no_bar_is_drawn_no_step_has_to_be_told(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert SamplingBar("evaluate", 20).watch is None
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert SamplingBar("evaluate", 20, shown=False).watch is None
