import numpy as np
import pytest

from equipoise.tasks import is_valid_ladder, ladder_reward, ladder_task, random_walk_texts


def rewards(*pairs):
    prompts, completions = zip(*pairs, strict=True)
    return ladder_reward(
        prompts=list(prompts), completions=list(completions), answer=["0"] * len(pairs), trainer_state=None
    )


@pytest.mark.parametrize(
    ("prompt", "completion", "valid"),
    [
        ("12 40 =", "+7 19 +1 20 *2 40", True),
        ("12 19 =", "+7 19", True),
        ("12 5 =", "-7 5", True),
        ("12 11 =", "-1 11", True),
        ("0 0 =", "*2 0", True),
        ("12 12 =", "+1 13 -1 12", True),
        ("12 12 =", "", False),  # at least one step
        ("12 40 =", "+7 19 +1 20", False),  # stops before the target
        ("12 20 =", "+7 19 +1 20 *2 40", False),  # passes the target and goes on
        ("12 40 =", "+7 18 +1 20 *2 40", False),  # 12 + 7 is not 18
        ("12 40 =", "+7 19 +1 20 *2", False),  # cut off
        ("12 40 =", "+7 19 20 *2 40", False),
        ("12 40 =", "19 +7 +1 20 *2 40", False),  # the wrong way round
        ("12 40 =", "+7 +7 +1 20 *2 40", False),
        ("12 19 =", "+7 019", False),
        ("12 19 =", "+7 +19", False),
        ("12 17 =", "+5 17", False),  # no such operation
        ("12 19 =", "+7 19 =", False),
        ("12 19 =", "+7 19 = ", False),
        ("49 0 =", "+1 50", False),
        ("1 6 =", "-7 -6", False),
        ("44 45 =", "+7 51 -7 44 +1 45", False),  # out of range on the way
        ("25 49 =", "*2 50 -1 49", False),
        ("0 6 =", "+1 1 +1 2 +1 3 +1 4 +1 5 +1 6", True),  # six steps
        ("0 7 =", "+1 1 +1 2 +1 3 +1 4 +1 5 +1 6 +1 7", False),  # seven
    ],
)
def test_validity_by_hand(prompt, completion, valid):
    assert is_valid_ladder(prompt, completion) is valid
    assert rewards((prompt, completion)) == [float(valid)]


def test_reward_of_a_batch_keeps_its_order():
    assert rewards(("1 2 =", "+1 2"), ("1 2 =", "+7 8"), ("1 2 =", "*2 2")) == [1.0, 0.0, 1.0]
    assert ladder_reward.__name__ == "ladder_reward"


@pytest.mark.parametrize("prompt", ["12 40", "12 40 ?", "12 50 =", "-1 3 =", "12 40 = =", "", "a b ="])
def test_a_malformed_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match=r'must be "s t =" with numbers in 0..49'):
        is_valid_ladder(prompt, "+1 2")


def distances_by_matrix():
    """Shortest distances from powers of the adjacency matrix: nothing of the module is used."""
    adjacency = np.zeros((50, 50), dtype=int)
    for number in range(50):
        for result in (number + 1, number - 1, number + 7, number - 7, 2 * number):
            if 0 <= result < 50:
                adjacency[number, result] = 1
    distances = np.where(np.eye(50, dtype=bool), 0, -1)
    reached = np.eye(50, dtype=int)
    for steps in range(1, 50):
        reached = (reached @ adjacency > 0).astype(int)
        distances[(reached > 0) & (distances < 0)] = steps
    return distances


def pairs(dataset):
    return [tuple(map(int, prompt.split()[:2])) for prompt in dataset["prompt"]]


def test_split_has_every_pair_at_distance_two_to_five_once():
    task = ladder_task()
    distances = distances_by_matrix()
    expected = {(s, t) for s in range(50) for t in range(50) if 2 <= distances[s, t] <= 5}
    assert len(task.train) == 1659
    assert len(task.held_out) == 292
    assert sorted(pairs(task.train) + pairs(task.held_out)) == sorted(expected)
    assert (task.name, task.max_completion_length, task.reward) == ("ladder", 13, ladder_reward)
    assert task.train.column_names == ["prompt", "answer"]


def test_split_is_shuffled_and_fixed_by_its_seed():
    assert ladder_task(3).train["prompt"][:] == ladder_task(3).train["prompt"][:]
    assert set(ladder_task(0).held_out["prompt"]) != set(ladder_task(1).held_out["prompt"])
    starts = [start for start, _ in pairs(ladder_task().held_out)]
    assert starts != sorted(starts)


def test_answers_are_the_targets_as_text():
    task = ladder_task()
    assert task.held_out["answer"][:] == [str(target) for _, target in pairs(task.held_out)]


def test_random_walks_are_valid_answers_of_one_to_six_steps():
    walks = random_walk_texts(3000, np.random.default_rng(0))
    assert all(is_valid_ladder(prompt, response) for prompt, response in walks)
    lengths = [len(response.split()) // 2 for _, response in walks]
    shares = np.bincount(lengths, minlength=7)[1:] / len(walks)
    assert shares == pytest.approx(np.full(6, 1 / 6), abs=0.03)
    first = [response.split()[0] for _, response in walks]
    assert set(first) == {"+1", "-1", "+7", "-7", "*2"}
    starts = {prompt.split()[0] for prompt, _ in walks}
    assert starts == {str(number) for number in range(50)}


def test_random_walks_are_reproducible():
    assert random_walk_texts(5, np.random.default_rng(1)) == random_walk_texts(5, np.random.default_rng(1))
    generator = np.random.default_rng(1)
    assert random_walk_texts(5, generator) != random_walk_texts(5, generator)
