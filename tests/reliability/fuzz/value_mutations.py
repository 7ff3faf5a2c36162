"""A value of mappings, lists and scalars, changed in its structure."""

import copy
import math
import random
from collections.abc import Callable
from typing import Any

TRAPS = (
    "", " ", "\n", "\0", "a\nb", "\x1b[31m", "\ud800", "\udcff", "\u2028", "\u202eabc", "\u0130", "é" * 40, "👩‍👩‍👧",
    "nan", "inf", "1e3", "1e999", "0x10", "1_000", "no", "null", "~", "true", "2024-99-99", "12:30", "-", "--help",
    "=", "*a",
    "{prompt}", "{0.__class__}", "{", "%s", "%n", "${HOME}", "$(id)", "`id`", "<script>alert(1)</script>", "../x",
    "../../x",
    "/", ".", "..", "~", "~nouser/x", "~/x", "/dev/null", "/dev/full", "/proc/none/x", "/proc/self/mem", "C:\\x",
    "x" * 300,
    "x" * 5000, "a/" * 2000, "os:system", "json:loads", "math:", ":x", "a:b:c", "data:", "data:x.jsonl",
    "data:/dev/zero",
    "http://localhost:1/x", "s3://x/y", "owner/name", "owner/name:configuration", "__class__", "?", "a?b", "a?b=",
    "a?b=1&b=2",
    "1*a + 2*b", "nan*ladder", "ladder", "ladder + ladder", "-1*ladder", "reasoning_gym:chain_sum?min_terms=-1",
)  # fmt: skip
"""Texts that mean something to somebody."""

NUMBERS = (
    0, 1, -1, 2, 3, 7, 100, -100, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63),
    -(2**63) - 1, 2**64,
    10**18, 10**30, 10**400, 0.0, -0.0, 0.5, 1.5, -0.5, 1e-8, 5e-324, 1e308, -1e308, math.inf, -math.inf, math.nan,
)  # fmt: skip
"""Bounds, and what lies beyond them."""

ODD = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": ""},
    {"a": {"b": {"c": 1}}},
    [1, "a", None],
    [0.1] * 5,
    ["x"] * 200,
)


def hostile(rng: random.Random) -> Any:
    """A value that hardly any place expects."""
    chosen = rng.randrange(10)
    if chosen < 4:
        return rng.choice(NUMBERS)
    if chosen < 7:
        return rng.choice(TRAPS)
    if chosen < 9:
        return copy.deepcopy(rng.choice(ODD))
    return nested(rng)


def nested(rng: random.Random) -> Any:
    """A list or mapping that is very deep, or very long."""
    if rng.random() < 0.3:
        return list(range(rng.choice((1000, 100000))))
    value: Any = 1
    for _ in range(rng.choice((5, 60, 400))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def near(rng: random.Random, value: Any) -> Any:
    """A value like the one that was there: another sign, scale, type or case."""
    if isinstance(value, bool):
        return rng.choice((not value, str(value), int(value), None))
    if isinstance(value, int | float):
        return rng.choice((-value, value + 1, value * 1000, value / 3, str(value), [value], f"{value}x", bool(value)))
    if isinstance(value, str):
        cut = rng.randrange(len(value) + 1)
        trap = rng.choice(TRAPS)
        return rng.choice(
            (
                value[:cut],
                value.upper(),
                value + "x",
                value[:cut] + trap + value[cut:],
                [value],
                {value: value},
                value * 50,
            )
        )
    return rng.choice((str(value), [value], None, {"a": value}))


def mutated(rng: random.Random, value: Any, keys: tuple[str, ...] = ()) -> Any:
    """A copy of the value after one to three mutations.

    Args:
        rng: what is drawn is drawn from it.
        value: of mappings, lists and scalars.
        keys: names that an added key may have, beside odd ones.
    """
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.choice(_places(changed))
        if place is None:
            if rng.random() < 0.2:
                return hostile(rng)
            continue
        holder, key = place
        rng.choice(_KINDS)(rng, holder, key, keys)
    return changed


def _places(value: Any) -> list:
    """Every (holder, key) in it; None stands for the value itself."""
    found: list = [None]
    waiting = [value] if isinstance(value, dict | list) else []
    while waiting:
        holder = waiting.pop()
        items = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder[:20]))
        for key, item in items:
            found.append((holder, key))
            if isinstance(item, dict | list):
                waiting.append(item)
    return found


def _replace(rng: random.Random, holder: Any, key: Any, keys: tuple[str, ...]) -> None:
    holder[key] = hostile(rng)


def _alter(rng: random.Random, holder: Any, key: Any, keys: tuple[str, ...]) -> None:
    holder[key] = near(rng, holder[key])


def _remove(rng: random.Random, holder: Any, key: Any, keys: tuple[str, ...]) -> None:
    del holder[key]


def _rename(rng: random.Random, holder: Any, key: Any, keys: tuple[str, ...]) -> None:
    if isinstance(holder, dict):
        name = str(key)
        place = rng.randrange(len(name) + 1)
        new = rng.choice(
            (name[:place] + "x" + name[place:], name[:place], name.upper(), name.replace("_", "-"), 7, 1.5, True)
        )
        holder[new] = holder.pop(key)


def _add(rng: random.Random, holder: Any, key: Any, keys: tuple[str, ...]) -> None:
    value = hostile(rng)
    if isinstance(holder, dict):
        holder[rng.choice(keys) if keys and rng.random() < 0.8 else str(rng.choice(TRAPS))] = value
    else:
        holder.insert(rng.randrange(len(holder) + 1), value)


def _double(rng: random.Random, holder: Any, key: Any, keys: tuple[str, ...]) -> None:
    if isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[f"{key} "] = copy.deepcopy(holder[key])


def _wrap(rng: random.Random, holder: Any, key: Any, keys: tuple[str, ...]) -> None:
    holder[key] = rng.choice(([holder[key]], {str(key): holder[key]}, [holder[key]] * 3))


def _swap(rng: random.Random, holder: Any, key: Any, keys: tuple[str, ...]) -> None:
    other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    holder[key], holder[other] = holder[other], holder[key]


_KINDS: tuple[Callable, ...] = (
    _replace,
    _replace,
    _replace,
    _alter,
    _alter,
    _remove,
    _rename,
    _add,
    _add,
    _double,
    _wrap,
    _swap,
)
