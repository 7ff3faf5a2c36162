"""The reward of episodes: failed ones are neutral, recorded, and end the run when there are too many."""

import json
import logging

import pytest

from equipoise.errors import InputError
from equipoise.tasks.environments import EpisodeReward, EpisodesFailedError, guarded


class Scored:
    """Has the score that its row says."""

    def reset(self, score=0.0, **row):
        """Takes the score."""
        self.score = score

    def look(self) -> str:
        """Looks."""
        if self.score is None:
            raise OSError("no game")
        return "a room"

    def get_reward(self):
        """The score."""
        return self.score


def episodes(*scores):
    """Episodes of one step each; None for one that fails."""
    result = [guarded(Scored)() for _ in scores]
    for episode, score in zip(result, scores, strict=True):
        episode.reset(score=score)
        episode.look()
    return result


def rewarded(reward, prompts, *scores, **columns):
    completions = [[{"role": "assistant", "content": ""}]] * len(scores)
    return reward(prompts=list(prompts), completions=completions, environments=episodes(*scores), **columns)


def test_a_failed_episode_has_the_mean_of_the_others_of_its_prompt():
    reward = EpisodeReward(max_failed_fraction=1)
    prompts = [[{"role": "user", "content": text}] for text in "aaabbcc"]
    assert rewarded(reward, prompts, 1.0, None, 0.5, 3.0, 0.0, None, None) == [1.0, 0.75, 0.5, 3.0, 0.0, 0.0, 0.0]
    assert reward.last_scores == [1.0, None, 0.5, 3.0, 0.0, None, None]


def test_outcomes_are_logged_and_failed_episodes_written(tmp_path, caplog):
    reward, logged, extra = EpisodeReward(1, tmp_path / "failed.jsonl"), {}, {}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            rewarded(reward, "ab", 1.0, None, log_metric=logged.__setitem__, log_extra=extra.__setitem__)
    assert logged == {
        "episodes/step_limit_fraction": 0.0, "episodes/timeout_fraction": 0.0, "episodes/error_fraction": 0.5,
        "episodes/nonsense_fraction": 0.0, "episodes/steps_mean": 1.0,
    }  # fmt: skip
    assert extra == {"episode": ["open", "look raised OSError: no game"]}
    rows = [json.loads(line) for line in (tmp_path / "failed.jsonl").read_text().splitlines()]
    assert rows == [{"outcome": "error", "cause": "look raised OSError: no game", "steps": 1, "prompt": "'b'"}] * 2
    assert caplog.messages == ["An episode failed (error): look raised OSError: no game."], "each cause once"


def test_too_many_failed_episodes_end_the_run_with_their_causes():
    reward = EpisodeReward(max_failed_fraction=0.25)
    assert rewarded(reward, "a" * 8, *[None] * 8) == [0.0] * 8, "too few to judge"
    rewarded(reward, "b" * 24, *[1.0] * 24)  # 8 of 32 is not more than a quarter
    with pytest.raises(EpisodesFailedError) as caught:
        rewarded(reward, "c", None)
    assert str(caught.value) == (
        "27% of the last 33 episodes failed by their environment, more than max_failed_fraction=0.25: "
        "9x look raised OSError: no game"
    )


@pytest.mark.slow
def test_only_recent_episodes_are_judged():
    reward = EpisodeReward(max_failed_fraction=0.5)
    rewarded(reward, "a" * 300, *[1.0] * 300)
    rewarded(reward, "b" * 128, *[None] * 128)
    with pytest.raises(EpisodesFailedError, match="50% of the last 256"):  # 129 of 256
        rewarded(reward, "c", None)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_the_share_must_be_a_share(fraction):
    with pytest.raises(InputError, match=r"max_failed_fraction must be in \(0, 1\], got"):
        EpisodeReward(fraction)
