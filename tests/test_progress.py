import io
import sys

import pytest

from equipoise.progress import progress_bar


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
