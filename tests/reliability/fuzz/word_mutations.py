"""The words of a command line, changed."""

import random
from collections.abc import Callable, Sequence

from fuzz.value_mutations import NUMBERS, TRAPS

LOOSE = (
    "--",
    "-",
    "---",
    "-x",
    "-o",
    "--=",
    "--=x",
    "=",
    "--help=1",
    "-h",
    "--version",
    "--no-json",
    "-1",
    "--1",
    "*",
    "\\",
    "--\n",
    "-ô",
    "@file",
)


def value(rng: random.Random) -> str:
    """A word that hardly any flag expects."""
    if rng.random() < 0.5:
        return str(rng.choice((*NUMBERS, "9" * 5000)))
    return rng.choice(TRAPS)


def _drop(rng: random.Random, words: list[str], flags: Sequence[str]) -> None:
    del words[rng.randrange(len(words))]


def _repeat(rng: random.Random, words: list[str], flags: Sequence[str]) -> None:
    begin = rng.randrange(len(words))
    words[begin:begin] = words[begin : begin + rng.choice((1, 2))] * rng.choice((1, 1, 3))


def _swap(rng: random.Random, words: list[str], flags: Sequence[str]) -> None:
    a, b = rng.randrange(len(words)), rng.randrange(len(words))
    words[a], words[b] = words[b], words[a]


def _misspell(rng: random.Random, words: list[str], flags: Sequence[str]) -> None:
    number = rng.randrange(len(words))
    word = words[number]
    place = rng.randrange(len(word) + 1)
    changes = (
        word[:place] + "x" + word[place:], word[:place], word.upper(), word.replace("_", "-"), word.replace("-", "_"),
        "-" + word, word.lstrip("-"), word + "=", word + "\n", " " + word, word[:place] + "\0" + word[place:],
    )  # fmt: skip
    words[number] = rng.choice(changes)


def _join(rng: random.Random, words: list[str], flags: Sequence[str]) -> None:
    places = [n for n, word in enumerate(words[:-1]) if word.startswith("--")]
    if places:
        number = rng.choice(places)
        words[number : number + 2] = [f"{words[number]}={words[number + 1]}"]


def _value(rng: random.Random, words: list[str], flags: Sequence[str]) -> None:
    words[rng.randrange(len(words))] = value(rng)


def _insert(rng: random.Random, words: list[str], flags: Sequence[str]) -> None:
    words.insert(rng.randrange(len(words) + 1), rng.choice(LOOSE) if rng.random() < 0.4 else value(rng))


def _flag(rng: random.Random, words: list[str], flags: Sequence[str]) -> None:
    given = [rng.choice(flags)] + [value(rng) for _ in range(rng.choice((0, 1, 1, 1, 2)))]
    words += ["=".join(given)] if rng.random() < 0.3 else given


def _many(rng: random.Random, words: list[str], flags: Sequence[str]) -> None:
    words += [rng.choice(("x", "--x", value(rng)))] * rng.choice((30, 3000))


MUTATIONS: tuple[Callable[[random.Random, list[str], Sequence[str]], None], ...] = (
    _drop, _repeat, _swap, _misspell, _misspell, _join, _value, _value, _insert, _flag, _flag, _flag, _many,
)  # fmt: skip


def mutated(rng: random.Random, words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The words after one to three mutations.

    Args:
        rng: what is drawn is drawn from it.
        words: of a command line, the command first, which is mostly kept.
        flags: those of all commands, to take some that do not belong there.
    """
    kept, rest = ([], list(words)) if rng.random() < 0.05 else ([words[0]], list(words[1:]))
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rest:
            rng.choice(MUTATIONS)(rng, rest, flags)
        else:
            rest.append(value(rng))
    return kept + rest
