"""Statistics of packed logits, without a worker: of the responses, and of nothing else."""

import pytest
import torch
import verl_setup


@pytest.fixture(params=[False, True], ids=["padded responses", "responses without padding"])
def batch(request):
    """A micro-batch as verl's engine has it, its packed logits, and its rows."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import left_right_2_no_padding, response_to_nested

    rows = verl_setup.sequences()
    data = left_right_2_no_padding(tu.get_tensordict({name: column.clone() for name, column in rows.items()}))
    if request.param:
        width = rows["prompts"].shape[1]
        answered = rows["attention_mask"][:, width:]
        whole = torch.nested.as_nested_tensor(
            [row[keep] for row, keep in zip(rows["prompts"], rows["attention_mask"][:, :width].bool(), strict=True)],
            layout=torch.jagged,
        )
        lengths = torch.nested.as_nested_tensor([row[row.bool()] for row in answered], layout=torch.jagged)
        data["responses"], data["prompts"] = response_to_nested(rows["responses"], lengths), whole
    padded = torch.randn(*rows["input_ids"].shape, 41, generator=torch.Generator().manual_seed(0))
    return data, padded, rows


def packed(padded, rows):
    """[1, tokens, vocabulary], -inf throughout where the next token is none of a response."""
    first = rows["prompts"].shape[1] - 1
    asks = torch.full_like(padded, -torch.inf)
    answered = rows["attention_mask"][:, first + 1 :].bool()
    asks[:, first:-1][answered] = padded[:, first:-1][answered]
    return asks[rows["attention_mask"].bool()][None]


def test_only_the_places_before_response_tokens_are_looked_at(batch):
    from equipoise import token_statistics
    from equipoise.verl import statistics

    data, padded, rows = batch
    first = rows["prompts"].shape[1] - 1
    expected = token_statistics(padded[:, first:-1], rows["responses"])
    answered = rows["attention_mask"][:, first + 1 :].bool()
    logits = packed(padded, rows)
    output = statistics.packed_statistics(logits, data)
    assert {column.shape for column in output.values()} == {logits.shape[:2]}
    offsets = data["input_ids"].offsets()
    output = {name: torch.nested.nested_tensor_from_jagged(x[0], offsets) for name, x in output.items()}
    output["log_probs"] = torch.nested.nested_tensor_from_jagged(torch.arange(1.0, logits.shape[1] + 1), offsets)
    found = statistics.response_statistics(output, data)
    for name in ("entropy", "tendency", "correction"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(ours[answered], theirs[answered], rtol=0, atol=0)
        assert (ours[answered] != 0).all()
        assert (ours[~answered] == 0).all()


def test_where_statistics_were_not_asked_for_they_are_no_numbers(batch):
    from equipoise.verl.statistics import response_statistics

    data, _, rows = batch
    tokens = int(rows["attention_mask"].sum())
    log_probs = torch.nested.nested_tensor_from_jagged(torch.arange(1.0, tokens + 1), data["input_ids"].offsets())
    found = response_statistics({"log_probs": log_probs}, data)
    assert found.logprob.gt(0).sum() == rows["attention_mask"][:, rows["prompts"].shape[1] :].sum()
    assert all(column.isnan().all() for column in found[1:])


def test_the_pass_that_searches_for_bounds_computes_no_entropies(monkeypatch):
    """Neither ours nor verl's, which the second pass has again where it was asked for."""
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.workers.config import FSDPActorConfig

    from equipoise.steering import Steering
    from equipoise.verl.origin import Origin
    from equipoise.verl.settings import settings_of
    from equipoise.verl.updates import SteeredUpdates, fixed_bounds

    config = FSDPActorConfig(strategy="fsdp2", rollout_n=4, ppo_micro_batch_size_per_gpu=4)
    settings = settings_of({"clipping": "balanced"})
    steering = Steering(settings, fixed_bounds=fixed_bounds(config))
    monkeypatch.setattr(Steering, "preview", lambda *arguments: None)
    monkeypatch.setattr(Steering, "close", lambda *arguments, **more: {})
    updates = SteeredUpdates(config, settings, steering, None)
    updates.origin = Origin(updates=0, old_policy=0, from_rollout=True, rewards={})
    asked = []

    def passes(data, loss_function, forward_only):
        names = ("calculate_entropy", "distillation_use_topk")
        asked.append((forward_only, *(tu.get_non_tensor_data(data, name, None) for name in names)))
        return {"metrics": {}}

    for wanted in (True, False):
        data = TensorDict({"input_ids": torch.zeros(4, 2)}, [4])
        tu.assign_non_tensor(data, calculate_entropy=wanted)
        updates._update(passes, data, None)
        assert asked == [(True, False, False), (False, wanted, True)]
        asked.clear()
