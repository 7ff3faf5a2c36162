"""A run that is killed, at whatever moment, ends as if it had not been.

EQUIPOISE_KILLS and EQUIPOISE_SEED in the environment set how many moments are tried, and which.
"""

import itertools
import os
import random
import signal

import forked_commands
import pytest
import recovery

KILLS = int(os.environ.get("EQUIPOISE_KILLS", "6"))
SEED = os.environ.get("EQUIPOISE_SEED", "0")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 * (KILLS + 2))]


def test_a_run_killed_at_any_change_of_its_files_ends_as_if_it_had_not_been(whole, tmp_path_factory):
    place, expected, count = whole
    assert count > 100
    assert expected["left over"] == []
    choose = random.Random(SEED)
    edges = [1 + count * number // KILLS for number in range(KILLS + 1)]
    moments = [choose.randrange(first, last) for first, last in itertools.pairwise(edges)]
    for moment in moments:
        killed = recovery.copied(place, tmp_path_factory.mktemp("killed") / "place")
        assert forked_commands.run(recovery.RUN, killed, kill_at=moment) == -signal.SIGKILL
        recovery.finished(killed)
        assert recovery.outcome(killed) == expected, f"killed at change {moment} of {count}"


def test_a_run_killed_twice_and_again_while_it_resumes(whole, tmp_path_factory):
    place, expected, count = whole
    killed = recovery.copied(place, tmp_path_factory.mktemp("killed") / "place")
    assert forked_commands.run(recovery.RUN, killed, kill_at=count // 2) == -signal.SIGKILL
    for moment in (2, 20):
        assert forked_commands.run(recovery.RESUME, killed, kill_at=moment) == -signal.SIGKILL
    recovery.finished(killed)
    assert recovery.outcome(killed) == expected
