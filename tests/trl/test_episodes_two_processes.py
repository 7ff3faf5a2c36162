"""Two processes train on episodes and share evaluations, with the whole model each or with shards of it."""

import json
from pathlib import Path

import episodes_two_process_run
import pytest
from episodes_two_process_run import PROMPTS, evaluated
from processes import DDP, FSDP2, launch
from trainer_setup import tiny_model

from equipoise.models.evaluation_ranks import EvaluationRanks

SCRIPT = Path(episodes_two_process_run.__file__)
pytestmark = pytest.mark.distributed


def test_processes_with_other_numbers_of_turns_train_on_their_episodes(two):
    """The first process never calls the calculator, the second twice an episode; half of its answers are right."""
    first, second = (end["trained"] for end in two.ends)
    assert first["messages"] == second["messages"] == {"list"}
    for end in (first, second):
        assert end["rewards"] == [0.25, 0.25]
        assert end["calls"] == [1.0, 1.0]
        assert end["steps"] == [1.0, 1.0]


@pytest.mark.parametrize("count", PROMPTS)
def test_processes_share_the_episodes_of_an_evaluation(two, count):
    first, second = (end["trained"]["evaluations"][count] for end in two.ends)
    assert first == second
    assert (first["num_prompts"], first["num_samples"], first["seed"]) == (count, 4, 3)
    # Of the second process, which has every other prompt, half of the episodes of a prompt are right.
    assert first["mean_reward"] == pytest.approx(0.5 * (count // 2) / count)
    assert first["pass_at"]["1"]["mean"] == pytest.approx(0.5 * (count // 2) / count)


def test_failed_episodes_are_neutral_in_a_group_that_two_processes_share(two):
    first, second = (end["one_group"] for end in two.ends)
    assert first["rewards"] == second["rewards"] == [0.5, 0.5, 0.0, 1.0]
    assert first["advantages"] == [0.0, 0.0]
    assert second["advantages"][0] == pytest.approx(-second["advantages"][1])
    assert second["advantages"][1] > 1


def test_a_process_whose_episodes_all_fail_ends_the_run_of_both_with_the_causes(two):
    first, second = (end["too_many_failures"] for end in two.ends)
    assert first.startswith("EpisodesFailedError: 100% of the last 16 episodes failed")
    assert second.startswith("InputError: 100% of the last 16 episodes failed")
    assert "no server" in second


def test_environments_draw_other_numbers_on_each_process_and_the_same_ones_again(two, ddp):
    first, second = (end["drawn"] for end in two.ends)
    assert len(first) == len(second) == len({*first, *second}) / 2
    assert [first, second] == [end["drawn"] for end in ddp.ends]


@pytest.mark.parametrize("count", PROMPTS)
def test_processes_share_the_prompts_of_single_answers(two, count):
    first, second = (end["answers"] for end in two.ends)
    assert first["in_step"] == second["in_step"] == two.sharded
    assert first["samples"] == second["samples"]
    alone = evaluated(tiny_model(), count, EvaluationRanks(own_seeds=True))
    assert without_entropies(first["samples"][count]) == without_entropies(alone.samples)
    assert len({c["text"] for record in alone.samples for c in record["completions"]}) > 2
    today = evaluated(tiny_model(), count, None)
    assert [record["greedy"] for record in first["samples"][count]] == [record["greedy"] for record in today.samples]


def without_entropies(records):
    """What an evaluation sampled; entropies differ in their last digits with what shares a batch."""
    return [
        record | {"completions": [{k: v for k, v in c.items() if k != "entropy"} for c in record["completions"]]}
        for record in records
    ]


@pytest.mark.parametrize("part", ["evaluation", "training"])
def test_a_reward_that_fails_on_one_process_ends_both_with_its_words(two, part):
    for end in two.ends:
        said = end["answers"]["broken"] if part == "evaluation" else end["failed_training"]
        assert said == "InputError: row 3 is broken"


@pytest.mark.parametrize("task", ["calculator", "ladder"])
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_a_run_writes_one_line_for_each_evaluation(how, task, request):
    folder = request.getfixturevalue(how).folder / "whole_runs" / task
    lines = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [0, 2]
    assert all((line["num_prompts"], line["num_samples"]) == (5, 4) for line in lines)
    assert (folder / "model").is_dir()


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_each_process_writes_its_failed_episodes_to_a_file_of_its_own(how, request):
    folder = request.getfixturevalue(how).folder / "whole_runs" / "lost"
    for name in ("failed_episodes.jsonl", "failed_episodes_1.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        assert [row["cause"] for row in rows] == ["reset raised OSError: no such sum"] * 16


def test_the_evaluations_of_a_run_do_not_depend_on_how_it_is_sharded(ddp, fsdp2):
    """The first one, of the same weights; later ones agree but for the rounding of the updates between."""
    first, second = (
        json.loads((two.folder / "whole_runs" / "ladder" / "evaluation.jsonl").read_text().splitlines()[0])
        for two in (ddp, fsdp2)
    )
    assert first.pop("mean_entropy") == pytest.approx(second.pop("mean_entropy"), abs=1e-5)
    assert first == second


@pytest.mark.parametrize("configuration", [DDP, FSDP2])
def test_generation_that_fails_on_one_process_ends_both(tmp_path, configuration):
    """Under sharding the others are in the middle of a collective then: the launcher ends them."""
    with pytest.raises(AssertionError) as ended:
        launch(SCRIPT, tmp_path, "--crash", configuration=configuration)
    assert "not ended after" not in str(ended.value)
    assert "ChildFailedError" in str(ended.value)
