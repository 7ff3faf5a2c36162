"""TRL's own tests of its GRPO trainer, run on TRL's trainer and on ours: what passes there should pass here.

The tests are not in TRL's package: give a checkout of its repository (or its folder tests/).

    make test-trl TRL=../trl

Models, tokenizers and data that the tests would download are small ones made here, under the same names.
"""
