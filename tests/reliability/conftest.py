import pytest
from command_line import workplace  # noqa: F401  (a fixture)
from hostile import Trace


@pytest.fixture
def trace(workplace):  # noqa: F811
    return Trace(workplace)
