"""Completions from vLLM, for evaluation: the interface of `Sampler`.

vLLM returns log-probs of single tokens, not the entropy of their distribution, so that entropy is not measured with it.
"""

import functools
import io
import random
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from equipoise.errors import InputError
from equipoise.models.sampling import Completion
from equipoise.progress import SamplingBar


class FinishedTold(tqdm):
    """In the place of vLLM's own bar: draws nothing, and tells of the completions that have ended.

    Args:
        told: is told of so many more.
        args: of tqdm, as are `settings`.
    """

    def __init__(self, told: Callable[[int], Any], *args: Any, **settings: Any) -> None:
        self.told = told
        super().__init__(*args, **(settings | {"file": io.StringIO()}))

    def update(self, n: float | None = 1) -> bool | None:
        """vLLM calls it with the completions of a request that has ended."""
        self.told(int(n or 0))
        return super().update(n)


class VllmSampler:
    """Completions of one model from vLLM's engine, in the order of their prompts.

    Args:
        engine: `vllm.LLM`, or what generates as it does.
        parameters: `vllm.SamplingParams`.
        tokenizer: of the model.
        max_new_tokens: longest completion.

    Attributes:
        watch: told of the completions of a batch that have ended, and of the tokens at its end; None: nobody is.
    """

    watch: SamplingBar | None = None

    def __init__(self, engine: Any, parameters: Callable[..., Any], tokenizer: Any, max_new_tokens: int) -> None:
        self.engine, self.parameters, self.tokenizer = engine, parameters, tokenizer
        self.max_new_tokens = max_new_tokens
        self.seed = 0

    def completions(
        self, prompt_ids: list[list[int]], temperature: float | None, done: Callable[[int], Any]
    ) -> list[Completion]:
        """One completion per prompt, greedy where the temperature is None; `done` is told how many there are.

        Raises:
            InputError: vLLM does not take a prompt, or cannot compute with the model.
        """
        # A seed of its own for each: with one seed the samples of a prompt would be one sample. And no row of seeds:
        # the next call, with the next seed, would have most of them again.
        draw = random.Random(self.seed)
        settings = [self._settings(temperature, draw.getrandbits(31)) for _ in prompt_ids]
        prompts = [{"prompt_token_ids": ids} for ids in prompt_ids]
        try:
            outputs = self.engine.generate(prompts, sampling_params=settings, use_tqdm=self._told())
        except Exception as error:  # prompts longer than the model's context, models that its kernels do not take
            raise InputError(f"vLLM cannot sample: {_one_line(error)}") from error
        completions = [self._completion(output.outputs[0]) for output in outputs]
        if self.watch is not None:
            self.watch.step(sum(len(completion.ids) for completion in completions), len(completions))
        done(len(prompt_ids))
        return completions

    def _told(self) -> Any:
        """What vLLM makes its bar of; False for none."""
        if self.watch is None:
            return False
        ended, step = 0, self.watch.step

        def told(count: int) -> None:
            nonlocal ended
            ended += count
            step(0, ended)

        return functools.partial(FinishedTold, told)

    def _settings(self, temperature: float | None, seed: int) -> Any:
        return self.parameters(
            n=1,
            temperature=0.0 if temperature is None else float(temperature),
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
            max_tokens=self.max_new_tokens,
            seed=seed,
        )

    def _completion(self, output: Any) -> Completion:
        ids = list(output.token_ids)
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return Completion(ids, text, output.finish_reason == "length")


def vllm_engine(model: str, *, seed: int) -> tuple[Any, Callable[..., Any]]:
    """vLLM's engine with a model, and its class of sampling parameters.

    Raises:
        InputError: vLLM is not installed, or cannot load the model.
    """
    try:
        from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("--backend vllm needs vLLM: pip install 'equipoise[vllm]'") from error
    try:
        return LLM(model=model, seed=seed, generation_config="vllm"), SamplingParams
    except Exception as error:  # vLLM raises nearly everything for a model or machine that does not do
        raise InputError(f"model {model} cannot be loaded by vLLM: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
