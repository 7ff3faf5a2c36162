import math

import pytest

from equipoise.errors import InputError, name_shown, require


def test_a_value_within_its_range_passes():
    require("share", 0.5, "in (0, 1)", True)


@pytest.mark.parametrize("value", [0.0, math.nan, "a"])
def test_a_value_outside_its_range_is_named_with_its_rule(value):
    with pytest.raises(ValueError, match="must be") as refused:
        require("share", value, "in (0, 1)", False)
    assert not isinstance(refused.value, InputError)
    assert all(part in str(refused.value) for part in ("share", "in (0, 1)", repr(value)))


def test_the_command_line_can_be_given_an_error_of_its_own():
    with pytest.raises(InputError):
        require("share", 2, "in (0, 1)", False, error=InputError)


def test_a_message_is_bounded_and_can_be_printed_whatever_was_given():
    text = str(InputError(f"config {'x' * 100_000}: key must be a number, got 'a\x1b[2J\x00'"))
    assert len(text) < 1100
    assert text.startswith("config xxx")
    assert text.endswith(r"key must be a number, got 'a\x1b[2J\x00'")
    assert str(InputError("é 数\n→")) == "é 数\n→"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("seed", "seed"), ("seed\n", "seed\\n"), ("a b", "a b"), ("\x1b[2J", "\\x1b[2J"), ("", ""), ("it's\t", "it's\\t")],
)
def test_a_name_is_shown_as_it_was_typed(name, shown):
    assert name_shown(name) == shown


def test_a_long_name_is_cut():
    assert len(name_shown("x" * 5000)) == 80
    assert name_shown("x" * 80) == "x" * 80
