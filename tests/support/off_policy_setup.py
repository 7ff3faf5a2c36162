"""An independent witness of off-policy training: what every policy was, and what it would have given its tokens."""

import torch
from torch.distributed.tensor import DTensor
from trainer_setup import prompts, trainer
from transformers import LlamaForCausalLM

from equipoise.trl import EquipoiseTrainer

# 4 groups of 4 per rollout batch, in 4 micro-batches of 4, two of them an update: the policy moves twice per rollout.
SETTINGS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "clipping": "balanced",
    "temperature": 0.8,
    "max_steps": 10,
}
REPLAY = {"replay_fraction": 0.5, "replay_max_age": 6}
PARTIAL = {"rollout_token_budget": 3}


def logprobs(model, batch, temperature) -> torch.Tensor:
    """Log-prob of every completion token by a plain forward pass in float64."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits.double() / temperature
    width = batch["completion_ids"].shape[1]
    chosen = batch["completion_ids"][..., None]
    return logits[:, -width - 1 : -1].log_softmax(-1).gather(-1, chosen).squeeze(-1)


def whole_weights(model) -> dict[str, torch.Tensor]:
    """Of a model that may be sharded; asked for by all processes."""
    return {name: whole(parameter) for name, parameter in model.named_parameters()}


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter of which FSDP2 or DeepSpeed may have left a part here."""
    if isinstance(parameter, DTensor):
        return parameter.detach().full_tensor()
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().clone()
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameter):
        return parameter.detach().clone()


class Witness(EquipoiseTrainer):
    """Keeps a copy of the policy at every rollout, every rollout batch, and every micro-batch as it was measured."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.policies: dict[int, torch.nn.Module] = {}
        self.batches: list[tuple[int, dict]] = []
        self.measured: list[tuple[int, dict, torch.Tensor]] = []
        self.sampled: list[int] = []
        self.started_with: list[int] = []

    def _generate_and_score_completions(self, inputs):
        self.policies[self.state.global_step] = self._copy()
        batch = super()._generate_and_score_completions(inputs)
        self.batches.append((self.state.global_step, dict(batch)))
        return batch

    def _copy(self):
        """The policy without TRL's and our changes to its forward pass."""
        with torch.random.fork_rng():  # a run that is watched is the same run
            plain = LlamaForCausalLM(self.model.config)
        plain.load_state_dict(whole_weights(self.model))
        return plain.eval()

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        self.sampled.append(len(prompt_ids))
        return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    def _micro_batch(self, inputs, statistics):
        measured = super()._micro_batch(inputs, statistics)
        current = logprobs(self._copy(), inputs, self.temperature)
        expected = (current - self.behavior(inputs)).exp()
        self.measured.append((self.state.global_step, dict(inputs), (measured.ratio, expected)))
        return measured

    def behavior(self, batch) -> torch.Tensor:
        """What the policies that are said to have sampled the tokens gave them, recomputed."""
        truth = torch.full(batch["completion_ids"].shape, float("nan"), dtype=torch.float64)
        for version in batch["policy_version"].unique().tolist():
            if version >= 0:
                of_version = batch["policy_version"] == version
                truth[of_version] = logprobs(self.policies[version], batch, self.temperature)[of_version]
        return truth


def witness(folder, **settings) -> Witness:
    dataset = settings.pop("dataset", None) or prompts(16)
    return trainer(folder, trainer_class=Witness, dataset=dataset, **(SETTINGS | settings))
