"""An update on plain tensors: what a host knows of it, cut into micro-batches and carried out."""

import torch

from equipoise import ClipBounds, TokenStatistics, token_statistics
from equipoise.entropy_control.draw import row_identity
from equipoise.settings.steering import SteeringSettings
from equipoise.steering import MicroBatch, Steering

ROWS, TIME, VOCABULARY = 8, 6, 11
BOUNDS = ClipBounds(0.8, 1.2)
BALANCED = {"clipping": "balanced", "bapo_low": [0.6, 0.9], "bapo_target_share": 0.55}
PAPO = {"polarity": "papo", "papo_signal": "schedule", "papo_warmup_updates": 0}
WHOLE = ["clip_cov", "kl_cov", "clip_b", "stare"]
CONTROLS = ["steer", "surprisal", "ce_gppo"]


def rows(seed=0):
    """Everything a host knows of an update, one row per sequence."""
    g = torch.Generator().manual_seed(seed)
    statistics = token_statistics(
        3 * torch.randn(ROWS, TIME, VOCABULARY, generator=g), torch.randint(VOCABULARY, (ROWS, TIME), generator=g)
    )
    mask = torch.arange(TIME) < torch.tensor([6, 5, 4, 3, 2, 1, 6, 3])[:, None]
    ids = torch.randint(VOCABULARY, (ROWS, TIME), generator=g)
    return {
        "statistics": statistics,
        "old_logprob": torch.where(mask, statistics.logprob - 0.5 * torch.randn(ROWS, TIME, generator=g), torch.nan),
        "advantage": torch.tensor([1.5, -0.5, 0.0, -1.0, 0.8, -0.8, 0.3, -1.2]),
        "action_mask": mask,
        "loss_mask": mask & (torch.rand(ROWS, TIME, generator=g) > 0.2),
        "staleness": torch.full((ROWS, TIME), 3),
        "row": row_identity(ids, mask.long(), ids, mask.long()),
    }


def micro_batches(known, num_parts, **options):
    size = ROWS // num_parts
    parts = []
    for begin in range(0, ROWS, size):
        part = {name: value[begin : begin + size] for name, value in known.items() if name != "statistics"}
        statistics = TokenStatistics(*(x[begin : begin + size] for x in known["statistics"]))
        parts.append(MicroBatch.of(statistics, **part, **options))
    return parts


def steering(ranks=None, **keys):
    settings = SteeringSettings(**keys)
    return Steering(settings, fixed_bounds=BOUNDS, ranks=ranks, learning_rate=0.1)


def carried_out(subject, batches):
    """What the losses read, and the scalars."""
    update = subject.open(0, moved=True, several=len(batches) > 1)
    if update.needs_preview:
        subject.preview(update, batches)
    steered = [subject.steer(update, batch) for batch in batches]
    return steered, subject.close(update, progress=0.0)
