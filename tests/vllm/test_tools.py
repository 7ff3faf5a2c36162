"""Tools and environments with vLLM itself: whose tokens count, and with which log-probs."""

import pytest
import torch
from bigram import bigram_model
from datasets import Dataset
from trainer_runs import own
from trainer_setup import config
from transformers import LlamaForCausalLM
from vllm_setup import COLOCATED, MEAN_ERROR

from equipoise.models.warm_starts.calculator import calculator_tokenizer
from equipoise.tasks.environments import EpisodeLimits, guarded
from equipoise.tasks.environments.calculator import Calculator, CalculatorReward
from equipoise.trl import EquipoiseTrainer

pytestmark = pytest.mark.filterwarnings("ignore::trl.import_utils.TRLExperimentalWarning")

WORDS = calculator_tokenizer().get_vocab()
CHANCES = {
    "<assistant>": {"<call>": 0.6, "12": 0.4},
    "<call>": {"5": 0.7, "7": 0.3},
    "5": {"+": 1.0},
    "+": {"7": 1.0},
    "7": {"</call>": 0.9, "+": 0.1},
    "12": {"<eos>": 0.8, "5": 0.2},
    "</call>": {"<eos>": 1.0},
}


def calculate(expression: str) -> str:
    """The result of one operation.

    Args:
        expression: two numbers with + or - between them.
    """
    return Calculator().calculate(expression)


def said_twelve(completions, **columns):
    return [float((messages[-1].get("content") or "").strip() == "12") for messages in completions]


AGENTS = {
    "environment": {
        "environment_factory": guarded(Calculator, EpisodeLimits(max_steps=3, step_seconds=30)),
        "reward_funcs": CalculatorReward(0.5),
    },
    "tools": {"tools": [calculate], "reward_funcs": said_twelve},
}


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A model that calls the calculator in most of its turns."""
    folder = tmp_path_factory.mktemp("talker")
    chances = {WORDS[last]: {WORDS[w]: c for w, c in following.items()} for last, following in CHANCES.items()}
    bigram_model(chances, len(WORDS), WORDS["<eos>"], WORDS["<pad>"]).save_pretrained(folder)
    calculator_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", AGENTS)
def test_episodes_of_several_turns(talker, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    batches = []

    class Kept(EquipoiseTrainer):
        def _generate_and_score_completions(self, inputs):
            batches.append(super()._generate_and_score_completions(inputs))
            return batches[-1]

    rows = [{"prompt": [{"role": "user", "content": f"{n} + {12 - n} ="}], "answer": "12"} for n in range(8)]
    settings = {"clipping": "balanced", "polarity": "papo", "papo_warmup_updates": 1, "num_iterations": 2}
    lengths = {"max_completion_length": 40, "max_tool_calling_iterations": 3, "vllm_max_model_length": 96}
    correction = {"vllm_importance_sampling_correction": True, "learning_rate": 1e-3, "max_steps": 4}
    subject = Kept(
        model=LlamaForCausalLM.from_pretrained(talker),
        args=config(tmp_path, **COLOCATED | settings | lengths | correction),
        train_dataset=Dataset.from_list(rows),
        processing_class=calculator_tokenizer(),
        **AGENTS[kind],
    )
    torch.manual_seed(3)
    subject.train()
    names = {number: word for word, number in WORDS.items()}
    turns = 0
    for batch in batches:
        mask = batch["completion_mask"].bool()
        for ids, theirs, m in zip(batch["completion_ids"], batch["tool_mask"], mask, strict=True):
            said = " ".join(names[i] for i in ids[theirs.bool() & m].tolist())
            seen = " ".join(names[i] for i in ids[~theirs.bool() & m].tolist())
            assert "<tool>" not in said
            turns += seen.count("<tool> 12")
    assert turns > 5
    entries = [own(entry) for entry in subject.state.log_history if "loss" in entry]
    assert max(entry["ratio_std"] for entry in entries) > 1e-3
    # Of the policy's own tokens alone: those of the environment have no log-prob of vLLM's.
    assert all(entry["engine_logprob_error"] < MEAN_ERROR for entry in entries)
    assert sum(batch["advantages"].abs().sum() for batch in batches) > 0
