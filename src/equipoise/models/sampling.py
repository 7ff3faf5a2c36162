"""Sampling completions from a model as it is, and scoring them: what evaluation and the probe share."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from datasets import Dataset
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer
from transformers.generation.streamers import BaseStreamer

from equipoise.errors import InputError
from equipoise.models.evaluation_ranks import EvaluationRanks
from equipoise.progress import SamplingBar
from equipoise.tasks.task import AnswerReader, RewardFunction

LEAST_SHARED = 16
"""Tokens of a prompt from which on its samples share what is computed of it; before, one more call costs more."""


class Completion(NamedTuple):
    """One generated completion.

    Attributes:
        ids: tokens up to and including the end of sequence.
        text: decoded, without special tokens.
        truncated: there was no end of sequence.
        entropy: of the distributions its tokens were sampled from, nats, their mean; None: not measured.
    """

    ids: list[int]
    text: str
    truncated: bool
    entropy: float | None = None


class EntropyRecorder(LogitsProcessor):
    """Changes nothing, and notes the entropy, nats, of softmax(scores / temperature) at every step: [batch] each."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are."""
        logprob = (scores.float() / self.temperature).log_softmax(-1)
        self.steps.append(-torch.xlogy(logprob.exp(), logprob.exp()).sum(-1))
        return scores


class RowNoise(LogitsProcessor):
    """Makes of greedy generation sampling in which each row has randomness of its own, whatever else is in the batch.

    The largest of scores / temperature + Gumbel noise is a sample of softmax(scores / temperature).

    Args:
        seeds: of the rows.
        temperature: > 0.
        device: of the scores.
    """

    def __init__(self, seeds: list[int], temperature: float, device: torch.device) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores with noise, [batch, vocabulary].

        Raises:
            RuntimeError: NaN or +inf among the scores, which torch's own sampling refuses as well.
        """
        if scores.isnan().any() or scores.isposinf().any():
            raise RuntimeError("the logits of the model hold NaN or infinity: nothing can be sampled from them")
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self.temperature - noise.log()


class StepsTold(BaseStreamer):
    """Changes nothing, and tells a bar of every step of a batch: of its tokens, and of how much of it is done.

    Args:
        bar: that is told.
        rows: of the batch.
        most: tokens of a completion.
        eos_ids: tokens that end one.
    """

    def __init__(self, bar: SamplingBar, rows: int, most: int, eos_ids: list[int]) -> None:
        self.bar, self.most, self.eos_ids = bar, most, frozenset(eos_ids)
        self.running, self.steps = set(range(rows)), -1

    def put(self, value: Tensor) -> None:
        """First the prompts, which count for nothing; then the next token of each row, [rows]."""
        self.steps += 1
        if self.steps == 0:
            return
        tokens, rows = value.tolist(), len(value)
        sampled = len(self.running)
        self.running = {row for row in self.running if tokens[row] not in self.eos_ids}
        self.bar.step(sampled, rows - len(self.running) + len(self.running) * self.steps / self.most)

    def end(self) -> None:
        """Whoever asked for the completions says that they are done."""


class Sampler:
    """Batches of completions of one model, in the order of their prompts.

    Args:
        model: a transformers model, on its device.
        tokenizer: of the model.
        max_new_tokens: longest completion.
        batch_size: sequences at once.
        measures_entropy: note the entropy of sampled (not of greedy) completions.
        ranks: that sample at the same time; where they have to generate in step, all have to ask for completions.

    Attributes:
        watch: told of every step within a batch; None: nobody is.
    """

    watch: SamplingBar | None = None

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        batch_size: int,
        *,
        measures_entropy: bool = False,
        ranks: EvaluationRanks | None = None,
    ) -> None:
        self.ranks = ranks or EvaluationRanks()
        self.model, self.tokenizer, self.measures_entropy = model, tokenizer, measures_entropy
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.eos_ids = _eos_ids(model, tokenizer)
        # A tokenizer without a padding token can pad with any: the attention mask hides it.
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_ids[0]

    def completions(
        self,
        prompt_ids: list[list[int]],
        temperature: float | None,
        done: Callable[[int], Any],
        seeds: list[int] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, greedy where the temperature is None; `done` is told the size of each batch.

        Args:
            prompt_ids: encoded prompts.
            temperature: of sampling.
            done: see above.
            seeds: of each completion, which then follows from its prompt and seed alone; None: torch's generator.
        """
        # Prompts of like length share a batch, the longest first: memory runs out at once or not at all.
        order = sorted(range(len(prompt_ids)), key=lambda index: -len(prompt_ids[index]))
        completions: dict[int, Completion] = {}
        batches = [order[begin : begin + self.batch_size] for begin in range(0, len(order), self.batch_size)]
        # Where the model is sharded, this rank is needed by the one that has most to do.
        most = max(self.ranks.gather(len(batches))) if self.ranks.in_step else len(batches)
        for batch in batches:
            own_seeds = None if seeds is None else [seeds[index] for index in batch]
            generated, entropies = self._generate([prompt_ids[index] for index in batch], temperature, own_seeds)
            completions.update(zip(batch, map(self._completion, generated, entropies), strict=True))
            done(len(batch))
        self.watch, watch = None, self.watch
        for _ in range(most - len(batches)):
            self._generate([[cast(int, self.pad_id)]], temperature, None if seeds is None else [0])
        self.watch = watch
        return [completions[index] for index in range(len(prompt_ids))]

    def _generate(
        self, prompt_ids: list[list[int]], temperature: float | None, seeds: list[int] | None
    ) -> tuple[list[list[int]], list]:
        """Token ids after the prompts, which are padded on the left; rows end in padding where they stopped early.

        And for each row the entropies of its steps, or None.
        """
        padded, mask = self._padded(prompt_ids)
        device, length = self.model.device, padded.shape[1]
        recorder = EntropyRecorder(temperature) if self.measures_entropy and temperature is not None else None
        processors = [] if recorder is None else [recorder]
        if seeds is not None and temperature is not None:
            processors, temperature = [*processors, RowNoise(seeds, temperature, device)], None
        extra: dict[str, Any] = {"logits_processor": LogitsProcessorList(processors)} if processors else {}
        if (cache := self._shared_prefixes(prompt_ids)) is not None:
            extra["past_key_values"] = cache
        if self.watch is not None:
            extra["streamer"] = StepsTold(self.watch, len(prompt_ids), self.max_new_tokens, self.eos_ids)
        output = self.model.generate(
            input_ids=padded.to(device),
            attention_mask=mask.to(device),
            generation_config=self._config(temperature),
            **extra,
        )
        rows = output[:, length:].tolist()
        return rows, [None] * len(rows) if recorder is None else torch.stack(recorder.steps, dim=1).tolist()

    def _padded(self, prompt_ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Prompts padded on the left, and their mask: [prompts, length of the longest]."""
        length = max(map(len, prompt_ids))
        padded = torch.tensor([[self.pad_id] * (length - len(ids)) + ids for ids in prompt_ids])
        return padded, torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompt_ids])

    def _shared_prefixes(self, prompt_ids: list[list[int]]) -> DynamicCache | None:
        """Keys and values of all prompt tokens but the last, which the samples of one prompt have in common.

        Computed once for each different prompt. None where that would not pay, where the model keeps something else
        (a window, a state), takes no positions (ALiBi) or has virtual tokens before the prompt, or is sharded.
        """
        places: dict[tuple[int, ...], int] = {}
        rows = [places.setdefault(tuple(ids), len(places)) for ids in prompt_ids]
        if self.ranks.in_step or 2 * len(places) > len(rows) or max(map(len, places)) <= LEAST_SHARED:
            return None
        decoder = self.model.get_decoder()
        virtual = getattr(getattr(self.model, "active_peft_config", None), "is_prompt_learning", False)
        if virtual or "position_ids" not in inspect.signature(decoder.forward).parameters:
            return None
        cache = DynamicCache(config=self.model.config.get_text_config())
        if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return None
        padded, mask = (tensor[:, :-1].to(self.model.device) for tensor in self._padded([list(ids) for ids in places]))
        with torch.no_grad():
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            decoder(padded, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        cache.batch_select_indices(torch.tensor(rows, device=self.model.device))
        return cache

    def _config(self, temperature: float | None) -> GenerationConfig:
        # Whatever is left out here is taken from the model's own generation config, so the neutral values are explicit.
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature is not None:
            sampling = {"do_sample": True, "temperature": float(temperature), "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        return GenerationConfig(
            **sampling,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=self.eos_ids,
            pad_token_id=self.pad_id,
            use_cache=True,
            disable_compile=True,
        )

    def _completion(self, ids: list[int], entropies: list[float] | None) -> Completion:
        end = next((position for position, token in enumerate(ids) if token in self.eos_ids), None)
        kept = ids if end is None else ids[: end + 1]
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True))
        entropy = None if entropies is None else sum(entropies[: len(kept)]) / max(len(kept), 1)
        return Completion(kept, text, end is None, entropy)


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a completion: the tokenizer's and those of the model's generation config, as in TRL."""
    configured = model.generation_config.eos_token_id
    ids = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.insert(0, tokenizer.eos_token_id)
    if not ids:
        raise InputError("evaluation needs an end of sequence, and neither the tokenizer nor the model has one")
    return ids


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Every module in evaluation mode, and each back in its own afterwards: frozen parts may have been in it before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def rewards_of(
    reward: RewardFunction, dataset: Dataset, completions: list[Completion], repeats: int
) -> list[float | None]:
    """The rewards of all completions, `repeats` per row of the data set, from one call with the keywords TRL uses."""
    if not completions:
        return []
    returned = reward(**_reward_keywords(dataset, completions, repeats))
    return [None if value is None else float(value) for value in returned]


def given_answers_of(
    reward: RewardFunction, dataset: Dataset, completions: list[Completion], repeats: int
) -> list[str | None]:
    """The answers that all completions give, `repeats` per row of the data set; None where the reward reads none."""
    if not completions or not isinstance(reward, AnswerReader):
        return [None] * len(completions)
    return list(reward.given_answers(**_reward_keywords(dataset, completions, repeats)))


def _reward_keywords(dataset: Dataset, completions: list[Completion], repeats: int) -> dict[str, Any]:
    columns = {name: [value for value in dataset[name] for _ in range(repeats)] for name in dataset.column_names}
    prompts = columns.pop("prompt")
    texts: list[Any] = [completion.text for completion in completions]
    if not isinstance(prompts[0], str):
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [completion.ids for completion in completions]
    logs = {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}
    return {"prompts": prompts, "completions": texts, "completion_ids": ids} | columns | logs


def _ignore(name: str, value: Any) -> None:
    """Takes what a reward function logs while it is trained with."""
