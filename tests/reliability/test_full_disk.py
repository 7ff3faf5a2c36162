"""A disk that is full: one line, what was whole stays whole, and the run goes on when there is room again."""

import os
import random
import subprocess

import forked_commands
import pytest
import recovery

from equipoise.diagnostics.run_folder import checkpoint_folders, is_complete
from equipoise.trl.checkpoints import check_whole

TRIES = int(os.environ.get("EQUIPOISE_KILLS", "3"))
SEED = os.environ.get("EQUIPOISE_SEED", "0")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 * (TRIES + 2))]


@pytest.fixture
def small_disk(tmp_path_factory):
    """A folder on a disk of a size that can be changed."""
    folder = tmp_path_factory.mktemp("disk")

    def sized(options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
        )

    if os.name != "posix" or sized("size=64k").returncode:
        pytest.skip("a small disk cannot be mounted: that takes the rights of root")
    try:
        yield folder, lambda size: sized(f"remount,size={size}")
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)


def used(folder):
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def test_a_run_goes_on_when_there_is_room_again(whole, small_disk, tmp_path_factory):
    source, expected, _ = whole
    disk, resize = small_disk
    needed, choose = used(source / "run"), random.Random(SEED)
    for number in range(TRIES):
        assert resize("64m").returncode == 0
        place = recovery.copied(source, disk / f"place{number}")
        room = int(needed * choose.uniform((number + 0.1) / TRIES, min((number + 1) / TRIES, 0.9)))
        assert resize(used(disk) + room).returncode == 0
        assert forked_commands.run(recovery.RUN, place) == 2, f"{room} bytes of {needed}"
        resize("64m")
        said = forked_commands.output(place)
        assert "Traceback" not in said
        assert len([line for line in said.splitlines() if line.startswith("equipoise: ")]) <= 1
        assert not list(place.rglob("*.part"))
        for checkpoint in checkpoint_folders(place / "run"):
            assert is_complete(checkpoint)
            check_whole(checkpoint)
        recovery.finished(place)
        assert recovery.outcome(place) == expected, f"{room} bytes of {needed}"
