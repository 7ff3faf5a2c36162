"""What token records cost a training step: CPU time of the training thread inside the recorder, and of its own thread.

    equipoise warm-start runs/base
    python benchmarks/record_overhead.py runs/base [--every 10]

CPU time, because on a busy machine the clock of two runs differs by more than what is measured.
"""

import argparse
import tempfile
import time
from pathlib import Path

from equipoise.settings.reading import read_yaml
from equipoise.trl import run
from equipoise.trl.keys import checked_keys
from equipoise.trl.token_recording import TokenRecording
from equipoise.trl.trainer import EquipoiseTrainer

RECIPE = Path(__file__).parents[1] / "recipes" / "ladder_stale_equipoise.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--updates", type=int, default=81)
    options = parser.parse_args()
    spent = {"inside": 0.0, "training": 0.0, "process": 0.0}

    def timed(function, name):
        def call(*args, **kwargs):
            begin, whole = time.thread_time(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.thread_time() - begin
                if name == "training":
                    spent["process"] += time.process_time() - whole

        return call

    for name in ("record", "samples", "close", "on_train_begin"):
        setattr(TokenRecording, name, timed(getattr(TokenRecording, name), "inside"))
    EquipoiseTrainer.train = timed(EquipoiseTrainer.train, "training")
    with tempfile.TemporaryDirectory() as place:
        changes = {
            "model": options.model, "output_dir": f"{place}/run", "max_steps": options.updates, "evaluate_every": 0,
            "evaluate_prompts": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
            "record_tokens": options.every,
        }  # fmt: skip
        run.train(checked_keys(read_yaml(RECIPE) | changes, ""))
    training, others = spent["training"], spent["process"] - spent["training"]
    print(f"training thread: {training:.2f} s CPU for {options.updates} updates, every {options.every} recorded")
    print(f"in the recorder: {spent['inside']:.4f} s, {spent['inside'] / training:.2%} of it")
    print(f"all other threads together: {others:.3f} s, {others / training:.2%}")


if __name__ == "__main__":
    main()
