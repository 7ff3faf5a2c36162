"""A rollout backend of verl for CPUs, `actor_rollout_ref.rollout.name=cpu`: a model of transformers in one Ray actor.

What vLLM or SGLang does for verl on GPUs: the trainer sends it weights after every step, and it answers prompts, with
the log-prob of each token and the version of the weights that chose it. Loaded by
`actor_rollout_ref.model.external_lib`.

Answers repeat: they follow from the seed, the version of the weights, the prompt, and how many answers to that prompt
these weights have given. A run that was killed and continues samples what it would have sampled. For that all replicas
share the one actor: which replica a request goes to is chance.
"""

import asyncio
import hashlib
from collections import Counter
from dataclasses import dataclass

import ray
import torch
import torch.distributed
from transformers import AutoModelForCausalLM
from verl.workers.rollout import base
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

ACTOR = "cpu_rollout"
NEUTRAL = {"top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
"""Ways of sampling that are not offered here, with the value that asks for nothing."""


def refuse(name: str, value: object, allowed: object) -> None:
    """Say what was asked for and what can be had."""
    raise ValueError(f"the rollout backend `cpu` has no {name}={value!r}: it takes {allowed!r}")


@dataclass(frozen=True)
class Sampling:
    """How one answer is sampled: its longest length in tokens, and whether log-probs are asked for."""

    temperature: float
    limit: int
    logprobs: bool

    @classmethod
    def of(cls, asked: dict, length: int, room: int) -> "Sampling":
        """What a request asks for; anything it cannot have is refused.

        Args:
            asked: The request's sampling parameters.
            length: The configured length of answers. [tokens]
            room: What the model's context leaves beside the prompt. [tokens]

        Raises:
            ValueError: A parameter has a value that is not offered, or is unknown; the prompt leaves no room.
        """
        if room < 1:
            raise ValueError(
                f"the prompt leaves no room for an answer: it is {1 - room} tokens too long for the context"
            )
        asked = dict(asked)
        for name, neutral in NEUTRAL.items():
            if (value := asked.pop(name, neutral)) != neutral:
                refuse(name, value, neutral)
        limit = asked.pop("max_tokens", asked.pop("max_new_tokens", length))
        sampling = cls(asked.pop("temperature", 1.0), min(limit, room), bool(asked.pop("logprobs", False)))
        for name, value in asked.items():
            refuse(name, value, None)
        return sampling


class Sampler:
    """The model, the version of its weights, and the answers that it gives.

    Args:
        path: A folder with a model in the format of transformers.
        seed: Of all answers.
        length: The longest answer, where a request names no length. [tokens]
        context: The longest prompt and answer together; None: the model's own. [tokens]
    """

    def __init__(self, path: str, seed: int, length: int, context: int | None):
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        ends = self.model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        self.seed, self.length = seed, length
        self.context = context or self.model.config.max_position_embeddings
        self.version: int | None = None
        self.asked: Counter[tuple[int, ...]] = Counter()
        self.open = asyncio.Event()
        self.open.set()

    async def load(self, state: dict[str, torch.Tensor], version: int | None) -> None:
        """New weights, of the trainer's step `version`."""
        self.model.load_state_dict(state, strict=True)
        self.version = version
        self.asked.clear()

    async def generate(
        self, request_id, prompt_ids, sampling_params, image_data=None, video_data=None, **more
    ) -> TokenOutput:
        """One answer, to its end token, its longest length, or until requests are aborted."""
        for name, value in {"image_data": image_data, "video_data": video_data, **more}.items():
            if value is not None:
                refuse(name, value, None)
        await self.open.wait()
        prompt = tuple(int(token) for token in prompt_ids)
        sampling = Sampling.of(sampling_params, self.length, self.context - len(prompt))
        version, draw = self.version, self.generator(prompt)
        tokens, logprobs = [], []
        async for token, logprob in self.answer(prompt, sampling, draw):
            tokens.append(token)
            logprobs.append(logprob)
        ended = len(tokens) >= sampling.limit or (tokens and tokens[-1] in self.ends)
        return TokenOutput(
            token_ids=tokens,
            log_probs=logprobs if sampling.logprobs else None,
            stop_reason="completed" if ended else "aborted",
            extra_fields={"global_steps": version},
        )

    def generator(self, prompt: tuple[int, ...]) -> torch.Generator:
        """The random numbers of the next answer to this prompt."""
        what = repr((self.seed, self.version, prompt, self.asked[prompt])).encode()
        self.asked[prompt] += 1
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(what).digest()[:8], "big"))

    async def answer(self, prompt: tuple[int, ...], sampling: Sampling, draw: torch.Generator):
        """Tokens with their log-probs at the temperature; greedy ones, at temperature 0, with those at 1."""
        last, cache = torch.tensor([prompt]), None
        for _ in range(sampling.limit):
            with torch.no_grad():
                output = self.model(last, past_key_values=cache, use_cache=True)
            logits, cache = output.logits[0, -1], output.past_key_values
            logprob = (logits / (sampling.temperature or 1.0)).log_softmax(-1)
            token = torch.multinomial(logprob.exp(), 1, generator=draw) if sampling.temperature else logprob.argmax(-1)
            yield int(token), float(logprob[token])
            if int(token) in self.ends:
                return
            last = token.reshape(1, 1)
            await asyncio.sleep(0)  # others' turn, and a chance to be aborted
            if not self.open.is_set():
                return

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Answers end where they are; requests wait until generation is resumed."""
        self.open.clear()

    async def resume_generation(self) -> None:
        """Requests are answered again."""
        self.open.set()

    async def nothing(self, *arguments, **more) -> None:
        """For what a GPU's memory needs."""

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = nothing


class CPUReplica(RolloutReplica):
    """What the trainer's side knows of a server: here, the shared actor under a name of its own."""

    async def launch_servers(self) -> None:
        """Start the actor, or take the one that is there."""
        rollout = self.config
        for name, neutral in (NEUTRAL | {"ignore_eos": False}).items():
            if getattr(rollout, name) != neutral:  # here, and not when answers are asked for: verl would go on without
                refuse(name, getattr(rollout, name), neutral)
        server = (
            ray.remote(Sampler)
            .options(name=ACTOR, get_if_exists=True, num_cpus=0, max_concurrency=self.max_concurrency)
            .remote(self.model_config.path, rollout.seed, rollout.response_length, rollout.max_model_len)
        )
        self.servers, self._server_handle = [server], server
        self._server_address = f"{ACTOR}_{self.replica_rank}"


class CPURollout(BaseRollout):
    """What a training rank knows of a server: where to send weights."""

    async def resume(self, tags: list[str]) -> None:
        """Nothing was released."""

    async def release(self) -> None:
        """Nothing to release."""

    async def update_weights(self, weights, wire_format="named_tensors", global_steps=None, **more) -> None:
        """Send whole weights; all ranks gather them, the first sends.

        Raises:
            ValueError: The weights come as something else than whole tensors by name.
        """
        if wire_format != "named_tensors":
            refuse("wire_format", wire_format, "named_tensors")
        if more.get("peft_config") is not None:
            refuse("peft_config", more["peft_config"], "lora.merge=True")
        state = {name: tensor.detach().float().cpu().clone() for name, tensor in weights}
        if torch.distributed.get_rank() == 0:
            await ray.get_actor(ACTOR).load.remote(state, global_steps)
        await asyncio.to_thread(torch.distributed.barrier)  # no rank goes on before


base._ROLLOUT_REGISTRY["cpu", "async"] = f"{__name__}.{CPURollout.__name__}"
RolloutReplicaRegistry.register("cpu", lambda: CPUReplica)
