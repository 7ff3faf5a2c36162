"""What equipoise costs an optimizer update in verl, and how far the bounds of `lagged` are from the exact ones.

    OMP_NUM_THREADS=1 .venv-verl/bin/python benchmarks/verl_update.py     # make test-verl makes the environment

Time: one FSDP2 rank under a local Ray, as the tests start it, on a CPU, in float32. One worker process holds one model
and one optimizer; only the loss, and what stands around the engine, change between updates. Every round makes one
update of each variant, in an order that rotates, on the same sequences; the first round is not counted. Timed is verl's
`train_mini_batch` within the worker, without Ray. Two models: one whose vocabulary is large for its size, which makes
the statistics dear, and one with as many parameters per entry of the vocabulary as a model of 1.5 billion has.
Bounds: a model of some 30,000 parameters, 12 successive updates, old log-probs that are the policy's own moved by
normal noise, or a policy that is trained; several seeds.
Writes results/verl_update.md.
"""

import argparse
import functools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
import verl_setup  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "verl_update.md"


class Shape(NamedTuple):
    """A Qwen2 and the sequences of an update; both halves of a sequence are equally long."""

    layers: int
    width: int
    vocabulary: int
    sequences: int
    half: int = 128


SHAPES = {
    "vocabulary of 32,000": Shape(layers=4, width=256, vocabulary=32_000, sequences=8),
    "parameters per entry of the vocabulary as at 1.5 billion": Shape(layers=4, width=512, vocabulary=1_440, sequences=8),
}


class Variant(NamedTuple):
    """One kind of update.

    Attributes:
        keys: of equipoise; None for verl's vanilla loss.
        micro_batches: of the update.
        fresh: old log-probs were computed anew, and this is the first update with them: all ratios are 1.
    """

    keys: dict | None
    micro_batches: int = 4
    fresh: bool = False


BALANCED = {"clipping": "balanced"}
VARIANTS = {
    "verl's vanilla": Variant(None),
    "everything off: measured only": Variant({}),
    "PAPO, fixed bounds": Variant({"polarity": "papo"}),
    "balanced, ratios known to be 1 (no search)": Variant(BALANCED, fresh=True),
    "balanced, lagged": Variant(BALANCED | {"bapo_scope": "lagged"}),
    "balanced, data that moved (one more forward pass)": Variant(BALANCED),
    "balanced and PAPO, data that moved": Variant(BALANCED | {"polarity": "papo"}),
    "verl's vanilla, one micro-batch": Variant(None, 1),
    "everything off, one micro-batch": Variant({}, 1),
    "balanced, data that moved, one micro-batch (no more passes)": Variant(BALANCED, 1),
}

UPDATES = 12
SPREAD = 0.05
"""Standard deviation of log pi - log mu after one update; it grows by as much with each."""


def measured_worker():
    """verl's worker of an actor, with a loss that can be exchanged, and a clock around its updates."""
    import time

    from verl.single_controller.base.decorator import Dispatch, register
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine_workers import ActorRolloutRefWorker
    from verl.workers.utils.losses import ppo_loss

    class MeasuredWorker(ActorRolloutRefWorker):
        @register(dispatch_mode=Dispatch.ONE_TO_ALL)
        def init_model(self):
            super().init_model()
            self.variants, self.forward_passes = {}, 0
            self.actor.train_mini_batch = self._timed(self.actor.train_mini_batch)
            self.actor.engine.forward_step = self._counted(self.actor.engine.forward_step)

        def _timed(self, train):
            def timed(data):
                clock, processor, passes = time.perf_counter(), time.process_time(), self.forward_passes
                output = train(data)
                tu.get(output, "metrics").update(
                    seconds=time.perf_counter() - clock,
                    processor=time.process_time() - processor,
                    forward_passes=self.forward_passes - passes,
                )
                return output

            return timed

        def _counted(self, forward):
            def counted(*args, **kwargs):
                self.forward_passes += 1
                return forward(*args, **kwargs)

            return counted

        @register(dispatch_mode=Dispatch.ONE_TO_ALL)
        def add_variant(self, name, keys):
            """Make a variant, with fresh controllers, and use it; None: verl's vanilla loss."""
            import copy

            from equipoise.verl import EquipoiseLossConfig

            self._forget_variant()
            config = copy.copy(self.loss_fn.keywords["config"])
            if keys is not None:
                loss = EquipoiseLossConfig(loss_mode="equipoise", equipoise=keys)
                object.__setattr__(config, "policy_loss", loss)
            self.actor.set_loss_fn(functools.partial(ppo_loss, config=config))
            names = ("loss_fn", "updates", "versions", "steps", "samples", "ranks", "world_size_of_update")
            state = {name: vars(self.actor)[name] for name in names if name in vars(self.actor)}
            self.variants[name] = state, vars(self.actor.engine).get("forward_backward_batch")

        @register(dispatch_mode=Dispatch.ONE_TO_ALL)
        def use_variant(self, name):
            self._forget_variant()
            state, passes = self.variants[name]
            vars(self.actor).update(state)
            if passes is not None:
                self.actor.engine.forward_backward_batch = passes

        def _forget_variant(self):
            vars(self.actor).pop("updates", None)
            vars(self.actor.engine).pop("forward_backward_batch", None)

    return MeasuredWorker


def write_model(folder, shape):
    """A random Qwen2 of that shape, with the recipe's tokenizer, of which nothing is used here."""
    import toy_task
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    words = toy_task.tokenizer()
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=3 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 64,
        num_key_value_heads=shape.width // 128,
        max_position_embeddings=2 * shape.half,
        tie_word_embeddings=False,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        bos_token_id=None,
        initializer_range=0.05,
    )
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder, model.num_parameters()


def sequences(vocabulary, count, prompt, answer, seed):
    """Sequences without padding; advantages as of groups of eight, their rewards normalised."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (count, prompt + answer), generator=draw)
    rewards = torch.randn(count // 8, 8, generator=draw)
    advantage = ((rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True)).reshape(count, 1)
    scores = torch.zeros(count, answer)
    scores[:, -1] = rewards.flatten()
    return {
        "input_ids": ids,
        "prompts": ids[:, :prompt].clone(),
        "responses": ids[:, prompt:].clone(),
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(prompt + answer).expand_as(ids).clone(),
        "response_mask": torch.ones(count, answer, dtype=torch.long),
        "advantages": advantage.expand(count, answer).contiguous(),
        "rm_scores": scores,
    }


def moved(rows, logprob, spread, seed):
    """The rows with old log-probs that are the engine's own, and that the policy has moved away from."""
    noise = torch.randn(logprob.shape, generator=torch.Generator().manual_seed(seed))
    old = logprob - spread * noise + spread**2 / 2  # so that the ratios' mean is 1, as it is of what was sampled
    return rows | {"old_log_probs": old, "rollout_log_probs": old.clone()}


def micro_batches(count, parts):
    return {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": count // parts, "use_remove_padding": False}


def first(metrics, name):
    value = metrics[name]
    while isinstance(value, list):
        value = value[0]
    return float(value)


def measure(folder, shape, rounds):
    """Of each variant, (seconds, processor, forward passes) of every counted round."""
    folder, parameters = write_model(folder, shape)
    rows = sequences(shape.vocabulary, shape.sequences, shape.half, shape.half, seed=0)
    logprob = verl_setup.log_probs(folder, rows)
    stale = moved(rows, logprob, 0.3, seed=1)
    fresh = rows | {"old_log_probs": logprob, "rollout_log_probs": logprob + 1e-4}
    taken = {name: [] for name in VARIANTS}
    optimizer = "actor_rollout_ref.actor.optim.lr=1e-6"
    with verl_setup.worker_group(folder, optimizer, worker_class=measured_worker()) as group:
        for name, variant in VARIANTS.items():
            group.add_variant(name, variant.keys)
        for number in range(rounds + 1):
            names = list(VARIANTS)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                variant = VARIANTS[name]
                group.use_variant(name)
                cut = micro_batches(shape.sequences, variant.micro_batches)
                metrics = verl_setup.update(group, fresh if variant.fresh else stale, **cut)
                if number:
                    taken[name].append([first(metrics, x) for x in ("seconds", "processor", "forward_passes")])
            print(f"round {number}: {', '.join(f'{x[-1][0]:.2f}' for x in taken.values() if x)} s", flush=True)
    return parameters, taken


def table_of_times(taken):
    lines = ["| update | passes | seconds | to vanilla | processor | to vanilla |", "|---|---|---|---|---|---|"]
    for name, variant in VARIANTS.items():
        base = next(x for x, v in VARIANTS.items() if v.keys is None and v.micro_batches == variant.micro_batches)
        (passes,) = {int(row[2]) for row in taken[name]}
        cells = [f"{passes}"]
        for column in (0, 1):
            ours, theirs = ([row[column] for row in taken[x]] for x in (name, base))
            ratio = statistics.median(ours) / statistics.median(theirs)
            low, _, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
            cells += [f"{statistics.median(ours):.2f} s", f"{ratio:.3f} ({low:.3f}–{high:.3f})"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bounds(group, name, batches, cut):
    """Lower and upper bound in force in each update, one per batch. [updates, 2]"""
    group.add_variant(name, {"update": BALANCED, "lagged": BALANCED | {"bapo_scope": "lagged"}}[name])
    found = []
    for batch in batches:
        metrics = verl_setup.update(group, batch, **cut)
        found.append([first(metrics, f"equipoise/bounds_{side}") for side in ("low", "high")])
    return torch.tensor(found)


NOISE = {
    "the same sequences, noise that grows": (False, True),
    "new sequences each, noise that grows": (True, True),
    "new sequences each, constant noise of 0.3": (True, False),
}
TRAINED = {"trained, the same sequences again and again": 1, "trained, new sequences each": UPDATES + 1}


def noisy_batches(model, count, new, grows, seed):
    """One batch per update."""
    for number in range(UPDATES):
        own = 1000 * seed + (number if new else 0)
        rows = sequences(41, count, 5, 128, own)
        spread = SPREAD * (number + 1) if grows else 0.3
        yield moved(rows, verl_setup.log_probs(model, rows), spread, own)


def compare_noise(model, count, seeds):
    """(exact, lagged) bounds of the updates 2 to 12 of each seed, by name; weights stand still."""
    found, cut = {name: [] for name in NOISE}, micro_batches(count, 4)
    overrides = ("actor_rollout_ref.actor.optim.lr=0", "actor_rollout_ref.actor.optim.weight_decay=0")
    with verl_setup.worker_group(model, *overrides, worker_class=measured_worker()) as group:
        for name, (new, grows) in NOISE.items():
            for seed in range(seeds):
                batches = list(noisy_batches(model, count, new, grows, seed))
                exact, lagged = (bounds(group, scope, batches, cut)[1:] for scope in ("update", "lagged"))
                found[name].append((exact, lagged))
    return found


def compare_trained(model, count, seeds, rate, start):
    """The same of a policy that moves, under `lagged`: what an update would have had is what the next one gets."""
    found, spreads = {name: [] for name in TRAINED}, []
    with verl_setup.worker_group(
        model, f"actor_rollout_ref.actor.optim.lr={rate}", worker_class=measured_worker()
    ) as group:
        group.save_checkpoint(str(start), None, 0)
        for name, batches in TRAINED.items():
            for seed in range(seeds):
                group.load_checkpoint(str(start))
                group.add_variant("lagged", BALANCED | {"bapo_scope": "lagged"})
                rows = sequences(41, count * batches, 5, 128, seed)
                own = moved(rows, verl_setup.log_probs(model, rows), 0.0, seed)
                cut = micro_batches(count, 4) | {"mini_batch_size": count, "global_batch_size": count}
                metrics = verl_setup.update(group, own, epochs=(UPDATES + 1) // batches, **cut)
                sides = [metrics[f"equipoise/bounds_{side}"] for side in ("low", "high")]
                used = torch.tensor(sides).reshape(2, UPDATES + 1).T
                found[name].append((used[2:], used[1:-1]))
                spreads.append(torch.tensor(metrics["equipoise/ratio_std"]).flatten()[-1].item())
    return found, spreads


def lines_of_bounds(found, tokens):
    for name, runs in found.items():
        exact, lagged = (torch.cat(parts) for parts in zip(*runs, strict=True))
        distance = (exact - lagged).abs()
        equal = (distance < 1e-9).all(1).double().mean()
        cells = [f"{distance[:, side].mean():.3f} / {distance[:, side].max():.2f}" for side in (0, 1)]
        ends = f"{exact[:, 0].min():.2f}–{exact[:, 0].max():.2f}, {exact[:, 1].min():.2f}–{exact[:, 1].max():.2f}"
        yield f"| {name} | {tokens:,} | {ends} | {cells[0]} | {cells[1]} | {100 * equal:.0f}% |"


def table_of_bounds(folder, options):
    import toy_task

    model = toy_task.write_model(folder / "tiny")
    lines = [
        "| | tokens | exact bounds | lower: mean / largest difference | upper | equal |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    spreads = []
    for count in options.sequences:
        lines += lines_of_bounds(compare_noise(model, count, options.seeds), 128 * count)
        found, more = compare_trained(model, count, options.seeds, options.rate, folder / f"start-{count}")
        lines += lines_of_bounds(found, 128 * count)
        spreads += more
    return "\n".join(lines), spreads


def commit():
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout


def processor():
    names = [x.partition(":")[2].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def report(options):
    load = [f"{x:.1f}" for x in os.getloadavg()]
    sections = []
    with tempfile.TemporaryDirectory() as place, verl_setup.ray_cluster():
        for number, (name, shape) in enumerate(SHAPES.items() if options.rounds else ()):
            if options.tiny:
                shape = Shape(2, 128, shape.vocabulary // 16, 8, 16)
            parameters, taken = measure(Path(place) / str(number), shape, options.rounds)
            sections += [
                f"## Time of an update: {name}",
                f"Qwen2, {shape.layers} layers of width {shape.width}, vocabulary {shape.vocabulary:,}, "
                f"{parameters / 1e6:.1f} million parameters; {shape.sequences} sequences of {shape.half} + "
                f"{shape.half} tokens in 4 micro-batches where nothing else is said; {options.rounds} rounds.",
                table_of_times(taken),
            ]
        if options.seeds:
            table, spreads = table_of_bounds(Path(place), options)
            sections += [
                "## Bounds that `lagged` uses, against those that the update itself would have had",
                f"Updates 2 to {UPDATES} of {options.seeds} seeds. Noise: log ratios normal, standard deviation "
                f"{SPREAD} times the number of the update, or constant. Trained: AdamW, learning rate {options.rate}, "
                f"ratio_std of the last update {min(spreads):.2f} to {max(spreads):.2f}.",
                table,
            ]
    now = [f"{x:.1f}" for x in os.getloadavg()]
    return load, now, sections


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="that are timed; 0: no times (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="of the bounds; 0: no bounds (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the bounds (default: %(default)s)")
    parser.add_argument(
        "--sequences", type=int, nargs="+", default=[16, 128], help="per update, of the bounds (default: %(default)s)"
    )
    parser.add_argument("--tiny", action="store_true", help="models of a sixteenth, to try whether it runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    verl_setup.prepare()
    load, now, sections = report(options)
    lines = [
        "# What equipoise costs an update in verl",
        "    OMP_NUM_THREADS=1 .venv-verl/bin/python benchmarks/verl_update.py",
        f"{processor()}, one thread; load {', '.join(load)} at the start and {', '.join(now)} at the end (averages of "
        f"1, 5 and 15 minutes, this run among them); verl {version('verl')}, torch {torch.__version__}, ray "
        f"{version('ray')}, transformers {version('transformers')}, Python {platform.python_version()}, commit "
        f"{commit().strip()}. One FSDP2 rank, float32, no padding. Medians; ratios of medians, in brackets the "
        "quartiles of the ratio within a round.",
        *sections,
    ]
    options.output.write_text("\n\n".join(lines) + "\n")
    print(options.output.read_text())


if __name__ == "__main__":
    main()
