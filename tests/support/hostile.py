"""Run folders, models and files from somebody else, each of which would leave a trace if anything in it were run."""

import json
import pickle
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml
from command_line import REWARDS, arguments

from equipoise.cli import main
from equipoise.diagnostics.run_folder import CONFIG_FILE, SIGNATURE_FILE


class Trace:
    """A file that code from elsewhere makes when it is run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "it-ran"

    @property
    def is_left(self) -> bool:
        return self.path.exists()

    @property
    def code(self) -> str:
        """Source that leaves it."""
        return f"open({str(self.path)!r}, 'w').close()\n"

    @property
    def pickled(self) -> bytes:
        """A pickle that leaves it when it is read."""
        return pickle.dumps(_Leaving(self.path))


@pytest.fixture
def trace(workplace):
    """Of what runs in a user's directory."""
    return Trace(workplace)


class _Leaving:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


_made: dict[tuple, Path] = {}


def trained(*, anew: bool = False, **changes) -> Path:
    """A short run in the current directory, with checkpoints to resume from: begun here, by this user.

    It is trained once for all tests, and copied: whose it is does not depend on its place.
    """
    key = tuple(sorted(changes.items()))
    if anew or key not in _made:
        keys = {"evaluate_every": None, "clipping": None, "polarity": None, "num_iterations": 1} | changes
        assert main(arguments(**{"max_steps": 2, "save_steps": 1, **keys})) == 0
        if not anew:
            _made[key] = Path(tempfile.mkdtemp(prefix="equipoise-run-"), "run")
            shutil.copytree("run", _made[key])
    else:
        shutil.copytree(_made[key], "run")
    return Path("run")


def as_of_somebody_else(folder: Path, name: str, **changes) -> Path:
    """A copy of a run folder as it comes from another machine, with other keys in its configuration."""
    copy = Path(name)
    shutil.copytree(folder, copy)
    (copy / SIGNATURE_FILE).unlink(missing_ok=True)
    if changes:
        keys = yaml.safe_load((copy / CONFIG_FILE).read_text()) | changes
        keys = {key: value for key, value in keys.items() if value is not None}
        (copy / CONFIG_FILE).write_text(yaml.safe_dump(keys))
    return copy


def leaving_module(trace: Trace, name: str) -> None:
    """A module in the current directory that leaves a trace when it is imported."""
    Path(f"{name}.py").write_text(trace.code + REWARDS + "\nclass World:\n    pass\n")


def with_code_of_its_own(model: Path, trace: Trace) -> None:
    """Gives a model folder classes of its own, as trust_remote_code takes them: model, configuration and tokenizer."""
    (model / "own.py").write_text(
        trace.code
        + "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        + "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        + "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        + "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    for file, changes in (
        ("config.json", {"model_type": "own", "auto_map": auto}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}),
    ):
        values = json.loads((model / file).read_text()) | changes
        (model / file).write_text(json.dumps(values))
