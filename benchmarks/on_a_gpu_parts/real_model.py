"""A few updates of a real model on a chat task with the built-in reward for mathematics, as `equipoise train` does."""

import json
import random
import time

UPDATES, SMALL_UPDATES = 8, 2


def measure(figures, plan) -> None:
    """Seconds, tokens and reward of every update, from the log of the run."""
    if plan.real_model is None:
        figures.note("no model folder: give one with --model")
        return
    from equipoise.trl import run
    from equipoise.trl.keys import checked_keys

    start, folder = time.monotonic(), plan.folder / "run"
    run.train(checked_keys(keys(plan, folder), ""))
    figures.note(f"whole run, loading included: {time.monotonic() - start:.1f} s")
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "loss" in entry:
            figures.add(**{name: entry[name] for name in WANTED if name in entry})


WANTED = ("step_time", "reward", "entropy", "completions/mean_length", "num_tokens", "grad_norm",
          "equipoise/entropy", "equipoise/bounds_high")  # fmt: skip


def keys(plan, folder) -> dict:
    """Of a run on sums of two numbers, with everything on."""
    data, draw = plan.folder / "sums.jsonl", random.Random(0)
    pairs = [(draw.randint(1, 20), draw.randint(1, 20)) for _ in range(64)]
    rows = [{"prompt": f"What is {a} + {b}? Put the answer in \\boxed{{}}.", "answer": str(a + b)} for a, b in pairs]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    on_gpu = plan.device == "cuda"
    return {
        "model": str(plan.real_model), "task": f"data:{data}", "output_dir": str(folder), "chat": True,
        "per_device_train_batch_size": 32 if on_gpu else 8, "num_generations": 8 if on_gpu else 4,
        "steps_per_generation": 4, "max_completion_length": 64 if on_gpu else 8,
        "max_steps": SMALL_UPDATES if plan.small else UPDATES, "learning_rate": 1e-6, "logging_steps": 1,
        "clipping": "balanced", "polarity": "papo", "record_tokens": 1, "evaluate_every": 0, "use_cpu": not on_gpu,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
