"""A short run of the command line that is interrupted, and what is compared when it has been resumed."""

import json
import shutil
from pathlib import Path

import forked_commands
from command_line import arguments, run_lines, untimed

from equipoise.diagnostics.records import read_records
from equipoise.diagnostics.run_folder import checkpoint_folders, is_complete

RUN = arguments(
    save_total_limit=2, record_tokens=1, lr_scheduler_type="cosine", replay_fraction=0.5, num_iterations=1,
    steps_per_generation=2,
)  # fmt: skip
RESUME = ["train", "--resume", "run"]


def copied(workplace: Path, place: Path) -> Path:
    """The user's directory once more, without the runs that were made in it."""
    shutil.copytree(workplace, place, ignore=shutil.ignore_patterns("run", "__pycache__"))
    return place


def finished(place: Path) -> None:
    """Resumes the run of an interrupted command, or starts it again where no checkpoint was whole, to its end."""
    if forked_commands.run(RESUME, place) == 0:
        return
    said = forked_commands.output(place)
    assert "Traceback" not in said
    assert "has no complete checkpoint to resume from" in said or "is no run folder" in said, said
    assert not any(map(is_complete, checkpoint_folders(place / "run")))
    if (place / "run").exists():
        shutil.rmtree(place / "run")
    assert forked_commands.run(RUN, place) == 0, forked_commands.output(place)


def outcome(place: Path) -> dict:
    """Everything of a finished run that does not tell the time."""
    run = place / "run"
    records = read_records(run).drop_columns(["run"]).to_pylist()
    return {
        "weights": (run / "model" / "model.safetensors").read_bytes(),
        "metrics": [untimed(line) for line in run_lines(run / "metrics.jsonl")],
        "evaluations": [untimed(line) for line in run_lines(run / "evaluation.jsonl")],
        "records": sorted(map(json.dumps, records)),
        "folders": sorted(p.name for p in run.iterdir() if p.name != "tokens"),
        "complete": [folder.name for folder in checkpoint_folders(run) if is_complete(folder)],
        "left over": [str(p) for p in run.rglob("*.part")],
    }
