"""A file's bytes, damaged."""

import random

TOKENS = (
    b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\r", b"\r\n",
    b"\x85",
    b"\xe2\x80\xa8", b"\x1b[2J", b"\t", b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b": ", b"\n", b"- ",
    b"---\n", b"...\n",
    b"#", b"&a ", b"*a", b"<<: ", b"!!python/object/apply:os.system ", b"null", b"NaN", b"Infinity", b"-1", b"1e999",
    b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"\\u0000", b"\\ud800", b"PAR1", b"{}\n", b"[]\n", b"0\n", b"x" * 70000,
)  # fmt: skip
"""What parsers stumble over."""


def flip(rng: random.Random, data: bytearray, other: bytes) -> None:
    for _ in range(rng.choice((1, 1, 4, 32))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(rng: random.Random, data: bytearray, other: bytes) -> None:
    begin, end = _span(rng, data)
    data[begin:end] = rng.choice((bytes(end - begin), b"\xff" * (end - begin), rng.randbytes(end - begin)))


def cut(rng: random.Random, data: bytearray, other: bytes) -> None:
    begin, end = _span(rng, data)
    del data[begin:end]


def cut_end(rng: random.Random, data: bytearray, other: bytes) -> None:
    del data[rng.randrange(len(data)) :]


def insert(rng: random.Random, data: bytearray, other: bytes) -> None:
    place = rng.choice((0, len(data), rng.randrange(len(data) + 1)))
    data[place:place] = rng.choice(TOKENS)


def duplicate(rng: random.Random, data: bytearray, other: bytes) -> None:
    begin, end = _span(rng, data)
    data[end:end] = data[begin:end] * rng.choice((1, 1, 50))


def duplicate_line(rng: random.Random, data: bytearray, other: bytes) -> None:
    lines = data.splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    data[:] = b"".join(lines)


def drop_line(rng: random.Random, data: bytearray, other: bytes) -> None:
    lines = data.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    data[:] = b"".join(lines)


def splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    begin = rng.randrange(len(other) + 1)
    data[rng.randrange(len(data)) :] = other[begin:]


def replace(rng: random.Random, data: bytearray, other: bytes) -> None:
    data[:] = other


def empty(rng: random.Random, data: bytearray, other: bytes) -> None:
    data[:] = rng.choice((b"", b"\n", b" ", b"\0" * 64, b"\xef\xbb\xbf", b"null", b"[]", b"{}", b"0"))


def reencode(rng: random.Random, data: bytearray, other: bytes) -> None:
    encoding = rng.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig", "utf-7"))
    data[:] = data.decode("utf-8", "replace").encode(encoding, "replace")


def line_ends(rng: random.Random, data: bytearray, other: bytes) -> None:
    data[:] = data.replace(b"\n", rng.choice((b"\r", b"\r\n", b"\n\n", b"", b"\xc2\x85", b"\n\0")))


MUTATIONS = (
    flip, flip, overwrite, cut, cut_end, insert, insert, insert, duplicate, duplicate_line, drop_line, splice, replace,
    empty, reencode, line_ends,
)  # fmt: skip


def damaged(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """The bytes after one to four mutations.

    Args:
        rng: what is drawn is drawn from it.
        data: of a file.
        other: of another file, to splice with.
    """
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if changed:
            rng.choice(MUTATIONS)(rng, changed, other)
    return bytes(changed)


def _span(rng: random.Random, data: bytearray) -> tuple[int, int]:
    begin = rng.randrange(len(data))
    return begin, min(len(data), begin + rng.choice((1, 4, 40, len(data))))
