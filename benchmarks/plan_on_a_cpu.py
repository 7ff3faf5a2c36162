"""What `equipoise plan` says of a run on a CPU, beside the peak of its process: a Markdown row per setting.

    OMP_NUM_THREADS=1 python benchmarks/plan_on_a_cpu.py MODEL_FOLDER [--only 0 3 5] [--dry_run]

The peak is the greatest resident set of `equipoise train` (ru_maxrss, which the kernel keeps): everything, from the
interpreter to the pages of the weights' file. Prompts all have the same number of tokens, and two updates are made: the
second finds the moments of AdamW there.
"""

import argparse
import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from equipoise import cli

GIB = 2**30
PROMPT_TOKENS, UPDATES, PROMPTS = 64, 2, 64
BALANCED = ("--clipping", "balanced", "--num_iterations", "2")
FEATURES = [*BALANCED, "--polarity", "papo", "--papo_reference_entropy", "1", "--record_tokens", "1"]
LORA, CHECKPOINTED = ["--use_peft", "true"], ["--gradient_checkpointing", "true"]


@dataclass(frozen=True)
class Setting:
    """One row: completions of a micro-batch, their length, and flags beside these."""

    rows: int
    completion: int
    flags: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Flags of `equipoise train`, without model and data."""
        sizes = f"--per_device_train_batch_size {self.rows} --max_completion_length {self.completion}"
        return [*sizes.split(), *self.flags]


SETTINGS = (
    Setting(2, 8),
    Setting(2, 64),
    Setting(8, 8),
    Setting(8, 32),
    Setting(8, 64),
    Setting(16, 32),
    Setting(16, 64),
    Setting(8, 32, tuple(FEATURES)),
    Setting(16, 64, tuple(FEATURES)),
    Setting(8, 32, tuple(CHECKPOINTED)),
    Setting(16, 64, tuple(CHECKPOINTED)),
    Setting(8, 32, ("--gradient_accumulation_steps", "2")),
    Setting(8, 32, ("--beta", "0.04")),
    Setting(2, 8, tuple(LORA)),
    Setting(8, 32, tuple(LORA)),
    Setting(16, 64, tuple(LORA)),
    Setting(16, 64, (*LORA, *FEATURES)),
    Setting(16, 64, (*LORA, *CHECKPOINTED)),
)

REWARD = '''
def letters(completions, **columns):
    """The share of letters: nearly every completion gets another value, so that every group has advantages."""
    texts = [c[0]["content"] if isinstance(c, list) else c for c in completions]
    return [sum(map(str.isalpha, text)) / max(1, len(text)) for text in texts]
'''


def main() -> None:
    """Measure the settings asked for, each in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", type=int, nargs="+", default=range(len(SETTINGS)))
    parser.add_argument("--dry_run", action="store_true", help="Print what is planned, and measure nothing.")
    options = parser.parse_args()
    print("| measured | planned | ratio | flags |\n|---:|---:|---:|---|", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_data(options.model, folder)
        for number in options.only:
            setting = SETTINGS[number]
            keys = keys_of(options.model, setting)
            measured = float("nan") if options.dry_run else peak_bytes(folder, keys, number) / GIB
            planned = planned_bytes(keys) / GIB
            flags = shlex.join(setting.arguments)
            print(f"| {measured:.2f} | {planned:.2f} | {planned / measured:.2f} | `{flags}` |", flush=True)


def write_data(model: Path, folder: Path) -> None:
    """Prompts of exactly as many tokens as said above, one message each, and a reward."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    template = (model / "chat_template.jinja").read_text(encoding="utf-8")
    rendered = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)

    def length(text: str) -> int:
        chat = rendered.render(messages=[{"role": "user", "content": text}], add_generation_prompt=True)
        return len(tokenizer.encode(chat).ids)

    texts = [f"Tell me a long story. Begin with number {number}" for number in range(PROMPTS)]
    texts = [text + " and" * (PROMPT_TOKENS - length(text)) for text in texts]
    if any(length(text) != PROMPT_TOKENS for text in texts):
        sys.exit(f"{model}: its tokenizer and chat template make no prompts of {PROMPT_TOKENS} tokens of these")
    lines = (json.dumps({"prompt": text, "answer": "none"}) + "\n" for text in texts)
    (folder / "prompts.jsonl").write_text("".join(lines))
    (folder / "plan_reward.py").write_text(REWARD)


def keys_of(model: Path, setting: Setting) -> list[str]:
    """Flags that `equipoise train` and `equipoise plan` are both given."""
    keys = f"--task data:prompts.jsonl --reward plan_reward:letters --chat true --use_cpu true --max_steps {UPDATES}"
    same = "--num_generations 2 --learning_rate 1e-6 --save_strategy no --report_to none"
    return ["--model", str(model.absolute()), *keys.split(), *same.split(), *setting.arguments]


def planned_bytes(keys: list[str]) -> int:
    """The larger of the two sums of `equipoise plan`."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = cli.main(["plan", *keys, "--prompt_tokens", str(PROMPT_TOKENS), "--json"])
    if status:
        sys.exit(status)
    made = json.loads(said.getvalue())
    return max(made["learning_bytes"], made["sampling_bytes"])


def peak_bytes(folder: Path, keys: list[str], number: int) -> int:
    """The greatest resident set of a training process."""
    log = folder / f"{number}.log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "equipoise", "train", *keys, "--output_dir", f"run{number}"]
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"equipoise train failed:\n{log.read_text()[-2000:]}")
    return usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
