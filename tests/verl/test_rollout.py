"""The recipe's rollout backend, without Ray: what it samples, what it says of it, what it refuses."""

import asyncio

import pytest
import torch

PROMPT = [5, 14, 20, 33]


@pytest.fixture
def sampler(model):
    import cpu_rollout

    return cpu_rollout.Sampler(str(model), seed=3, length=12, context=None)


def answers(sampler, count=1, prompt=PROMPT, **sampling):
    async def one_after_the_other():
        asked = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True} | sampling
        return [await sampler.generate("any", prompt, asked) for _ in range(count)]

    return asyncio.run(one_after_the_other())


def logprobs_of(sampler, prompt, tokens, temperature=1.0):
    with torch.no_grad():
        logits = sampler.model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_policy_at_the_temperature(sampler, temperature):
    for answer in answers(sampler, 5, temperature=temperature):
        expected = logprobs_of(sampler, PROMPT, answer.token_ids, temperature)
        torch.testing.assert_close(torch.tensor(answer.log_probs), expected, rtol=1e-5, atol=1e-5)


def test_tokens_are_as_frequent_as_they_are_likely(sampler):
    first = torch.tensor([answer.token_ids[0] for answer in answers(sampler, 2000, max_tokens=1)])
    found = torch.bincount(first, minlength=41) / len(first)
    with torch.no_grad():
        expected = sampler.model(torch.tensor([PROMPT])).logits[0, -1].softmax(-1)
    assert (found - expected).abs().max() < 4 * (0.25 / len(first)) ** 0.5


def test_greedy_answers_are_the_likeliest_with_untempered_logprobs(sampler):
    (answer,) = answers(sampler, temperature=0)
    with torch.no_grad():
        logits = sampler.model(torch.tensor([[*PROMPT, *answer.token_ids]])).logits[0, len(PROMPT) - 1 : -1]
    assert answer.token_ids == logits.argmax(-1).tolist()
    torch.testing.assert_close(
        torch.tensor(answer.log_probs), logprobs_of(sampler, PROMPT, answer.token_ids), rtol=1e-5, atol=1e-5
    )


def test_answers_repeat_and_differ(model, sampler):
    import cpu_rollout

    here = [answer.token_ids for answer in answers(sampler, 4)]
    again = cpu_rollout.Sampler(str(model), seed=3, length=12, context=None)
    answers(again, 3, prompt=PROMPT[:2])  # others in between change nothing
    assert [answer.token_ids for answer in answers(again, 4)] == here
    assert len({tuple(tokens) for tokens in here}) == 4
    other = cpu_rollout.Sampler(str(model), seed=4, length=12, context=None)
    assert [answer.token_ids for answer in answers(other, 4)] != here


def test_new_weights_begin_anew_and_give_their_version(sampler):
    state = {name: tensor.clone() for name, tensor in sampler.model.state_dict().items()}
    before = answers(sampler, 2)
    asyncio.run(sampler.load(state, 7))
    at_seven = answers(sampler, 2)
    asyncio.run(sampler.load(state, 8))
    at_eight = answers(sampler, 2)
    asyncio.run(sampler.load(state, 7))
    assert [answer.token_ids for answer in answers(sampler, 2)] == [answer.token_ids for answer in at_seven]
    assert at_seven[0].token_ids != at_eight[0].token_ids
    versions = [answer.extra_fields["global_steps"] for answer in (*before, *at_seven, *at_eight)]
    assert versions == [None, None, 7, 7, 8, 8]


def test_an_answer_ends_with_the_end_token_or_at_its_limit(sampler):
    sampler.ends = {int(token) for token in range(20)}  # about every second token
    found = answers(sampler, 30)
    for answer in found:
        assert all(token not in sampler.ends for token in answer.token_ids[:-1])
        assert answer.token_ids[-1] in sampler.ends or len(answer.token_ids) == 12
        assert answer.stop_reason == "completed"
    assert {len(answer.token_ids) for answer in found} >= {1, 2, 3}


@pytest.mark.parametrize(("asked", "length"), [({}, 12), ({"max_tokens": 5}, 5), ({"max_new_tokens": 4}, 4)])
def test_the_longest_answer(sampler, asked, length):
    sampler.ends = set()
    assert len(answers(sampler, **asked)[0].token_ids) == length


def test_an_answer_stays_in_the_models_context(sampler):
    sampler.ends, sampler.context = set(), len(PROMPT) + 3
    assert len(answers(sampler)[0].token_ids) == 3


def test_a_prompt_that_leaves_no_room_is_refused(sampler):
    sampler.context = len(PROMPT)
    with pytest.raises(ValueError, match="1 tokens too long"):
        answers(sampler)


def test_no_logprobs_unless_asked_for(sampler):
    assert answers(sampler, logprobs=False)[0].log_probs is None


@pytest.mark.parametrize(
    "asked", [{"top_p": 0.9}, {"top_k": 20}, {"repetition_penalty": 1.1}, {"min_p": 0.1}, {"stop": ["x"]}]
)
def test_what_it_does_not_do_is_refused_by_name(sampler, asked):
    (name,) = asked
    with pytest.raises(ValueError, match=name):
        answers(sampler, **asked)


def test_images_are_refused(sampler):
    with pytest.raises(ValueError, match="image_data"):
        asyncio.run(sampler.generate("any", PROMPT, {}, image_data=[object()]))


def test_aborted_answers_end_where_they_are_and_requests_wait(sampler):
    sampler.ends, sampler.length, sampler.context = set(), 200, 256

    async def scene():
        running = asyncio.create_task(sampler.generate("a", PROMPT, {"logprobs": True}))
        await asyncio.sleep(0.02)
        await sampler.abort_all_requests()
        cut = await running
        waiting = asyncio.create_task(sampler.generate("b", PROMPT, {}))
        await asyncio.sleep(0.02)
        waited = not waiting.done()
        await sampler.resume_generation()
        return cut, waited, await waiting

    cut, waited, whole = asyncio.run(scene())
    assert cut.stop_reason == "aborted"
    assert 0 < len(cut.token_ids) == len(cut.log_probs) < 200
    assert waited
    assert (whole.stop_reason, len(whole.token_ids)) == ("completed", 200)
