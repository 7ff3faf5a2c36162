"""Sampling for an evaluation: tokens per second with the shape of Qwen2.5-0.5B and random weights."""

import time

from on_a_gpu_parts import spread, step_shapes
from on_a_gpu_parts.measured_trainer import synchronize

LENGTH, SMALL_LENGTH, ROUNDS = 64, 8, 3


def measure(figures, plan) -> None:
    """Batches of two sizes, entropies noted as `equipoise evaluate` does."""
    from equipoise.models.sampling import Sampler

    shape = step_shapes.SMALL if plan.small else step_shapes.SHAPES["0.5b"]
    model, tokenizer = step_shapes.model(shape, plan.device).eval(), step_shapes.tokenizer(shape)
    length, prompt = SMALL_LENGTH if plan.small else LENGTH, list(range(2, 2 + shape.prompt))
    for batch in (2, 4) if plan.small else (16, 128):
        sampler, speeds = Sampler(model, tokenizer, length, batch, measures_entropy=True), []
        for number in range(ROUNDS + 1):
            if speeds and time.monotonic() > plan.end:
                figures.note("no time left for more rounds")
                return
            synchronize()
            start = time.perf_counter()
            answers = sampler.completions([prompt] * batch, 1.0, lambda done: None)
            synchronize()
            if number:
                speeds.append(sum(len(answer.ids) for answer in answers) / (time.perf_counter() - start))
        figures.add(batch=batch, new_tokens=length, tokens_per_second=spread.of(speeds, 1), rounds=len(speeds))
