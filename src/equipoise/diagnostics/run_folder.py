"""What lies where in a run folder, for whoever writes or reads one.

RUN/config.yaml       the keys that were given: `equipoise train --config RUN/config.yaml` repeats the run
RUN/signature         that the user of this machine began the run with this config.yaml (`diagnostics.trust`)
RUN/resolved.yaml     every setting in force
RUN/environment.json  versions, machine, command, seed
RUN/metrics.jsonl     one line per update
RUN/evaluation.jsonl  one line per evaluation on held-out data
RUN/evaluation_samples.jsonl  every answer of the newest of them, one line per prompt
RUN/failed_episodes.jsonl  episodes that an environment spoiled, with the cause; only where there are any. Of several
                      processes each has a file: failed_episodes_1.jsonl is that of the second
RUN/tokens/           token records, with record_tokens
RUN/checkpoint-N/     to resume from
RUN/model/            the trained model, once the run is complete
"""

from pathlib import Path

from equipoise.errors import InputError
from equipoise.files import refuse_other_than_own

CONFIG_FILE, RESOLVED_FILE, ENVIRONMENT_FILE = "config.yaml", "resolved.yaml", "environment.json"
SIGNATURE_FILE = "signature"
METRICS_FILE, EVALUATION_FILE = "metrics.jsonl", "evaluation.jsonl"
EVALUATION_SAMPLES_FILE = "evaluation_samples.jsonl"
RECORDS_FOLDER, MODEL_FOLDER = "tokens", "model"

CHECKPOINT_PREFIX = "checkpoint-"  # the name is transformers'
CHECKPOINT_MARKER = "equipoise.json"
"""In a checkpoint of equipoise, written last: one without it is not whole, or of another trainer."""

CHECKPOINT_BEGUN = "equipoise.unfinished"
"""In a checkpoint that equipoise has begun to write; gone once it is whole. Only what bears it may be cleared away."""

HOST_STATE = "trainer_state.json"
"""In every checkpoint of transformers' trainers, one of the last files that they write."""


def is_run_folder(name: str | Path) -> bool:
    """Whether a run was begun there."""
    return (Path(name) / CONFIG_FILE).is_file()


def check_writable(run_folder: str | Path) -> None:
    """Refuse a run folder in which what a run adds to lies elsewhere, behind a link, or is no file.

    What is replaced as a whole, such as a checkpoint or the model, takes the place of a link instead.

    Raises:
        InputError: naming the link and where it leads.
    """
    folder = Path(run_folder)
    for name in (METRICS_FILE, EVALUATION_FILE):
        refuse_other_than_own(folder / name)
    refuse_other_than_own(folder / RECORDS_FOLDER, folder=True)
    for path in (*folder.glob("failed_episodes*.jsonl"), *folder.glob(f"{RECORDS_FOLDER}/*.parquet")):
        refuse_other_than_own(path)


def checkpoint_folder(run_folder: str | Path, update: int) -> Path:
    """Where the checkpoint after an update lies."""
    return Path(run_folder) / f"{CHECKPOINT_PREFIX}{update}"


def run_and_checkpoint(folder: Path) -> tuple[Path, Path | None]:
    """The run folder that is meant, and its checkpoint, where a folder of one or the other may be given."""
    if folder.name.startswith(CHECKPOINT_PREFIX) and is_run_folder(folder.parent):
        return folder.parent, folder
    return folder, None


def failed_episodes_file(rank: int) -> str:
    """In a run folder: the episodes of one process that an environment spoiled; two writers would mix their lines."""
    return f"failed_episodes_{rank}.jsonl" if rank else "failed_episodes.jsonl"


def rollout_file(rank: int | str) -> str:
    """In a checkpoint: the rollout batch in use, of one process."""
    return f"rollout_{rank}.pt"


def replay_file(rank: int) -> str:
    """In a checkpoint: the replay buffer and the unfinished trajectories of one process."""
    return f"replay_{rank}.pt"


def checkpoint_folders(run_folder: str | Path) -> list[Path]:
    """The checkpoints of a run by their updates, unfinished ones too."""
    found = [folder for folder in Path(run_folder).glob(f"{CHECKPOINT_PREFIX}*") if folder.is_dir()]
    updates = {folder: folder.name.removeprefix(CHECKPOINT_PREFIX) for folder in found}
    return sorted((f for f in found if updates[f].isdecimal()), key=lambda folder: int(updates[folder]))


def is_complete(checkpoint: Path) -> bool:
    """Whether equipoise wrote the checkpoint to its end."""
    return (checkpoint / CHECKPOINT_MARKER).is_file() and not is_begun(checkpoint)


def is_begun(checkpoint: Path) -> bool:
    """Whether equipoise began to write the checkpoint, and was interrupted or goes on."""
    return (checkpoint / CHECKPOINT_BEGUN).is_file()


def is_foreign(checkpoint: Path) -> bool:
    """Whether another trainer of transformers wrote the checkpoint, such as TRL's GRPOTrainer.

    One of equipoise that has lost its marker is not: the state of the rollout batch tells whose it is.
    """
    ours = is_complete(checkpoint) or is_begun(checkpoint) or any(checkpoint.glob(rollout_file("*")))
    return not ours and (checkpoint / HOST_STATE).is_file()


def latest_checkpoint(run_folder: str | Path, *, foreign: bool = False) -> Path | None:
    """The newest complete checkpoint of a run, or None; with `foreign`, one of another trainer counts as well."""
    found = checkpoint_folders(run_folder)
    usable = [folder for folder in found if is_complete(folder) or (foreign and is_foreign(folder))]
    return usable[-1] if usable else None


def trained_model(run_folder: Path) -> Path:
    """The model of a run: the final one, or that of its newest complete checkpoint.

    Raises:
        InputError: there is none yet.
    """
    if (run_folder / MODEL_FOLDER).is_dir():
        return run_folder / MODEL_FOLDER
    latest = latest_checkpoint(run_folder)
    if latest is None:
        raise InputError(f"run folder {run_folder} has no model yet: no complete checkpoint")
    return latest


def model_of(name: str) -> str:
    """The model that is meant where a run folder, a model folder or a hub id may be given.

    Raises:
        InputError: a run without a model yet.
    """
    return str(trained_model(Path(name))) if is_run_folder(name) else name
