"""Valid command lines of every command, and every flag that there is."""

import dataclasses
import functools
import importlib
import inspect
import shlex

from equipoise.cli import COMMANDS
from equipoise.trl.keys import known_keys

COMMAND_LINES = tuple(
    shlex.split(line)
    for line in """
    --help
    --version
    quickstart --output out --seed 1
    quickstart
    warm-start out --steps 2 --seed 3
    warm-start out --task calculator
    warm-start --help
    train --config own.yaml --model model --output_dir out --max_steps 2
    train --model model --dataset data.jsonl --reward exact --output_dir out --num_generations 4 --use_cpu true
    train --model model --task ladder --output_dir out --entropy_control clip_cov --preset wide_clip
    train --model model --task '0.5*ladder?solvable=true + data:data.jsonl' --reward exact --output_dir out
    train --resume begun --max_steps 3
    train --config own.yaml --smoke --output_dir out
    train --help
    plan --config own.yaml --model model
    plan --model model --dataset data.jsonl --reward exact --processes 8 --sharding fsdp2 --json
    plan --model model --gpu_memory 40 --prompt_tokens 64 --architecture model/config.json
    evaluate model run --dataset data.jsonl --reward exact --samples 4 --k 1 2 --output out.json out.csv
    evaluate run --prompts 2 --temperature 0.7 --batch_size 4 --max_new_tokens 3 --seed 1 --k 1
    evaluate model --dataset data.jsonl --reward exact --samples_output kept --backend transformers
    evaluate model --task ladder aime_2024
    compare study.yaml --output out --seeds 0 1 --jobs 2
    compare study.yaml --report
    probe model --dataset data.jsonl --reward exact --output out --optimizer sgd --prompts 2 --generations 2
    probe run --output out --batches 1 --temperature 1.0 --prompts 2 --chat
    report run -o out.html --title 'A title'
    report run begun --output out.html --force
    report run --live --port 0 --refresh 5
    doctor run --json
    doctor own.yaml
    doctor model --dataset data.jsonl --reward exact --chat_template_kwargs '{a: 1}'
    doctor log.jsonl
    doctor run --task ladder --probe --learning_rate 0.1
    doctor owner/name
    """.strip().splitlines()
)


@functools.cache
def flags() -> list[str]:
    """Every flag of every command, and every key of a run as one."""
    names = set(known_keys()) | {"config", "resume", "smoke", "help", "model_name_or_path", "dataset", "eval_dataset"}
    for command in COMMANDS.values():
        module, function = command.function.split(":")
        loaded = getattr(importlib.import_module(f"equipoise.commands.{module}"), function)
        names |= _names(inspect.signature(loaded, eval_str=True).parameters["options"].annotation)
    return sorted(f"--{name}" for name in names)


def _names(options: type) -> set[str]:
    found = set()
    for field in dataclasses.fields(options):
        kind = getattr(field.type, "__origin__", field.type)
        found |= _names(kind) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else {field.name}
    return found
