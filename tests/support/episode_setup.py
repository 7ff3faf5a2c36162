"""A trainer whose model says what a script says: episodes of known turns, with real statistics of a small model."""

import torch
from datasets import Dataset
from trainer_setup import config
from transformers import LlamaConfig, LlamaForCausalLM

from equipoise.models.warm_starts.calculator import EOS_TOKEN, calculator_tokenizer
from equipoise.tasks.environments import EpisodeLimits, guarded
from equipoise.tasks.environments.calculator import Calculator, CalculatorReward
from equipoise.trl import EquipoiseTrainer

LIMITS = EpisodeLimits(max_steps=4, step_seconds=5)
WORDS = calculator_tokenizer().get_vocab()


def sums(count: int = 8) -> Dataset:
    """Sums of three numbers; the calculator has to be asked twice."""
    rows = [(f"{10 + n} + {n} - 3 =", str(7 + 2 * n)) for n in range(count)]
    return Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": text}] for text, _ in rows], "answer": [answer for _, answer in rows]}
    )


def model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=WORDS["<pad>"], eos_token_id=WORDS[EOS_TOKEN],
        bos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(settings).float()


class Scripted(EquipoiseTrainer):
    """Says the next turn of its script; every second completion ends with another number."""

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs):
        names = {number: word for word, number in WORDS.items()}
        turns = [self.script([names[i] for i in ids], number) for number, ids in enumerate(prompt_ids)]
        return [[WORDS[word] for word in [*turn.split(), EOS_TOKEN]] for turn in turns], None

    @staticmethod
    def script(words: list[str], number: int) -> str:
        """What is said after these words."""
        text = " ".join(words[words.index("<user>") + 1 :])
        question, _, rest = text.partition("= <assistant>")
        first, sign, second, next_sign, third = question.split()
        results = [part.split()[0] for part in rest.split("<tool>")[1:]]
        if not results:
            return f"<call> {first} {sign} {second} </call>"
        if len(results) == 1:
            return f"<call> {results[0]} {next_sign} {third} </call>"
        return results[1] if number % 2 else "99"


def episode_trainer(
    folder, *, environment=Calculator, reward=None, limits=LIMITS, kind=Scripted, dataset=None, **settings
):
    """A trainer of 8 episodes per update, 4 per prompt."""
    defaults = {"max_completion_length": 40, "max_tool_calling_iterations": 4, "max_steps": 2}
    return kind(
        model=model(),
        reward_funcs=CalculatorReward(0.5) if reward is None else reward,
        args=config(folder, **(defaults | settings)),
        train_dataset=sums() if dataset is None else dataset,
        processing_class=calculator_tokenizer(),
        environment_factory=guarded(environment, limits),
    )
