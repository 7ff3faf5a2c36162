"""A YAML text with what YAML can do beyond values: anchors, tags, merge keys, documents, keys given twice."""

import random

BOMB = "".join(
    f"b{level}: &b{level} [{', '.join([f'*b{level - 1}'] * 9) if level else ', '.join(['x'] * 9)}]\n"
    for level in range(9)
)
SCALARS = (
    "!!int abc", "!!float abc", "!!bool abc", "!!timestamp abc", "!!null abc", "!!binary abc", "!!binary '===='",
    "!!set {a, b}",
    "!!omap [a: 1]", "!!omap abc", "!!pairs [a: 1]", "!!str 1", "!!seq abc", "!!map abc", "!!python/name:os.system",
    "!!python/object/apply:os.system [id]", "!unknown x", "!!merge x", "&a [*a]", "&a {a: *a}", "*nowhere",
    "2024-99-99",
    "2001-12-14t21:59:43.10-05:00", "190:20:30", ".inf", "-.inf", ".nan", "0x1F", "0o17", "0b11", "1_000", "+1",
    "9" * 5000,
    "0." + "1" * 5000, "1e99999", "?", "-", "|\n  x", ">-\n  x", "'a", '"a', '"\\x00"', '"\\ud800"', '"\\U00110000"',
    "[", "{", "{a, b",
    "[" * 200 + "]" * 200, "[" * 20000, "{a: " * 300, "- " * 3000 + "x", "yes", "on", "Null", "~", "{? [a]: b}",
    "{[1]: 2}",
    "{{a: 1}: 2}", "{1: 2, 1: 3}", "{true: 1, 1: 2}", "@x", "`x", "%x", "x # y", "a: b: c", "\t x", "\u2028", "\x7f",
    "=", "<<",
)  # fmt: skip
LINES = (
    BOMB, "--- \n", "...\n", "---\na: 1\n---\nb: 2\n", "%YAML 9.9\n---\n", "%TAG ! x\n---\n", "? [a, b]\n: 1\n",
    "? {a: 1}\n: 1\n", "? \n", ": 1\n", "<<: {seed: 1}\n",
    "<<: [{seed: 1}, {seed: 2}]\n", "<<: 1\n", "<<: [1]\n", "a: &a {<<: *a}\n", "<<: &m {<<: *m}\n", "\tseed: 1\n",
    "  seed: 1\n", "- seed\n", "seed\n",
    "seed: 1\nseed: 2\n", "null: 1\n", "1: 2\n", "1.5: 2\n", "true: 1\n", "~: 1\n", "'': 1\n", "2024-01-01: 1\n",
    "!!binary aGk=: 1\n",
    "? !!python/tuple [1]\n: 1\n", "x" * 20000 + ": 1\n", "a: " + "[" * 3000 + "\n", "a: " + "{a: " * 3000 + "\n",
    "".join(f"k{i}: {i}\n" for i in range(3000)),
    "\ufeff\n", "\x01\n", "# \x00\n", "=: 1\n", "a: |\n" + "  x\n" * 5000,
)  # fmt: skip


def mutated(rng: random.Random, text: str) -> str:
    """The text after one or two mutations of its lines."""
    lines = text.splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 2))):
        number = rng.randrange(len(lines) + 1)
        chosen = rng.randrange(6)
        if chosen < 2:
            lines.insert(number, rng.choice(LINES))
        elif chosen < 5 and lines:
            number = rng.choice([n for n, line in enumerate(lines) if ":" in line] or [0])
            key, _, _ = lines[number].partition(":")
            lines[number] = f"{key}: {rng.choice(SCALARS)}\n"
        elif lines:
            number = rng.randrange(len(lines))
            lines[number] = rng.choice((lines[number] * 2, " " + lines[number], lines[number].replace(":", "", 1), ""))
    return "".join(lines)
