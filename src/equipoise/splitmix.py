"""SplitMix64: a hash of 64-bit numbers whose output is uniform, for random choices that belong to a thing, not a place.

Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014. Numbers are signed, as
torch has no arithmetic on others; what wraps around is the same 64 bits.
"""

from jaxtyping import Int64
from torch import Tensor

STEP = 0x9E3779B97F4A7C15
"""2^64 / golden ratio, odd: the distance of two states of the generator."""


def splitmix64(x: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """The output of the generator at state x: one step on, then the finaliser."""
    x = x + signed(STEP)
    x = (x ^ _shifted(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def signed(number: int) -> int:
    """The signed number with the lowest 64 bits of a whole number."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _shifted(x: Int64[Tensor, "*shape"], by: int) -> Int64[Tensor, "*shape"]:
    """A logical shift to the right; torch's own keeps the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)
