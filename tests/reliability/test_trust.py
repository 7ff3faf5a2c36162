"""A run folder from somebody else is safe to look at, and its code is run where the user has said so."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import arguments, refusal
from hostile import as_of_somebody_else, leaving_module, trained, with_code_of_its_own

from equipoise.cli import main
from equipoise.commands.trusting import TrustOptions
from equipoise.diagnostics import trust
from equipoise.diagnostics.run_folder import CONFIG_FILE, SIGNATURE_FILE
from equipoise.diagnostics.trust import UntrustedError, is_own, named_code, require_trust, sign
from equipoise.errors import InputError
from equipoise.trl import run

SMALL = ["--samples", "2", "--k", "1", "--prompts", "2", "--max_new_tokens", "2"]
PROBE = ["--prompts", "2", "--generations", "2", "--batches", "1", "--max_new_tokens", "2"]


def evaluate(folder, *more):
    return ["evaluate", str(folder), *SMALL, *more]


def probe(folder, *more):
    return ["probe", str(folder), *PROBE, *more]


def resume(folder, *more):
    return ["train", "--resume", str(folder), "--max_steps", "3", *more]


def of_somebody_else(folder):
    return as_of_somebody_else(folder, "theirs")


def with_a_signature_of_somebody_else(folder):
    copy = as_of_somebody_else(folder, "theirs")
    (copy / SIGNATURE_FILE).write_text("0" * 64 + "\n")
    return copy


def with_a_signature_that_is_none(folder):
    copy = as_of_somebody_else(folder, "theirs")
    (copy / SIGNATURE_FILE).write_bytes(b"\xff\xfe")
    return copy


def with_a_changed_configuration(folder):
    signature = (folder / SIGNATURE_FILE).read_bytes()
    copy = as_of_somebody_else(folder, "theirs", reward="judges:short")
    (copy / SIGNATURE_FILE).write_bytes(signature)
    return copy


FOREIGN = [of_somebody_else, with_a_signature_of_somebody_else, with_a_signature_that_is_none,
           with_a_changed_configuration]  # fmt: skip


# ---- whole commands -------------------------------------------------------------------------------------------------


@pytest.fixture
def own(workplace, trace):
    """A run that this user has begun, with a reward that leaves a trace from now on."""
    folder = trained(reward="judges:digits")
    sys.modules.pop("judges", None)
    leaving_module(trace, "judges")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("made", FOREIGN)
def test_code_of_a_folder_from_somebody_else_is_not_run_unasked(own, trace, capsys, made):
    theirs = made(own)
    for command in (evaluate, probe, resume):
        line = refusal(command(theirs), capsys)
        assert f"--trust {theirs}" in line
        assert "judges:" in line
        assert not trace.is_left, command
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", [evaluate, probe, resume])
def test_the_users_own_run_and_one_that_was_moved_are_taken_up_unasked(own, trace, command):
    own.rename("moved")
    assert main(command("moved")) == 0
    assert trace.is_left


@pytest.mark.slow
@pytest.mark.parametrize("command", [evaluate, probe, resume])
def test_a_folder_that_is_trusted_by_name_runs_and_another_name_does_not_help(own, trace, capsys, command):
    theirs = of_somebody_else(own)
    for other in (own, Path("nowhere"), theirs / "checkpoint-1"):
        assert str(other) in refusal(command(theirs, "--trust", str(other)), capsys)
    assert not trace.is_left
    assert main(command(theirs, "--trust", str(theirs.resolve()))) == 0
    assert trace.is_left
    assert is_own(theirs) is (command is resume), "who resumes a run has taken it as his own"


@pytest.mark.slow
def test_what_was_given_on_this_command_line_is_the_users_word(own, trace, capsys):
    theirs = of_somebody_else(own)
    Path("mine.py").write_text(Path("judges.py").read_text().replace(trace.code, ""))
    assert main(evaluate(theirs, "--reward", "mine:digits")) == 0
    assert main(probe(theirs, "--reward", "mine:digits")) == 0
    assert not trace.is_left
    assert main(resume(theirs, "--reward", "judges:digits")) == 0
    assert trace.is_left
    sys.modules.pop("mine", None)


def found(capsys, *words):
    """The findings of the doctor, by name."""
    capsys.readouterr()
    main(["doctor", "--json", *map(str, words)])
    return {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}


@pytest.mark.slow
def test_looking_runs_nothing_whoever_wrote_the_folder(own, trace, capsys):
    for folder in (own, of_somebody_else(own)):
        for target in (folder, folder / CONFIG_FILE):
            verifier = found(capsys, target)["verifier self-test"]
            assert verifier["severity"] == "not checked"
            assert "judges:digits" in verifier["evidence"]
            assert "--reward" in verifier["evidence"]
        assert main(["report", str(folder), "-o", f"{folder.name}.html"]) == 0
        main(["plan", "--config", str(folder / CONFIG_FILE)])
    assert not trace.is_left
    assert "--trust theirs" in found(capsys, "theirs", "--probe")["learning rate and first order"]["evidence"]
    assert not trace.is_left
    assert found(capsys, "theirs", "--reward", "judges:digits")["verifier self-test"]["severity"] != "not checked"
    assert trace.is_left


@pytest.mark.slow
def test_nothing_is_asked_where_no_code_is_named(workplace):
    theirs = as_of_somebody_else(trained(reward="exact"), "theirs")
    assert not is_own(theirs)
    assert main(evaluate(theirs)) == 0
    assert main(resume(theirs)) == 0


@pytest.mark.slow
def test_other_keys_that_name_code_ask_before_a_run_goes_on(workplace, trace, capsys):
    folder = trained(reward="exact")
    leaving_module(trace, "worlds")
    for number, keys in enumerate(
        (
            {"environment": "worlds:World", "reward": None, "chat": True, "eval_task": None},
            {"trust_remote_code": True},
            {"model_init_kwargs": {"trust_remote_code": True}},
            {"model_init_kwargs": {"attn_implementation": "somebody/kernels"}},
            {"reward": "exact + 0.1*worlds:digits"},
        )
    ):
        theirs = as_of_somebody_else(folder, f"theirs{number}", **keys)
        assert f"--trust {theirs}" in refusal(resume(theirs), capsys)
        main(["doctor", str(theirs)])
        main(["report", str(theirs), "-o", f"{number}.html"])
    assert not trace.is_left


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pytorch_model_fsdp_0", "global_step1"])
def test_sharded_checkpoints_which_their_library_unpickles_ask_too(workplace, capsys, name):
    theirs = as_of_somebody_else(trained(reward="exact"), "theirs")
    (theirs / "checkpoint-2" / name).mkdir()
    line = refusal(resume(theirs), capsys)
    assert "pickles in checkpoint-2" in line
    assert "--trust theirs" in line


# ---- code of models -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_code_of_a_model_folder_is_not_run(workplace, trace, capsys):
    with_code_of_its_own(Path("model"), trace)
    for words in (
        ["evaluate", "model", "--task", "ladder", *SMALL], ["probe", "model", "--task", "ladder", *PROBE],
        ["doctor", "model", "--task", "ladder"], ["plan", "--model", "model", "--task", "ladder"],
        arguments(output_dir="new", reward="exact"),
    ):  # fmt: skip
        assert "model" in refusal(words, capsys)
        assert not trace.is_left, words


@pytest.mark.slow
def test_the_code_of_a_runs_model_is_run_where_its_key_says_so_and_the_folder_is_named(workplace, trace, capsys):
    own = trained(reward="exact", trust_remote_code="true")
    with_code_of_its_own(own / "model", trace)
    for folder in (own, as_of_somebody_else(own, "theirs")):
        refusal(evaluate(folder), capsys)
        refusal(probe(folder), capsys)
        refusal(["doctor", str(folder / "model")], capsys)
    assert not trace.is_left
    main(evaluate("theirs", "--trust", "theirs"))
    assert trace.is_left


# ---- the current directory ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_one_stands_in_lends_no_module(workplace, trace):
    """Neither one in the place of an installed package, nor one in that of a package that is not."""
    theirs = as_of_somebody_else(trained(reward="exact"), "theirs")
    for package in ("vllm", "trackio", "deepspeed", "kernels", "peft", "yaml", "torch", "numpy", "sitecustomize"):
        (theirs / f"{package}.py").write_text(trace.code)
    for words in (["doctor", "."], ["report", ".", "-o", "page.html"], ["evaluate", ".", *SMALL, "--backend", "vllm"]):
        program = [sys.executable, "-m", "equipoise"]
        ended = subprocess.run([*program, *words], cwd=theirs, capture_output=True, text=True, timeout=300)
        assert "Traceback" not in ended.stderr
        assert not trace.is_left, (words, ended)


def test_the_path_is_as_before_once_a_command_has_ended(workplace, capsys):
    before = list(sys.path)
    assert main(["train", "--task", "ladder", "--reward", "judges:nothing_of_the_kind"]) == 2
    assert main(["doctor", "nowhere"]) == 2
    assert sys.path == before


# ---- what names code ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"reward": "a:b"}, {"reward": "math + 0.5*a:b"}, {"reward": "0.5*a.b.c:d + length?max=3"},
        {"reward": "a:b?x=1"}, {"environment": "a:B"}, {"trust_remote_code": True},
        {"model_init_kwargs": {"trust_remote_code": True}}, {"model_init_kwargs": "{trust_remote_code: true}"},
        {"model_init_kwargs": {"attn_implementation": "a/b"}}, {"generation_kwargs": {"custom_generate": "a/b"}},
        {"model_init_kwargs": {"use_kernels": True}}, {"task": "textworld?folder=games"},
        {"model_init_kwargs": {"attn_implementation": {"text_config": "sdpa", "vision_config": "a/b"}}},
        {"model_init_kwargs": {"experts_implementation": ["a/b"]}},
        {"model_init_kwargs": {"trust_remote_code": {"a": 1}}}, {"model_init_kwargs": [{"custom_generate": "a/b"}]},
    ],
)  # fmt: skip
def test_keys_that_name_code(keys):
    (told,) = named_code({"task": "data:x.jsonl"} | keys)
    with pytest.raises(UntrustedError, match="--trust"):
        require_trust(Path("theirs"), [told])
    require_trust(Path("theirs"), [told], given=[told])
    require_trust(Path("theirs"), [told], trusted=[Path("theirs")])


@pytest.mark.parametrize(
    "keys",
    [
        {}, {"reward": None}, {"reward": "math + 0.1*format?style=boxed"}, {"environment": None},
        {"trust_remote_code": False}, {"model_init_kwargs": {"attn_implementation": "sdpa"}},
        {"task": "0.5*ladder + reasoning_gym:chain_sum?min_terms=2"}, {"task": "textworld?rooms=2"},
        {"model_init_kwargs": {"trust_remote_code": False}},
        {"model_init_kwargs": {"attn_implementation": {"": "eager", "text_config": "sdpa"}, "trust_remote_code": {}}},
    ],
)  # fmt: skip
def test_keys_that_name_none(keys):
    assert named_code(keys) == []
    require_trust(Path("theirs"), [])


@pytest.mark.parametrize("place", ["loop", "run/config.yaml", "run/model", ".", "..", "nowhere", "", "other"])
def test_only_the_run_itself_can_be_trusted(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    signed(tmp_path / "run")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="--trust .* is none of the run folders"):
        TrustOptions(trust=(Path("run"), Path(place))).check(["run"])
    (tmp_path / "link").symlink_to("run")
    TrustOptions(trust=(Path("run"), Path("link"), tmp_path / "other" / ".." / "run", Path("run"))).check(["run"])


# ---- signatures -----------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A user without a key."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def signed(folder, text="reward: a:b\n"):
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(text)
    sign(folder, text)
    return folder


def test_a_signature_is_of_the_content_and_of_the_user(tmp_path, state, monkeypatch):
    folder = signed(tmp_path / "run")
    assert is_own(folder)
    assert is_own(folder.rename(tmp_path / "moved"))
    (tmp_path / "moved" / CONFIG_FILE).write_text("reward: a:c\n")
    assert not is_own(tmp_path / "moved")
    (tmp_path / "moved" / CONFIG_FILE).write_text("reward: a:b\n")
    assert is_own(tmp_path / "moved")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    assert not is_own(tmp_path / "moved")
    signed(tmp_path / "run")
    assert not is_own(tmp_path / "moved"), "another user with a key of his own"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "itself", "long", "no text", "empty", "of another run"])
@pytest.mark.timeout(20)
def test_a_signature_that_is_none_is_not_waited_for(tmp_path, state, kind):
    folder, other = signed(tmp_path / "run"), signed(tmp_path / "other", "reward: a:c\n")
    place = folder / SIGNATURE_FILE
    content = place.read_bytes()
    place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind in ("device", "itself"):
        place.symlink_to("/dev/zero" if kind == "device" else place.name)
    else:
        of = {"long": content + b" " * 2000, "no text": b"\xff" + content, "empty": b""}
        place.write_bytes(of[kind] if kind in of else (other / SIGNATURE_FILE).read_bytes())
    assert not is_own(folder)
    if kind == "of another run":
        (folder / CONFIG_FILE).write_text("reward: a:c\n")
        assert is_own(folder)  # it is what this user has begun, wherever it lies


def test_the_key_is_of_this_user_alone(tmp_path, state):
    signed(tmp_path / "run")
    (key,) = (state / "equipoise").iterdir()
    assert len(key.read_bytes()) == trust.KEY_BYTES
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.read_bytes() not in (tmp_path / "run" / SIGNATURE_FILE).read_bytes()
    signed(tmp_path / "other")
    assert is_own(tmp_path / "run")


def test_a_damaged_key_is_replaced_and_says_nothing_of_older_runs(tmp_path, state):
    signed(tmp_path / "run")
    (key,) = (state / "equipoise").iterdir()
    key.write_bytes(b"")
    assert not is_own(tmp_path / "run")
    assert is_own(signed(tmp_path / "other"))


def test_where_no_key_can_be_made_nothing_is_signed(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert not is_own(signed(tmp_path / "run"))
    assert not (tmp_path / "run" / SIGNATURE_FILE).exists()


def test_processes_that_make_the_key_at_once_make_one(tmp_path, state):
    code = f"import sys; sys.path[:] = {sys.path!r}; from equipoise.diagnostics.trust import _key, _new_key; "
    code += "print((_key() or _new_key()).hex())"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate(timeout=120)[0] for process in started}) == 1
    assert len(list((state / "equipoise").iterdir())) == 1


@pytest.mark.slow
def test_a_run_is_signed_once_and_says_so_of_what_it_wrote(workplace):
    folder = trained(reward="exact")
    assert is_own(folder)
    assert yaml.safe_load((folder / CONFIG_FILE).read_text())["reward"] == "exact"
    (folder / CONFIG_FILE).write_text((folder / CONFIG_FILE).read_text() + "# mine\n")
    assert not is_own(folder)


@pytest.mark.slow
def test_a_run_without_a_home_to_keep_a_key_in_works_and_asks_later(workplace, monkeypatch, capsys):
    Path("file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(Path("file").resolve()))
    folder = trained(anew=True, reward="judges:digits")
    assert "--trust run" in refusal(evaluate(folder), capsys)
    with pytest.raises(UntrustedError):
        run.resume(folder, {})
    assert os.listdir(folder)
    assert main(evaluate(folder, "--trust", "run")) == 0
