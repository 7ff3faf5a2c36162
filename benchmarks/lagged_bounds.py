"""How far the bounds that `bapo_scope: lagged` uses are from those that the update itself would have had.

    OMP_NUM_THREADS=1 python benchmarks/lagged_bounds.py

12 successive updates of balanced clipping, as it is by default, steered with both scopes at once on the same tokens;
the first update is not counted, for nothing is behind it. Either the ratios are noise, or a model of 30,000 parameters
is trained, under `lagged`, on answers that it sampled before the first update (that of recipes/verl/cpu, its reward the
share of digits). Writes results/lagged_bounds.md.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from equipoise import token_statistics
from equipoise.objectives import ppo_clip
from equipoise.settings.steering import SteeringSettings
from equipoise.steering import MicroBatch, Steering
from equipoise.types import ClipBounds, PolicyBatch, TokenStatistics

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipes" / "verl" / "cpu"))

RESULTS = Path(__file__).parent / "results" / "lagged_bounds.md"
UPDATES, ANSWER = 12, 128
RATE = 1e-3
"""Learning rate of a policy that is trained."""
SPREAD = 0.05
"""Standard deviation of log pi - log mu after one update; it grows by as much with each."""


def noisy(count, new, grows, seed):
    """(exact, lagged) bounds of each update, whose ratios are noise."""
    scopes = both_scopes()
    for number in range(UPDATES):
        draw = torch.Generator().manual_seed(1000 * seed + (number if new else 0))
        advantage = normalised(torch.randn(count, generator=draw))
        noise = torch.randn(count, ANSWER, generator=draw)
        spread = SPREAD * (number + 1) if grows else 0.3
        old = torch.full_like(noise, -3.0)
        # Of what was sampled, the ratios' mean is 1.
        yield steered(scopes, old + spread * noise - spread**2 / 2, old, advantage, number)[1]


def trained(count, new, model, seed):
    """The same of a policy that moves."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE)
    scopes = both_scopes()
    batches = [sampled(policy, count) for _ in range(UPDATES if new else 1)]
    for number in range(UPDATES):
        ids, old, advantage = batches[number % len(batches)]
        own = token_statistics(policy(ids).logits[:, -ANSWER - 1 : -1], ids[:, -ANSWER:])
        bounds, both = steered(scopes, own.logprob.detach(), old, advantage, number)
        given = PolicyBatch(advantage.expand_as(old), old, torch.ones_like(old, dtype=torch.bool))
        optimizer.zero_grad()
        ppo_clip(own, given, bounds=bounds).loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        yield both


def sampled(policy, count):
    """Sequences, the log-probs of their answers, advantages; eight answers to each prompt of five tokens."""
    prompts = torch.randint(3, 41, (count // 8, 5)).repeat_interleave(8, 0)
    with torch.no_grad():
        ids = policy.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, max_new_tokens=ANSWER,
            min_new_tokens=ANSWER,
        )  # fmt: skip
        old = token_statistics(policy(ids).logits[:, -ANSWER - 1 : -1], ids[:, -ANSWER:]).logprob
    digits = (ids[:, -ANSWER:] >= 3) & (ids[:, -ANSWER:] < 13)
    return ids, old, normalised(digits.float().mean(1))


def normalised(rewards):
    """Advantages [sequences, 1] of groups of eight."""
    groups = rewards.view(-1, 8)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)).reshape(-1, 1)


def both_scopes():
    return [
        Steering(SteeringSettings(clipping="balanced", bapo_scope=scope), fixed_bounds=None)
        for scope in ("update", "lagged")
    ]


def steered(scopes, logprob, old, advantage, number):
    """Bounds in force of the last of several steerings that see the same update; numbers of all [scopes, 2]."""
    mask = torch.ones_like(old, dtype=torch.bool)
    batch = MicroBatch.of(
        TokenStatistics(logprob, *torch.zeros(3, *old.shape)), old_logprob=old, advantage=advantage, action_mask=mask,
        loss_mask=mask, staleness=mask.long(),
    )  # fmt: skip
    found = []
    for steering in scopes:
        update = steering.open(number, moved=True, several=False)
        steering.steer(update, batch)
        values = steering.close(update, progress=0.0)
        found.append([values["bounds_low"], values["bounds_high"]])
    return ClipBounds(*found[-1]), torch.tensor(found)


SITUATIONS = {
    "noise that grows, the same sequences": (noisy, {"new": False, "grows": True}),
    "noise that grows, new sequences": (noisy, {"new": True, "grows": True}),
    "constant noise of 0.3, new sequences": (noisy, {"new": True, "grows": False}),
    "trained, the same sequences": (trained, {"new": False}),
    "trained, new sequences": (trained, {"new": True}),
}


def row(name, count, model, seeds):
    function, keys = SITUATIONS[name]
    keys = keys | ({"model": model} if function is trained else {})
    runs = [torch.stack(list(function(count, seed=seed, **keys)))[1:] for seed in range(seeds)]
    exact, lagged = torch.cat(runs).unbind(1)
    distance = (exact - lagged).abs()
    equal = 100 * (distance < 1e-6).all(1).double().mean()
    differences = [f"{side.mean():.3f} / {side.max():.2f}" for side in distance.unbind(1)]
    ends = [f"{side.min():.2f}–{side.max():.2f}" for side in exact.unbind(1)]
    return f"| {name} | {ANSWER * count:,} | {', '.join(ends)} | {' | '.join(differences)} | {equal:.0f}% |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--sequences", type=int, nargs="+", default=[16, 128], help="per update; default: 16 128")
    options = parser.parse_args()
    import toy_task

    rows = []
    with tempfile.TemporaryDirectory() as place:
        model = toy_task.write_model(Path(place))
        for count in options.sequences:
            for name in SITUATIONS:
                rows.append(row(name, count, model, options.seeds))
                print(rows[-1], flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout
    lines = [
        "# Bounds of `bapo_scope: lagged` against those of `update`",
        "    OMP_NUM_THREADS=1 python benchmarks/lagged_bounds.py",
        f"Updates 2 to {UPDATES} of {options.seeds} seeds, torch {torch.__version__}, commit {commit.strip()}. Noise: "
        f"normal log ratios, standard deviation {SPREAD} times the number of the update, or constant. Trained: AdamW, "
        f"learning rate {RATE}. The grid is the default one: 0.9 to 0.98 and 1.2 to 3.",
        "\n".join(
            [
                "| | tokens | exact bounds | lower: mean / largest difference | upper | both equal |",
                "|---|---|---|---|---|---|",
                *rows,
            ]
        ),
    ]
    RESULTS.write_text("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
