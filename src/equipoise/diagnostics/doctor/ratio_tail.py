"""The check of what a run logged of its ratios beyond their median: a few tokens that outweigh all others."""

import numpy as np

from equipoise.diagnostics.doctor.finding import Finding, not_checked, ok, warning, wrong
from equipoise.diagnostics.doctor.run_evidence import MIN_UPDATES, RunEvidence

SPOILED, SPOILED_WARNING, SPOILED_WRONG = 0.5, 0.05, 0.2
"""Share of the tokens that an update is worth, (sum rho)^2 / (n sum rho^2), below which a few tokens weigh as much as
all others together (the ratio's deviation is above its mean); and in what share of the updates on stale data that is
too often. The quick start at 8 updates per rollout batch is below it in under 3% of them."""

LOST, LOST_WARNING = 0.1, 0.02
"""The same where nine tenths of the batch are lost (a deviation of 3 means). In a long healthy run it is one update in
some 500; in a short one, one is worth a word."""

TAIL = 0.1
"""Mean share of the tokens with a ratio outside [0.5, 2]. Healthy runs at 16 updates per rollout batch have up to 0.044
(docs/studies/staleness)."""


def check_ratio_tail(run: RunEvidence) -> Finding:
    """Few tokens with ratios far above all others, which a median over updates, or over tokens, does not show.

    A median step may be small while the ratio's deviation is above 4 in single updates: there, the loss is that of a
    handful of tokens. What is judged is the share of the tokens that the weighted batch of an update is worth
    (`SPOILED`, `LOST`), and how many tokens lie outside [0.5, 2] (`TAIL`).
    """
    name = "tail of the ratios"
    keys = ("staleness", "ratio_std", "effective_sample_fraction", "ratio_tail_fraction")
    rows = run.together(*(f"equipoise/{key}" for key in keys))
    stale = rows[(rows[:, 0] > 0) & np.isfinite(rows).all(axis=1)]
    if len(stale) < MIN_UPDATES:
        return not_checked(name, f"{len(stale)} updates on stale data; {MIN_UPDATES} are needed")
    worth, deviation, tail = stale[:, 2], float(stale[:, 1].max()), float(stale[:, 3].mean())
    spoiled, lost = float((worth < SPOILED).mean()), float((worth < LOST).mean())
    evidence = (
        f"the ratio's deviation goes up to {deviation:.3g}, where the batch is worth {worth.min():.0%} of its tokens; "
        f"that is below {SPOILED:.0%} in {spoiled:.1%} of {len(stale)} updates on stale data; {tail:.1%} of the tokens "
        "are outside [0.5, 2]"
    )
    if spoiled <= SPOILED_WARNING and lost <= LOST_WARNING and tail <= TAIL:
        return ok(name, evidence)
    report = wrong if spoiled > SPOILED_WRONG else warning
    return report(
        name, evidence,
        "In such an update a handful of tokens is most of the loss. With a negative advantage no upper bound clips "
        "them: their gradient grows with the ratio.",
        "Lower learning_rate or max_grad_norm, take fewer updates per rollout batch, or set delta, the bound on ratios "
        "with a negative advantage; where single updates stand out, look at their tokens (record_tokens: 1).",
    )  # fmt: skip
