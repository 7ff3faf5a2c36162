"""Text games: made once by seed, played through the guard, several at once."""

import logging

import pytest

from equipoise.errors import InputError
from equipoise.tasks import named_task
from equipoise.tasks.environments import text_world
from equipoise.tasks.environments.episode import OVER

pytestmark = pytest.mark.slow

pytest.importorskip("textworld", reason="the extra textworld is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("games")


def task_of(folder, query="games=3&held_out=1"):
    return named_task(f"textworld?{query}&folder={folder}")


def begun(task, number=0):
    row = task.train[number]
    episode = task.environment_factory()
    return episode, episode.reset(**row), row


def test_games_are_made_once_and_are_the_same_by_seed(folder, tmp_path, monkeypatch):
    rows = task_of(folder).train.to_list()
    assert len({row["game"] for row in rows}) == 3
    again = [row | {"game": None} for row in task_of(tmp_path, "games=1&held_out=0").train.to_list()]
    assert again == [rows[0] | {"game": None}]
    monkeypatch.setattr(text_world, "_make", None)  # nothing is made again
    assert task_of(folder).train.to_list() == rows
    assert not [path for path in folder.iterdir() if "-" in path.name], "no half-made file is left"


def test_the_shortest_solution_wins_and_the_wrong_one_does_not(folder):
    task = task_of(folder)
    for number in range(3):
        episode, first, row = begun(task, number)
        assert first.startswith("\n\n-= ")  # no banner, and not the goal again
        assert row["prompt"][0]["content"].startswith("Play this text game with the tool act")
        commands = row["answer"].split(", ")
        assert len(commands) == 2
        assert "Please" not in episode.act(command=commands[0])
        assert episode._score() == 0.0
        last = episode.act(command=commands[1])
        assert last.endswith(text_world.THE_END)
        assert episode.act(command="look") == text_world.OVER
        assert (episode._score(), episode.failed) == (1.0, False)


def test_what_a_model_may_say(folder):
    episode, first, row = begun(task_of(folder, "games=3&held_out=1&max_steps=20"))
    assert episode.act(command="look").strip() == first.strip()
    assert "verb" in episode.act(command="dance wildly")
    assert episode.act(command=" \n") == "a command must not be empty"
    assert "\n>" not in episode.act(command="look\nlook")
    for odd in ("ä" * 300, "look\x00", "🙂", "take " * 100):
        episode.act(command=odd)
        assert not episode.failed, episode.cause
    for text, word in (("quit", "quit"), ("SAVE", "save"), ("look. undo", "undo"), ("Restore game", "restore")):
        assert episode.act(command=text) == f"{word} is not part of the game"
    episode.reset(**row)
    assert episode.act(command="inventory").startswith("You are carrying")


def test_the_step_limit(folder):
    episode, *_ = begun(task_of(folder, "games=3&held_out=1&max_steps=2"))
    assert [episode.act(command="look") == OVER for _ in range(3)] == [False, False, True]
    assert (episode.outcome, episode._score()) == ("step_limit", 0.0)


def test_several_games_at_once_do_not_mix(folder):
    task = task_of(folder)
    begun_games = [begun(task, number % 3) for number in range(6)]
    for episode, _, row in begun_games:
        for command in row["answer"].split(", "):
            episode._begin("act", {"command": command})
    for number, (episode, _, row) in enumerate(begun_games):
        commands = row["answer"].split(", ")[: 1 + number % 2]
        said = [episode.act(command=command) for command in commands]
        assert OVER not in said, episode.cause
    assert [episode._score() for episode, *_ in begun_games] == [1.0] * 6


def test_a_game_that_is_not_there_is_a_failed_episode(folder):
    episode = task_of(folder).environment_factory()
    assert episode.reset(game="nowhere.z8") is None
    assert episode.outcome == "error"
    assert "reset raised" in episode.cause
    assert episode._score() is None


def test_points_on_the_way_of_the_simple_game(folder):
    task = task_of(folder, "games=1&held_out=0&kind=simple")
    episode, _, row = begun(task)
    scores = [0.0]
    for command in row["answer"].split(", "):
        episode.act(command=command)
        scores.append(episode._score())
    assert scores == sorted(scores)
    assert len(set(scores)) > 3
    assert scores[-1] == 1.0


def test_games_that_ask_what_is_held_out_are_not_trained_on(folder, monkeypatch, caplog):
    monkeypatch.setattr(text_world, "HELD_OUT_SEED_OFFSET", 2)  # the third game again
    with caplog.at_level(logging.WARNING):
        task = task_of(folder)
    assert len(task.train) == 2
    assert "1 of 3 training prompts are also in the held-out data" in caplog.text


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "games=0",
            "task textworld: games, rooms, objects and quest_length must be >= 1 and held_out >= 0, got games=0",
        ),
        ("held_out=-1", "held_out=-1"),
        ("kind=hard", 'kind must be "quest" or "simple", got \'hard\''),
        ("rooms=two", "task textworld: parameter rooms must be int, got 'two'"),
        ("games=1&max_steps=0", "an episode needs max_steps >= 1"),
        ("games=1&held_out=0&max_failed_fraction=2", r"max_failed_fraction must be in \(0, 1\], got 2"),
        ("room=2", "task textworld has no parameter 'room'; did you mean rooms"),
    ],
)
def test_refused_parameters(folder, query, message):
    with pytest.raises(InputError, match=message):
        task_of(folder, query)


def test_a_game_that_cannot_be_made(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(text_world, "_make", full)
    with pytest.raises(InputError, match=r"cannot make a game of \{'nb_rooms': 2.* with seed 0 in .*No space left"):
        task_of(tmp_path)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "textworld", None)
    with pytest.raises(InputError, match=r"needs its package: pip install 'equipoise\[textworld\]'"):
        task_of(tmp_path)
