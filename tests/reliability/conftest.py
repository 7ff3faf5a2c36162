import forked_commands
import pytest
import recovery
from command_line import workplace  # noqa: F401  (a fixture)


@pytest.fixture
def whole(workplace, tmp_path_factory):  # noqa: F811
    """A user's directory with a run that nothing interrupted, what came out of it, and the changes that it made."""
    place = recovery.copied(workplace, tmp_path_factory.mktemp("whole") / "place")
    assert forked_commands.run(recovery.RUN, place) == 0, forked_commands.output(place)
    return place, recovery.outcome(place), forked_commands.changes(place)
