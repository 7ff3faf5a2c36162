"""What the settings of a run make of the advantages of a micro-batch, by entropy polarity, and what PAPO logs."""

import math

from torch import Tensor

from equipoise.controllers import PolarityController
from equipoise.polarity import BranchWeights, branch_only, entropy_polarity, reweight_by_polarity
from equipoise.steering.update import MicroBatch, UpdateMeasures
from equipoise.trl.config import EquipoiseConfig


def advantage_by_polarity(config: EquipoiseConfig, weights: BranchWeights | None, batch: MicroBatch) -> Tensor:
    """A' [batch, time]: reweighted by PAPO, kept on one branch by the ablations, A itself when polarity is off."""
    if config.polarity == "off":
        return batch.advantage
    polarity, zone = entropy_polarity(batch.statistics, batch.advantage), config.papo_neutral_zone
    if config.polarity == "positive_only":
        return branch_only(batch.advantage, polarity, "positive", neutral_zone=zone)
    if config.polarity == "negative_only":
        return branch_only(batch.advantage, polarity, "negative", neutral_zone=zone)
    assert weights is not None, "PAPO without a controller"
    scale = config.papo_tanh_scale if config.papo_weight_form == "tanh" else None
    return reweight_by_polarity(batch.advantage, polarity, weights, neutral_zone=zone, tendency_scale=scale)


def observed(controller: PolarityController, measures: UpdateMeasures, progress: float) -> dict[str, float]:
    """Phase and weights that were in force in the update; those of the next follow from observing it, here.

    Args:
        controller: takes the update in.
        measures: of the finished update.
        progress: fraction of the run's updates that is now done, in [0, 1].
    """
    in_force = {"phase": controller.phase}
    in_force |= {f"weight_{name}": value for name, value in vars(controller.weights).items()}
    if measures.num_tokens:  # an update of truncated, masked completions says nothing about the entropy
        controller.observe(
            entropy=measures.entropy,
            expanding_flow=measures.expanding_flow,
            contracting_flow=measures.contracting_flow,
            expanding_positive_flow=measures.mean("expanding_positive_flow"),
            contracting_positive_flow=measures.mean("contracting_positive_flow"),
            progress=progress,
        )
    return in_force | {
        "reference_entropy": controller.reference_entropy or math.nan,
        "demanded_authority": controller.demanded_authority,
        "papo_saturated": float(controller.saturated),
    }
