"""What equipoise costs an optimizer update in verl.

    OMP_NUM_THREADS=1 .venv-verl/bin/python benchmarks/verl_update.py     # make test-verl makes the environment

Time: one FSDP2 rank under a local Ray, as the tests start it, on a CPU, in float32. One worker process holds one model
and one optimizer; only the loss, and what stands around the engine, change between updates. Every round makes one
update of each variant, in an order that rotates, on the same sequences; the first round is not counted. Timed is verl's
`train_mini_batch` within the worker, without Ray. Two models: one whose vocabulary is large for its size, which makes
the statistics dear, and one with as many parameters per entry of the vocabulary as a model of 1.5 billion has.
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
    """A Qwen2 and the sequences of an update; prompt and answer have `half` tokens each."""

    layers: int
    width: int
    vocabulary: int
    sequences: int
    half: int = 64


SHAPES = {
    "vocabulary of 32,000": Shape(4, 256, vocabulary=32_000, sequences=8),
    "parameters per entry of the vocabulary as at 1.5 billion": Shape(4, 512, vocabulary=1_440, sequences=8),
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
    """Sequences without padding, with drawn rewards."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (count, prompt + answer), generator=draw)
    rewards = torch.randn(count, generator=draw)
    scores = torch.zeros(count, answer)
    scores[:, -1] = rewards
    return {
        "input_ids": ids,
        "prompts": ids[:, :prompt].clone(),
        "responses": ids[:, prompt:].clone(),
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(prompt + answer).expand_as(ids).clone(),
        "response_mask": torch.ones(count, answer, dtype=torch.long),
        "advantages": normalised(rewards).expand(count, answer).contiguous(),
        "rm_scores": scores,
    }


def normalised(rewards):
    """Advantages [sequences, 1] of groups of eight."""
    groups = rewards.view(-1, 8)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)).reshape(-1, 1)


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


def commit():
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout


def processor():
    names = [x.partition(":")[2].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def of_times(folder, options):
    sections = []
    for number, (name, shape) in enumerate(SHAPES.items()):
        if options.tiny:
            shape = Shape(2, 128, shape.vocabulary // 16, 8, 16)
        parameters, taken = measure(folder / str(number), shape, options.rounds)
        sections += [
            f"## Time of an update: {name}",
            f"Qwen2, {shape.layers} layers of width {shape.width}, vocabulary {shape.vocabulary:,}, "
            f"{parameters / 1e6:.1f} million parameters; {shape.sequences} sequences of {shape.half} + "
            f"{shape.half} tokens, in 4 micro-batches where nothing else is said; {options.rounds} rounds.",
            table_of_times(taken),
        ]
        print("\n\n".join(sections), flush=True)
    return sections


def loads():
    return ", ".join(f"{x:.1f}" for x in os.getloadavg())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="that are timed (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="models of a sixteenth, to try whether it runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    verl_setup.prepare()
    before = loads()
    with tempfile.TemporaryDirectory() as place, verl_setup.ray_cluster():
        sections = of_times(Path(place), options)
    lines = [
        "# What equipoise costs an update in verl",
        "    OMP_NUM_THREADS=1 .venv-verl/bin/python benchmarks/verl_update.py",
        f"{processor()}, one thread; load {before} at the start and {loads()} at the end (averages of 1, 5 and 15 "
        f"minutes, this run among them); verl {version('verl')}, torch {torch.__version__}, ray "
        f"{version('ray')}, transformers {version('transformers')}, Python {platform.python_version()}, commit "
        f"{commit().strip()}. One FSDP2 rank, float32, no padding. Medians; ratios of medians, in brackets the "
        "quartiles of the ratio within a round.",
        *sections,
    ]
    options.output.write_text("\n\n".join(lines) + "\n")
    print(options.output.read_text())


if __name__ == "__main__":
    main()
