"""Log-probs recorded while transformers samples are those of the distribution that was sampled."""

import pytest
import torch
from off_policy_setup import logprobs
from trainer_setup import tiny_model
from transformers import GenerationConfig

from equipoise.models.behavior_logprobs import recorded_generation


def generated(model, temperature, num_new, *, seed=3):
    ids = torch.tensor([[0, 0, 5, 6], [3, 4, 5, 6], [0, 7, 8, 9], [0, 0, 0, 2]] * 4)
    settings = GenerationConfig(
        max_new_tokens=num_new, do_sample=True, temperature=temperature, top_k=0, pad_token_id=0, eos_token_id=1
    )
    torch.manual_seed(seed)
    sequences = model.generate(input_ids=ids, attention_mask=(ids > 0).long(), generation_config=settings)
    return ids, sequences


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("num_new", [1, 9])
def test_recorded_logprobs_are_those_of_a_forward_pass(temperature, num_new):
    model = tiny_model().eval()
    with recorded_generation(model, temperature) as recorded:
        ids, sequences = generated(model, temperature, num_new)
    [values] = recorded
    completion = sequences[:, ids.shape[1] :]
    ended = (completion == 1).cumsum(1) - (completion == 1).long()
    mask = ended == 0
    batch = {"prompt_ids": ids, "prompt_mask": (ids > 0).long(), "completion_ids": completion, "completion_mask": mask}
    expected = logprobs(model, batch, temperature)
    assert values.shape == completion.shape
    torch.testing.assert_close(values[mask].double(), expected[mask], rtol=1e-5, atol=1e-5)
    assert num_new == 1 or not mask.all(), "some sequence must end early"


def test_recording_changes_no_token_and_leaves_no_trace():
    model = tiny_model().eval()
    _, plain = generated(model, 0.7, 9)
    with recorded_generation(model, 0.7):
        _, recorded = generated(model, 0.7, 9)
    assert torch.equal(plain, recorded)
    assert "generate" not in vars(model)
    with pytest.raises(RuntimeError), recorded_generation(model, 0.7):
        raise RuntimeError
    assert "generate" not in vars(model)


def test_every_call_is_recorded_by_itself():
    model = tiny_model().eval()
    with recorded_generation(model, 1.0) as recorded:
        generated(model, 1.0, 2)
        generated(model, 1.0, 5)
    assert [values.shape[1] for values in recorded] == [2, 5]


def test_when_every_sequence_ends_early_there_is_one_number_per_column():
    model = tiny_model().eval()
    with torch.no_grad():
        model.lm_head.weight[1] = 0
        model.lm_head.weight[2:] = -10 * model.lm_head.weight[2:].abs()
    with recorded_generation(model, 5.0) as recorded:
        ids, sequences = generated(model, 5.0, 40)
    assert recorded[0].shape == (16, sequences.shape[1] - ids.shape[1])
    assert recorded[0].isfinite().all()


def test_a_generate_of_the_instance_is_used_and_given_back():
    """transformers sets one on a model that FSDP2 shards: without it the shards would not be gathered."""
    model, calls = tiny_model().eval(), []
    of_class = model.generate

    def of_instance(*args, **kwargs):
        calls.append(1)
        return of_class(*args, **kwargs)

    model.generate = of_instance
    for _ in range(2):
        with recorded_generation(model, 1.0) as recorded:
            generated(model, 1.0, 3)
        assert len(recorded) == 1
        assert model.generate is of_instance
    assert len(calls) == 2
