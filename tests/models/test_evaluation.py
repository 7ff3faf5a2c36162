import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from terminal import Terminal
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from equipoise.diagnostics.estimators import bootstrap_interval, distinct_at_k
from equipoise.errors import InputError
from equipoise.models import evaluation as evaluation_module
from equipoise.models.evaluation import evaluate_policy
from equipoise.models.evaluation_ranks import EvaluationRanks
from equipoise.models.sampling import Sampler
from equipoise.models.warm_starts import ladder_tokenizer
from equipoise.progress import SamplingBar
from equipoise.tasks import ladder_reward, ladder_task


def small_model(tokenizer, seed=0, **settings):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        attention_dropout=0.1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.3,
        **settings,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def ladder():
    tokenizer = ladder_tokenizer()
    return small_model(tokenizer), tokenizer, ladder_task().held_out.select(range(10))


def has_a_two(prompts, completions, **columns):
    return [float("2" in text) for text in completions]


def evaluate(model, tokenizer, dataset, reward=has_a_two, **settings):
    defaults = {"num_samples": 6, "ks": (1, 3), "max_new_tokens": 8, "progress": False}
    return evaluate_policy(model, tokenizer, dataset, reward, **(defaults | settings))


class Scripted(torch.nn.Module):
    """A stand-in for a model whose generation is known: the same replies to every prompt, in turn.

    Of the tokens it draws, the n-th of every completion has n equally likely alternatives.
    """

    def __init__(self, greedy, sampled):
        super().__init__()
        self.greedy, self.sampled, self.next = greedy, sampled, Counter()
        self.device = torch.device("cpu")
        self.generation_config = GenerationConfig()
        self.calls = []

    def generate(self, input_ids, attention_mask, generation_config, logits_processor=()):
        self.calls.append((input_ids, attention_mask, generation_config))
        if not generation_config.do_sample:
            replies = [self.greedy] * len(input_ids)
        else:
            replies = [self.reply(tuple(row.tolist())) for row in input_ids]
        length = max(map(len, replies))
        for process in logits_processor:
            for step in range(length):
                process(input_ids, torch.zeros(len(replies), step + 1))
        padded = [reply + [generation_config.pad_token_id] * (length - len(reply)) for reply in replies]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)

    def reply(self, prompt):
        self.next[prompt] += 1
        return self.sampled[(self.next[prompt] - 1) % len(self.sampled)]


def test_every_number_by_hand():
    tokenizer = ladder_tokenizer()
    eos = tokenizer.eos_token_id
    right, other, wrong, cut = (
        tokenizer(text)["input_ids"]
        for text in ("+7 19 +1 20 <eos> 3", "+1 13 +7 20 <eos>", "+1 13 <eos>", "+1 13 +1 14 +1 15")
    )
    model = Scripted(right, [right, right, other, wrong, cut])
    dataset = Dataset.from_dict({"prompt": ["12 20 =", "30 20 ="], "answer": ["20", "20"]})
    evaluation = evaluate(model, tokenizer, dataset, ladder_reward, num_samples=5, ks=(1, 2, 5), max_new_tokens=6)
    assert (evaluation.num_prompts, evaluation.num_samples, evaluation.temperature, evaluation.seed) == (2, 5, 1.0, 0)
    assert evaluation.greedy == pytest.approx({"mean": 0.5, "low": 0.0, "high": 1.0})
    # First prompt: 3 of 5 right, texts 2 + 1; second: none right. 1 - C(2,2)/C(5,2) = 0.9.
    assert {k: value["mean"] for k, value in evaluation.pass_at.items()} == pytest.approx({1: 0.3, 2: 0.45, 5: 0.5})
    distinct = {1: 0.3, 2: (0.7 + 0.4) / 2, 5: 1.0}
    assert {k: value["mean"] for k, value in evaluation.distinct_correct_at.items()} == pytest.approx(distinct)
    # Lengths up to and with the end of sequence: 5, 5, 5, 3, and 6 without any.
    assert evaluation.mean_length == pytest.approx(24 / 5)
    assert evaluation.truncated_fraction == pytest.approx(0.2)
    assert evaluation.mean_reward == pytest.approx(0.3)
    record = evaluation.samples[0]
    assert (record["prompt"], record["answer"]) == ("12 20 =", "20")
    assert record["greedy"] == {
        "text": "+7 19 +1 20", "reward": 1.0, "verdict": "correct", "reason": "", "length": 5, "truncated": False,
    }  # fmt: skip
    assert [completion["reward"] for completion in record["completions"]] == [1, 1, 1, 0, 0]
    assert record["completions"][4] == {
        "text": "+1 13 +1 14 +1 15", "reward": 0.0, "verdict": "wrong", "reason": "", "length": 6, "truncated": True,
        "entropy": pytest.approx(math.log(math.factorial(6)) / 6),
    }  # fmt: skip
    assert evaluation.verdicts == {"correct": 3, "wrong": 7}
    assert evaluation.mean_entropy == pytest.approx(sum(math.log(math.factorial(n)) for n in (5, 5, 5, 3, 6)) / 24)
    assert evaluation.samples[1]["prompt"] == "30 20 ="
    assert model.calls[0][2].eos_token_id == [eos]


def test_estimates_agree_with_the_samples(ladder):
    evaluation = evaluate(*ladder, num_samples=7, ks=(1, 4, 7))
    rewards = np.array([[c["reward"] for c in record["completions"]] for record in evaluation.samples])
    assert 0 < rewards.mean() < 1
    assert evaluation.mean_reward == pytest.approx(rewards.mean())
    assert evaluation.pass_at[1]["mean"] == pytest.approx(rewards.mean())
    assert evaluation.average == pytest.approx(evaluation.pass_at[1])
    assert evaluation.pass_at[7]["mean"] == pytest.approx(rewards.max(axis=1).mean())
    low, high = bootstrap_interval(rewards.mean(axis=1))
    assert evaluation.pass_at[1] == pytest.approx({"mean": rewards.mean(), "low": low, "high": high})
    distinct = []
    for record in evaluation.samples:
        counts = Counter(c["text"] for c in record["completions"] if c["reward"] == 1)
        distinct.append(distinct_at_k(list(counts.values()), 7, 4))
    assert evaluation.distinct_correct_at[4]["mean"] == pytest.approx(np.mean(distinct))


def test_batches_and_left_padding_do_not_change_greedy_completions(ladder):
    model, tokenizer, _ = ladder
    prompts = ["1 2 =", "3 4 = +1 4 =", "5", "6 7 = = = 8"]
    dataset = Dataset.from_dict({"prompt": prompts, "answer": ["0"] * 4})
    together = evaluate(model, tokenizer, dataset, num_samples=1, ks=(1,), batch_size=4)
    alone = evaluate(model, tokenizer, dataset, num_samples=1, ks=(1,), batch_size=1)
    assert [record["greedy"] for record in together.samples] == [record["greedy"] for record in alone.samples]
    assert [record["prompt"] for record in together.samples] == prompts
    # And against transformers with no padding at all.
    model.eval()
    for record in together.samples:
        ids = tokenizer(record["prompt"], return_tensors="pt")
        plain = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(plain, skip_special_tokens=True) == record["greedy"]["text"]
    model.train()


def test_samples_follow_the_model_at_the_temperature(ladder):
    """First tokens against the softmax of the model; the model's own generation config plays no part."""
    model, tokenizer, _ = ladder
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=2, top_p=0.3, min_p=0.5, temperature=0.1, repetition_penalty=3.0, max_new_tokens=2
    )
    dataset = Dataset.from_dict({"prompt": ["12 20 ="], "answer": ["20"]})
    settings = {"num_samples": 20_000, "ks": (1,), "max_new_tokens": 1, "batch_size": 20_000, "greedy": False}
    evaluation = evaluate(model, tokenizer, dataset, temperature=2.0, **settings)
    model.generation_config = GenerationConfig()
    model.eval()
    with torch.no_grad():
        expected = (model(**tokenizer("12 20 =", return_tensors="pt")).logits[0, -1] / 2.0).softmax(-1).numpy()
    model.train()
    counts = Counter(completion["text"] for completion in evaluation.samples[0]["completions"])
    frequencies = np.array([counts[tokenizer.decode([token])] / 20_000 for token in range(56)])
    np.testing.assert_allclose(frequencies, expected[:56], atol=5 * math.sqrt(0.25 / 20_000))
    assert (frequencies > 0).sum() > 40


def test_greedy_completions_ignore_the_generation_config_of_the_model(ladder):
    model, tokenizer, dataset = ladder
    plain = evaluate(model, tokenizer, dataset, num_samples=1, ks=(1,))
    model.generation_config = GenerationConfig(repetition_penalty=10.0, num_beams=3, max_new_tokens=2)
    configured = evaluate(model, tokenizer, dataset, num_samples=1, ks=(1,))
    model.generation_config = GenerationConfig()
    assert configured == plain


def test_same_seed_same_samples_other_seed_others(ladder):
    torch.manual_seed(1)
    first = evaluate(*ladder, seed=3)
    torch.manual_seed(2)
    assert evaluate(*ladder, seed=3) == first
    assert evaluate(*ladder, seed=4).samples != first.samples


def test_random_state_and_modes_are_as_before(ladder):
    model, tokenizer, dataset = ladder
    model.train()
    model.model.layers[0].mlp.eval()
    modes = [module.training for module in model.modules()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    seen = []

    def reward(completions, **columns):
        seen.append(any(module.training for module in model.modules()))
        return [0.0] * len(completions)

    evaluate(model, tokenizer, dataset, reward)
    assert seen == [False, False]
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    model.train()


def test_state_is_restored_when_the_reward_fails(ladder):
    model, tokenizer, dataset = ladder
    state = torch.get_rng_state()

    def reward(completions, **columns):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        evaluate(model, tokenizer, dataset, reward)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def training_losses(tokenizer, dataset, evaluated):
    model = small_model(tokenizer, seed=5).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(7)
    losses = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        if evaluated:
            evaluate(model, tokenizer, dataset)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, torch.rand(1).item()


def test_evaluating_in_the_middle_of_training_changes_nothing(ladder):
    _, tokenizer, dataset = ladder
    assert training_losses(tokenizer, dataset, evaluated=True) == training_losses(tokenizer, dataset, evaluated=False)


def test_gradient_checkpointing_changes_no_completion(ladder):
    _, tokenizer, dataset = ladder
    plain, checkpointed = small_model(tokenizer), small_model(tokenizer)
    checkpointed.train()
    checkpointed.gradient_checkpointing_enable()
    checkpointed.config.use_cache = False
    assert evaluate(checkpointed, tokenizer, dataset) == evaluate(plain, tokenizer, dataset)
    assert checkpointed.is_gradient_checkpointing
    assert checkpointed.config.use_cache is False


def test_reward_is_called_as_trl_calls_it(ladder):
    model, tokenizer, dataset = ladder
    dataset = dataset.select(range(2)).add_column("level", [4, 5])
    calls = []

    def reward(prompts, completions, completion_ids, answer, level, trainer_state, log_extra, log_metric):
        log_metric("name", 1.0)
        log_extra("name", level)
        calls.append((prompts, completions, completion_ids, answer, level))
        return [0.0] * len(prompts)

    evaluate(model, tokenizer, dataset, reward, num_samples=3, ks=(1,))
    assert [len(call[0]) for call in calls] == [2, 6]
    prompts, completions, completion_ids, answer, level = calls[1]
    first, second = dataset["prompt"]
    assert prompts == [first] * 3 + [second] * 3
    assert answer == [str(prompt.split()[1]) for prompt in prompts]
    assert level == [4] * 3 + [5] * 3
    for text, ids in zip(completions, completion_ids, strict=True):
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.eos_token_id not in ids[:-1]


def test_unscored_completions_are_not_correct_and_not_averaged(ladder):
    model, tokenizer, dataset = ladder

    def reward(completions, **columns):
        return [None if index % 2 else 0.5 for index in range(len(completions))]

    evaluation = evaluate(model, tokenizer, dataset, reward, correct_at=0.5, num_samples=4)
    assert evaluation.mean_reward == 0.5
    assert evaluation.pass_at[1]["mean"] == 0.5
    nothing = evaluate(model, tokenizer, dataset, lambda completions, **columns: [None] * len(completions))
    assert nothing.mean_reward is None
    assert nothing.pass_at[1]["mean"] == 0.0
    assert nothing.greedy["mean"] == 0.0


def test_greedy_may_be_left_out(ladder):
    evaluation = evaluate(*ladder, greedy=False)
    assert evaluation.greedy is None
    assert evaluation.samples[0]["greedy"] is None
    assert evaluation.as_dict()["greedy"] is None


def test_greedy_does_not_change_the_samples(ladder):
    with_greedy, without = evaluate(*ladder), evaluate(*ladder, greedy=False)
    assert with_greedy.pass_at == without.pass_at


def test_as_dict_is_json_and_samples_are_lines(ladder, tmp_path):
    evaluation = evaluate(*ladder)
    values = evaluation.as_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert set(values) == {
        "num_prompts",
        "num_samples",
        "temperature",
        "seed",
        "average",
        "greedy",
        "pass_at",
        "distinct_correct_at",
        "mean_length",
        "truncated_fraction",
        "mean_reward",
        "mean_entropy",
        "verdicts",
    }
    assert values["pass_at"]["3"] == evaluation.pass_at[3]
    evaluation.write_samples(tmp_path / "samples.jsonl")
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == evaluation.samples


def test_every_end_of_sequence_of_the_model_counts(ladder):
    _, tokenizer, _ = ladder
    reply = tokenizer("+7 19 +1 20 <eos>")["input_ids"]
    model = Scripted(reply, [reply])
    model.generation_config = GenerationConfig(eos_token_id=[reply[2]])
    dataset = Dataset.from_dict({"prompt": ["12 20 ="], "answer": ["20"]})
    evaluation = evaluate(model, tokenizer, dataset, num_samples=1, ks=(1,))
    assert evaluation.samples[0]["greedy"]["text"] == "+7 19 +1"
    assert model.calls[0][2].eos_token_id == [tokenizer.eos_token_id, reply[2]]


def test_progress_is_shown_on_a_terminal_when_asked_and_nowhere_else(ladder, capsys, monkeypatch):
    evaluate(*ladder, progress=True)  # stderr is captured: no terminal
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    evaluate(*ladder)
    assert terminal.getvalue() == ""
    evaluate(*ladder, progress=True)
    assert "evaluate" in terminal.getvalue()
    assert capsys.readouterr().out == ""


CHAT = [{"role": "user", "content": "12 20"}]


def chat_tokenizer():
    words = ["<eos>", "<user>", "<assistant>", *map(str, range(30))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<none>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    template = (
        "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", chat_template=template)


def test_chat_prompts_go_through_the_template():
    tokenizer = chat_tokenizer()
    reply = tokenizer("7 8 <eos>")["input_ids"]
    model = Scripted(reply, [reply])
    seen = []

    def reward(prompts, completions, **columns):
        seen.append((prompts, completions))
        return [1.0] * len(prompts)

    dataset = Dataset.from_dict({"prompt": [CHAT, [{"role": "user", "content": "3"}]], "answer": ["20", "3"]})
    evaluation = evaluate(model, tokenizer, dataset, reward, num_samples=1, ks=(1,))
    input_ids, mask, _ = model.calls[0]
    assert tokenizer.batch_decode(input_ids) == ["<user> 12 20 <assistant>", "<eos> <user> 3 <assistant>"]
    assert mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert seen[0] == (dataset["prompt"][:], [[{"role": "assistant", "content": "7 8"}]] * 2)
    assert evaluation.samples[0]["prompt"] == CHAT
    json.dumps(evaluation.samples)


def test_chat_prompts_without_a_template_are_refused(ladder):
    model, tokenizer, _ = ladder
    dataset = Dataset.from_dict({"prompt": [CHAT], "answer": ["20"]})
    with pytest.raises(InputError, match="row 1: the prompt is a list of chat messages, but the tokenizer has no chat"):
        evaluate(model, tokenizer, dataset)


def test_prompts_outside_the_vocabulary_are_refused(ladder):
    model, tokenizer, _ = ladder
    dataset = Dataset.from_dict({"prompt": ["1 2 =", "hello"], "answer": ["2", "2"]})
    with pytest.raises(InputError, match=r"row 2: the prompt 'hello' cannot be encoded \(Exception: WordLevel error"):
        evaluate(model, tokenizer, dataset)


def test_no_end_of_sequence_anywhere_is_refused():
    model, tokenizer = Scripted([1], [[1]]), chat_tokenizer()
    tokenizer.eos_token = None
    dataset = Dataset.from_dict({"prompt": ["1"], "answer": ["1"]})
    with pytest.raises(InputError, match="needs an end of sequence, and neither the tokenizer nor the model has one"):
        evaluate(model, tokenizer, dataset)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0}, "num_samples must be >= 1, got num_samples=0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got batch_size=0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be >= 1, got max_new_tokens=0"),
        ({"temperature": 0.0}, "temperature must be > 0 and finite, got temperature=0.0"),
        ({"temperature": math.nan}, "temperature must be > 0 and finite, got temperature=nan"),
        ({"temperature": math.inf}, "temperature must be > 0 and finite, got temperature=inf"),
        ({"ks": (1, 7)}, "k of pass@k must be in 1..num_samples=6, got k of pass@k=7"),
        ({"ks": (0,)}, "k of pass@k must be in 1..num_samples=6, got k of pass@k=0"),
    ],
)
def test_settings_out_of_range_are_refused(ladder, settings, message):
    with pytest.raises(InputError) as caught:
        evaluate(*ladder, **settings)
    assert str(caught.value) == message


def test_an_empty_data_set_is_refused(ladder):
    model, tokenizer, dataset = ladder
    with pytest.raises(InputError, match="^the data set to evaluate on is empty$"):
        evaluate(model, tokenizer, dataset.select([]))


class Steps(SamplingBar):
    """A bar that notes what it is told."""

    def __init__(self, *args, **settings):
        self.tokens, self.shown, self.ended = [], [], []
        super().__init__(*args, **settings)

    def step(self, tokens, completions):
        self.tokens.append(tokens)
        super().step(tokens, completions)

    def _show(self, completions):
        self.shown.append(completions)
        super()._show(completions)


@pytest.fixture
def steps(monkeypatch):
    bars = []

    def bar(*args, **settings):
        bars.append(Steps(*args, **settings))
        return bars[-1]

    monkeypatch.setattr(evaluation_module, "SamplingBar", bar)
    return bars


@pytest.mark.parametrize("own_seeds", [False, True])
def test_a_bar_that_moves_with_every_token_changes_nothing(ladder, steps, monkeypatch, own_seeds):
    settings = {"batch_size": 16, "ranks": EvaluationRanks(own_seeds=own_seeds)}
    plain = evaluate(*ladder, **settings)
    assert steps[0].shown[-1] == 70
    assert not steps[0].tokens, "nobody watches: no step is told"
    state = torch.get_rng_state()
    monkeypatch.setattr("sys.stderr", Terminal())
    watched = evaluate(*ladder, **settings, progress=True)
    assert watched == plain
    assert torch.equal(torch.get_rng_state(), state)
    bar = steps[1]
    best = [record["greedy"]["length"] for record in plain.samples]
    lengths = best + [c["length"] for record in plain.samples for c in record["completions"]]
    assert sum(bar.tokens) == sum(lengths)
    assert len(bar.shown) > 3 * 5, "within each of the five batches"
    assert bar.shown == sorted(bar.shown)
    assert bar.shown[-1] == 70


@pytest.mark.parametrize("layers", [None, ["sliding_attention", "full_attention"]], ids=["full", "with a window"])
def test_samples_of_one_prompt_share_what_is_computed_of_it(monkeypatch, layers):
    tokenizer = ladder_tokenizer()
    settings = {"num_hidden_layers": 2, "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32,
                "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3,
                "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    if layers is not None:
        settings |= {"layer_types": layers, "sliding_window": 8, "use_sliding_window": True}
    model = Qwen2ForCausalLM(Qwen2Config(**settings)).double().eval()
    prompts = [tokenizer(" ".join(["+1"] * length))["input_ids"] for length in (30, 20, 17)]
    repeated = [ids for ids in prompts for _ in range(5)]
    seen = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0].shape if args else kwargs["input_ids"].shape),
        with_kwargs=True,
    )

    def sampled():
        sampler = Sampler(model, tokenizer, 6, 15, measures_entropy=True)
        torch.manual_seed(4)
        return sampler.completions(repeated, 1.0, lambda count: None)

    together = sampled()
    shapes, seen[:] = list(seen), []
    monkeypatch.setattr("equipoise.models.sampling.LEAST_SHARED", 10**6)
    apart = sampled()
    assert [(c.ids, c.text, c.truncated) for c in together] == [(c.ids, c.text, c.truncated) for c in apart]
    assert [c.entropy for c in together] == pytest.approx([c.entropy for c in apart], abs=1e-12)
    assert seen[0] == (15, 30)
    assert shapes[:2] == ([(3, 29), (15, 1)] if layers is None else seen[:2])


@pytest.mark.parametrize("kind", ["ALiBi", "virtual tokens"])
def test_nothing_is_shared_where_prefixes_are_more_than_tokens_and_positions(kind):
    tokenizer = ladder_tokenizer()
    if kind == "ALiBi":
        model = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2))
    else:
        peft = pytest.importorskip("peft")
        prefix = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        model = peft.get_peft_model(small_model(tokenizer), prefix)
    sampler = Sampler(model.eval(), tokenizer, 3, 8)
    prompts = [tokenizer(" ".join(["+1"] * 30))["input_ids"]] * 4
    assert sampler._shared_prefixes(prompts) is None
    assert len(sampler.completions(prompts, 1.0, lambda count: None)) == 4
