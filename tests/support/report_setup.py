"""Run folders with metrics, settings and token records made by hand, for tests of the report."""

import json

import numpy as np

from equipoise.diagnostics.records import TokenRecorder

TEXTS = [
    "the",
    " cat",
    "</script><img src=x onerror=document.title=1>",
    "&amp;",
    " sat",
    "\n",
    "é",
    " <b>on</b>",
]
HOSTILE = TEXTS[2]


def make_run(folder, *, seed=0, updates=12, records=True, task="ladder", evaluations=True, length=6, **settings):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines = [
        {
            "update": u,
            "learning_rate": 1e-3,
            "equipoise/rollout_reward": 0.1 * u + seed,
            "equipoise/entropy": 1 / u,
            "equipoise/expanding_flow": 0.01,
            "equipoise/contracting_flow": 0.01 + 0.001 * u,
            "equipoise/balance_authority": 0.1,
            "equipoise/bounds_low": 0.8,
            "equipoise/bounds_high": 1.2,
        }
        for u in range(1, updates + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    estimate = {"mean": 0.3, "low": 0.2, "high": 0.4}
    if evaluations:
        rows = [{"update": u, "greedy": estimate, "pass_at": {"8": estimate}} for u in (0, updates)]
        (folder / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"task": task, "seed": seed, "output_dir": str(folder), "model": "base"} | settings
    (folder / "config.yaml").write_text(json.dumps(given))
    (folder / "resolved.yaml").write_text(json.dumps(given | {"adam_beta1": 0.9}))
    (folder / "environment.json").write_text(json.dumps({"seed": seed, "versions": {"torch": "2"}}))
    if records:
        with TokenRecorder(folder / "tokens", run=folder.name, decode=lambda ids: TEXTS[ids[0]]) as recorder:
            for update in (1, 2, updates):
                recorder.record(update=update, **micro_batch(rng, update, length))
    return folder


def micro_batch(rng, update, length=6):
    shape = (8, length)
    return {
        "token_id": rng.integers(0, len(TEXTS), shape),
        "sample": np.arange(8) + 8 * (update > 2),  # updates 1 and 2 use the same samples
        "group": np.arange(8) // 4 + 2 * (update > 2),
        "prompt": [f"question {i} <i>" for i in range(8)],
        "action_mask": np.ones(shape, bool),
        "logprob": -rng.exponential(1, shape),
        "behavior_logprob": -rng.exponential(1, shape),
        "ratio": np.exp(rng.normal(0, 0.3, shape)),
        "entropy": rng.exponential(0.5, shape),
        "tendency": rng.normal(0, 0.2, shape),
        "advantage": np.array([1.0, -1, 0, 2, -1, -1, 1, 1]),
        "reweighted_advantage": np.repeat(np.array([[1.5, -1, 0, 2, -1, -1, 1, 1]]), length, 0).T,
        "clipped_low": rng.random(shape) < 0.1,
        "clipped_high": np.zeros(shape, bool),
        "policy_version": np.full(8, max(update - 2, 0)),
        "reward": np.array([1.0, 0, 0, 1, 0, 0, 1, 1]),
    }
