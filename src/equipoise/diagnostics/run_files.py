"""The names of all files of a run folder: whoever writes or reads one takes its name from here.

RUN/config.yaml            the keys that were given: `equipoise train --config RUN/config.yaml` repeats the run
RUN/resolved.yaml          every setting in force
RUN/environment.json       versions, machine, command, seed
RUN/metrics.jsonl          one line per update
RUN/evaluation.jsonl       one line per evaluation on held-out data
RUN/failed_episodes.jsonl  episodes that an environment spoiled, with the cause; only where there are any
RUN/tokens/                token records, with record_tokens
RUN/checkpoint-N/          to resume from, after update N
RUN/model/                 the trained model, once the run is complete

A checkpoint holds what its host saves and, of ours, equipoise.json (written last: without it the checkpoint is not
whole), and of every process its rollout batch and its replay buffer.
"""

from pathlib import Path

CONFIG_FILE, RESOLVED_FILE, ENVIRONMENT_FILE = "config.yaml", "resolved.yaml", "environment.json"
METRICS_FILE, EVALUATION_FILE = "metrics.jsonl", "evaluation.jsonl"
FAILED_EPISODES_FILE = "failed_episodes.jsonl"
RECORDS_FOLDER, MODEL_FOLDER = "tokens", "model"
CHECKPOINT_PREFIX = "checkpoint-"  # the name is transformers'
MARKER_FILE = "equipoise.json"


def checkpoint_folder(run_folder: str | Path, update: int) -> Path:
    """Where the checkpoint after an update lies."""
    return Path(run_folder) / f"{CHECKPOINT_PREFIX}{update}"


def checkpoint_folders(run_folder: str | Path) -> list[Path]:
    """All checkpoints of a run, whole or not, the oldest first."""
    found = [f for f in Path(run_folder).glob(CHECKPOINT_PREFIX + "*") if f.is_dir() and _update(f).isdecimal()]
    return sorted(found, key=lambda folder: int(_update(folder)))


def rollout_file(rank: int) -> str:
    """In a checkpoint: the rollout batch in use, of one process."""
    return f"rollout_{rank}.pt"


def replay_file(rank: int) -> str:
    """In a checkpoint: the replay buffer and the unfinished trajectories of one process."""
    return f"replay_{rank}.pt"


def is_finished(run_folder: str | Path) -> bool:
    """Whether the run is complete: its model is there."""
    return (Path(run_folder) / MODEL_FOLDER).is_dir()


def _update(folder: Path) -> str:
    return folder.name.removeprefix(CHECKPOINT_PREFIX)
