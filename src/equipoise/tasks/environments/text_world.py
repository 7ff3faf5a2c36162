"""Text games that are made on this machine by TextWorld, the engine under ALFWorld (package `textworld`)."""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

from datasets import Dataset

from equipoise.errors import InputError
from equipoise.files import put
from equipoise.progress import progress_bar
from equipoise.tasks.datasets import one_line
from equipoise.tasks.environments.episode import EpisodeLimits, guarded
from equipoise.tasks.environments.reward import EpisodeReward
from equipoise.tasks.prompts import without_held_out
from equipoise.tasks.task import Task

logger = logging.getLogger("equipoise")

HELD_OUT_SEED_OFFSET = 1_000_003
ROOM = "-= "  # before the name of a room
THE_END = "*** The End ***"
MAX_COMMAND = 190  # characters
NOT_OF_THE_GAME = {"quit", "q", "restart", "restore", "save", "script", "transcript", "undo", "unscript", "verify"}
OVER = "The game is over."
INSTRUCTION = "Play this text game with the tool act, one command at a time."


class TextWorld:
    """A text game; what is seen is the answer of the game to each command."""

    def __init__(self) -> None:
        self._path, self._game, self._state, self._over = "", None, None, True

    def reset(self, game: str, **row: Any) -> str:
        """Begin a game file; returns what is seen first."""
        textworld = _package()
        if game != self._path:
            if self._game is not None:
                self._game.close()
            self._game = textworld.start(game, textworld.EnvInfos(max_score=True, won=True, lost=True))
            self._path = game
        assert self._game is not None
        self._state, self._over = self._game.reset(), False
        text = _said(self._state.feedback)
        return "\n\n" + text[max(text.find(ROOM), 0) :]  # a banner and the goal, which the prompt has, come first

    def act(self, command: str) -> str:
        """Does what a command says, and returns what happens.

        Args:
            command: such as "go east", "take key", "open box with key", "look" or "inventory".
        """
        if self._over or self._game is None:
            return OVER
        self._state, _, self._over = self._game.step(_command(command))
        return _said(self._state.feedback) or "Nothing happens."

    def get_reward(self) -> float:
        """The score as a fraction of the highest, in [0, 1]."""
        if self._state is None:
            return 0.0
        return max(0.0, self._state.score / max(self._state.max_score or 1, 1))


def _command(text: str) -> str:
    """One line that the interpreter understands; it hangs at a zero byte, and cuts longer ones with a warning."""
    words = "".join(character if character.isprintable() else " " for character in text).split()
    if not words:
        raise ValueError("a command must not be empty")
    # Anywhere in it: "look. save" is two commands in one line, and saving writes a file into the working directory.
    refused = NOT_OF_THE_GAME & set(re.findall("[a-z]+", text.casefold()))
    if refused:
        raise ValueError(f"{min(refused)} is not part of the game")
    return " ".join(words).encode("ascii", "replace").decode()[:MAX_COMMAND]


def _said(feedback: Any) -> str:
    """What the game says, without its prompt sign and without the menu after its end, which no command can reach."""
    text, end, _ = str(feedback).partition(THE_END)
    return (text + end).partition("\n>")[0].strip()


def textworld_task(
    games: int = 20,
    held_out: int = 5,
    kind: str = "quest",
    rooms: int = 2,
    objects: int = 4,
    quest_length: int = 2,
    seed: int = 0,
    max_steps: int = 12,
    max_failed_fraction: float = 0.2,
    folder: str = "",
) -> Task:
    """Games made by TextWorld, a few seconds each the first time, with its interpreter as the environment.

    Args:
        games: to train on.
        held_out: of other seeds; games that ask the same are taken out of training.
        kind: "quest", a quest in a house of its own with a point at its end, or "simple", TextWorld's own simple game
            (`tw-make tw-simple --rewards dense --goal brief`) with points on the way.
        rooms: per game; of quests.
        objects: per game; of quests.
        quest_length: commands that the shortest solution needs; of quests.
        seed: of the games.
        max_steps: commands per episode.
        max_failed_fraction: of `EpisodeReward`.
        folder: where the game files are kept; by default in the cache folder of the user.

    Returns:
        A task with columns "prompt" (one message of the user: instruction and goal), "answer" (the shortest solution)
        and "game" (the file).

    Raises:
        InputError: the package is missing, or TextWorld cannot make such games.
    """
    if min(games, rooms, objects, quest_length) < 1 or held_out < 0:
        raise ValueError(
            "games, rooms, objects and quest_length must be >= 1 and held_out >= 0, got "
            f"games={games}, rooms={rooms}, objects={objects}, quest_length={quest_length}, held_out={held_out}"
        )
    if kind not in ("quest", "simple"):
        raise ValueError(f'kind must be "quest" or "simple", got {kind!r}')
    size = {} if kind == "simple" else {"nb_rooms": rooms, "nb_objects": objects, "quest_length": quest_length}
    where = Path(folder).expanduser() if folder else _cache_folder()
    seeds = [seed + number for number in range(games)]
    seeds += [seed + HELD_OUT_SEED_OFFSET + number for number in range(held_out)]
    rows = _rows(where, size, seeds)
    train, tested = Dataset.from_list(rows[:games]), Dataset.from_list(rows[games:]) if held_out else None
    if tested is not None:
        train = without_held_out(train, tested, "textworld")
    return Task(
        name="textworld",
        train=train,
        held_out=tested,
        reward=EpisodeReward(max_failed_fraction),
        max_completion_length=None,
        environment_factory=guarded(TextWorld, EpisodeLimits(max_steps=max_steps, step_seconds=30)),
    )


def _package() -> Any:
    try:
        import textworld
    except ImportError as error:
        raise InputError(
            f"the task textworld needs its package: pip install 'equipoise[textworld]' ({one_line(error)})"
        ) from error
    return textworld


def _rows(folder: Path, size: dict[str, int], seeds: list[int]) -> list[dict[str, Any]]:
    rows = []
    with progress_bar("make games", len(seeds), "game", shown=len(seeds) >= 3) as bar:
        for seed in seeds:
            rows.append(_row(folder, size, seed))
            bar.update()
    return rows


def _row(folder: Path, size: dict[str, int], seed: int) -> dict[str, Any]:
    textworld = _package()
    name = hashlib.sha256(f"{textworld.__version__} {size} {seed}".encode()).hexdigest()[:16]
    path = folder / f"{name}.z8"
    try:
        if not path.with_suffix(".json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            _make(path, size, seed)
        game = textworld.generator.Game.load(str(path.with_suffix(".json")))
    except Exception as error:  # the compiler, the file system, or a quest that does not fit into the rooms
        raise InputError(
            f"task textworld cannot make a game of {size or 'the simple kind'} with seed {seed} in {folder} "
            f"({one_line(error)})"
        ) from error
    goal = " ".join(str(game.objective).split())
    return {
        "prompt": [{"role": "user", "content": f"{INSTRUCTION}\n\n{goal}"}],
        "answer": ", ".join(game.metadata.get("walkthrough") or []) or "unknown",
        "game": str(path),
    }


def _make(path: Path, size: dict[str, int], seed: int) -> None:
    """A game file and its description, the description last: where it is, the game is complete."""
    textworld = _package()
    from textworld.challenges.tw_simple import simple

    options = textworld.GameOptions()
    options.seeds = seed
    for name, value in size.items():
        setattr(options, name, value)
    part = path.with_name(f"{path.stem}-{os.getpid()}.z8")
    options.path = str(part)
    if size:
        textworld.make(options)
    else:
        settings: Any = {"rewards": "dense", "goal": "brief", "test": False}  # typed as text, but "test" is none
        game = simple.make(settings, options)
        textworld.generator.compile_game(game, options)
    for suffix in (".z8", ".ni", ".json"):
        made = part.with_suffix(suffix)
        if made.exists():
            put(made, path.with_suffix(suffix))


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "equipoise" / "textworld"
