import forked_commands
import pytest
import recovery
from command_line import prepare, workplace  # noqa: F401  (a fixture)
from hostile import trace  # noqa: F401


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A user's directory with a run that nothing interrupted, what came out of it, and the changes that it made."""
    place = tmp_path_factory.mktemp("whole") / "place"
    place.mkdir()
    prepare(place)
    assert forked_commands.run(recovery.RUN, place) == 0, forked_commands.output(place)
    return place, recovery.outcome(place), forked_commands.changes(place)
