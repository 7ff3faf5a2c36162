import torch

from equipoise.splitmix import STEP, signed, splitmix64


def test_outputs_are_those_of_the_published_generator():
    """The first outputs of the authors' code for the seed 0."""
    states = torch.tensor([signed(k * STEP) for k in range(3)])
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert splitmix64(states).tolist() == [signed(x) for x in outputs]


def test_signed_keeps_the_lowest_64_bits():
    for number in (0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1, -(1 << 63), 5 * STEP, -7 * STEP):
        assert signed(number) % (1 << 64) == number % (1 << 64)
        assert -(1 << 63) <= signed(number) < 1 << 63
