"""The loss types of TRL, by what they do with the ratio."""

CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""TRL's loss types that clip the ratio from both sides. The others cap, smooth or drop it in ways of their own."""

LOSSES = (*CLIPPED_LOSSES, "cispo", "sapo", "vespo")
