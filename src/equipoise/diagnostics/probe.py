"""Predicted against realised entropy change: what a probe's tokens say, as numbers. `equipoise probe` measures them.

Source of the prediction: entropy polarity (arXiv 2605.11775; docs/mathematics.md). It is tabular: the change at the
token's own state, as if no parameter were shared. The realised change has all of it, so the two are compared token by
token, in deciles and over batches, beside the exact first-order value <grad H, delta theta>.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import spearmanr

from equipoise.polarity import balance_authority

NUM_DECILES = 10
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class ProbeTokens:
    """Every sampled token of a probe, [tokens] each; entropies and changes in nats.

    Attributes:
        batch: number of the batch, each with a step of its own from the same weights.
        prompt: number of the prompt within all batches.
        sample: number of the completion within its prompt.
        position: in the completion, from 0.
        token_id: of the sampled token.
        logprob: of the sampled token, before the step.
        entropy: of its state, before the step.
        threshold: p*(s), the probability under which a token of this state expands.
        advantage: A of the completion.
        polarity: A T.
        realised: entropy of the state after the step, less before.
    """

    batch: Int[np.ndarray, " tokens"]
    prompt: Int[np.ndarray, " tokens"]
    sample: Int[np.ndarray, " tokens"]
    position: Int[np.ndarray, " tokens"]
    token_id: Int[np.ndarray, " tokens"]
    logprob: Float[np.ndarray, " tokens"]
    entropy: Float[np.ndarray, " tokens"]
    threshold: Float[np.ndarray, " tokens"]
    advantage: Float[np.ndarray, " tokens"]
    polarity: Float[np.ndarray, " tokens"]
    realised: Float[np.ndarray, " tokens"]

    @classmethod
    def concatenated(cls, parts: "list[ProbeTokens]") -> "ProbeTokens":
        """All tokens of several batches."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


def token_agreement(tokens: ProbeTokens) -> dict[str, Any]:
    """Correlations between polarity and realised change over tokens with an advantage, and the share of equal signs.

    A share of equal signs is only worth what exceeds `sign_base_rate`: what the more frequent sign of the realised
    change would get by itself.
    """
    used = tokens.polarity != 0
    polarity, realised = tokens.polarity[used], tokens.realised[used]
    if len(polarity) < 3 or np.ptp(polarity) == 0 or np.ptp(realised) == 0:
        return {
            "tokens": len(polarity),
            "pearson": None,
            "spearman": None,
            "sign_agreement": None,
            "sign_base_rate": None,
        }
    rising = float((realised > 0).mean())
    ranks: Any = spearmanr(polarity, realised)
    return {
        "tokens": len(polarity),
        "pearson": float(np.corrcoef(polarity, realised)[0, 1]),
        "spearman": float(ranks.statistic),
        "sign_agreement": float((np.sign(polarity) == np.sign(realised)).mean()),
        "sign_base_rate": max(rising, 1 - rising),
    }


def deciles(tokens: ProbeTokens, *, level: float = 0.95, seed: int = 0) -> list[dict[str, float]]:
    """Mean polarity and mean realised change of tokens in ten equal groups by polarity, with intervals.

    Tokens of one prompt share contexts, so the interval is a bootstrap over prompts, not over tokens.

    Args:
        tokens: of the probe; tokens without advantage are left out.
        level: probability the intervals are to cover, in (0, 1).
        seed: of the resampling.

    Returns:
        For each decile, in ascending order: tokens, polarity, realised, low, high (nats). Empty with too few tokens.
    """
    used = np.flatnonzero(tokens.polarity != 0)
    if len(used) < NUM_DECILES:
        return []
    order = used[np.argsort(tokens.polarity[used], kind="stable")]
    prompts, cluster = np.unique(tokens.prompt[order], return_inverse=True)
    decile = np.arange(len(order)) * NUM_DECILES // len(order)
    counts, sums = np.zeros((2, len(prompts), NUM_DECILES))
    np.add.at(counts, (cluster, decile), 1)
    np.add.at(sums, (cluster, decile), tokens.realised[order])
    draws = np.random.default_rng(seed).multinomial(
        len(prompts), np.full(len(prompts), 1 / len(prompts)), NUM_RESAMPLES
    )
    with np.errstate(invalid="ignore"):  # a resample may miss a decile
        means = (draws @ sums) / (draws @ counts)
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [
        {
            "tokens": int((decile == d).sum()),
            "polarity": float(tokens.polarity[order][decile == d].mean()),
            "realised": float(tokens.realised[order][decile == d].mean()),
            "low": float(low[d]),
            "high": float(high[d]),
        }
        for d in range(NUM_DECILES)
    ]


def decile_correlation(groups: list[dict[str, float]]) -> float | None:
    """Pearson correlation of mean polarity and mean realised change over the deciles."""
    if len(groups) < 3:
        return None
    value = float(np.corrcoef([g["polarity"] for g in groups], [g["realised"] for g in groups])[0, 1])
    return value if math.isfinite(value) else None


def flows(tokens: ProbeTokens) -> dict[str, float | None]:
    """Expanding and contracting flow per token, and b* (`balance_authority`); None where nothing flows."""
    expanding = float(tokens.polarity.clip(min=0).mean())
    contracting = float((-tokens.polarity).clip(min=0).mean())
    return {
        "expanding_flow": expanding,
        "contracting_flow": contracting,
        "balance_authority": balance_authority(expanding, contracting) if expanding + contracting else None,
    }


def vocabulary_flows(tokens: ProbeTokens, num_tokens: int) -> dict[str, list[dict[str, float]]]:
    """The tokens of the vocabulary that expand and that contract most: sums of polarity over their occurrences."""
    ids, inverse, counts = np.unique(tokens.token_id, return_inverse=True, return_counts=True)
    polarity = np.bincount(inverse, weights=tokens.polarity)
    realised = np.bincount(inverse, weights=tokens.realised)
    order = np.argsort(polarity, kind="stable")

    def entries(places: np.ndarray) -> list[dict[str, float]]:
        return [
            {
                "token_id": int(ids[i]),
                "occurrences": int(counts[i]),
                "polarity": float(polarity[i]),
                "realised": float(realised[i]),
            }
            for i in places
        ]

    expanding = [i for i in order[::-1][:num_tokens] if polarity[i] > 0]
    contracting = [i for i in order[:num_tokens] if polarity[i] < 0]
    return {"expanding": entries(np.array(expanding, int)), "contracting": entries(np.array(contracting, int))}


def first_order_remainder(realised: list[float], first_order: list[float]) -> float:
    """sum |realised - first order| / sum |first order| over batches: how far the step is from where first order holds.

    Over all batches together: in a single one the first order may be near zero by chance.
    """
    total = sum(map(abs, first_order))
    return sum(abs(r - f) for r, f in zip(realised, first_order, strict=True)) / total if total else math.inf
