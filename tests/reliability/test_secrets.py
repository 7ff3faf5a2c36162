"""Keys, tokens and passwords reach no file, no page, no log and no message of ours."""

import json
import logging
import pickle
import sys
from pathlib import Path

import pytest
import yaml
from command_line import arguments, refusal
from hypothesis import given
from hypothesis import strategies as st

from equipoise.cli import main
from equipoise.diagnostics.run_folder import CONFIG_FILE, ENVIRONMENT_FILE, RESOLVED_FILE
from equipoise.errors import InputError
from equipoise.redaction import (
    REDACTED,
    WithoutSecrets,
    is_redacted,
    is_secret_name,
    redacted,
    redacted_words,
    without_secrets,
)
from equipoise.trl.config import EquipoiseConfig
from equipoise.trl.keys import known_keys, with_secrets

HUB = "hf_" + "aB3dE5gH7jK9mN1pQ2rS"
FORMS = {
    "Hugging Face": HUB,
    "OpenAI": "sk-proj-abc123DEF456ghi789JKL",
    "Anthropic": "sk-ant-api03-abcDEF123_456-xyz",
    "GitHub": "ghp_" + "a1B2" * 9,
    "GitHub, fine": "github_pat_" + "a1B2" * 9,
    "GitLab": "glpat-abcdefghij0123456789",
    "AWS": "AKIA" + "ABCDEFGH12345678",
    "Google": "AIza" + "Sy0123456789abcdefghijklmnopqrstuvw",
    "Slack": "xoxb-123456789012-abcdefghij",
    "wandb": "wandb_v1_" + "abcd1234" * 4,
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
}
NAMES = [
    "hub_token", "hub-token", "HF_TOKEN", "token", "api_key", "apiKey", "OPENAI_API_KEY", "wandb_key", "clientSecret",
    "client_secret", "AWS_SECRET_ACCESS_KEY", "password", "db.password", "PASSWD", "passphrase", "credentials",
    "access_token", "accessToken", "auth_token", "refresh_tokens", "Authorization", "private_key", "ssh_key", "pass",
]  # fmt: skip
HARMLESS = [
    "eos_token", "pad_token", "stop_token", "image_token", "max_tokens", "num_tokens", "tokens", "record_tokens",
    "rollout_token_budget", "metric_key", "answer_key", "sort_key", "key", "pad_token_id", "tokenizer", "monkey",
    "pass_at", "keyboard", "revision", "model", "author", "path",
]  # fmt: skip


# ---- one function ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_names_of_secrets(name):
    assert is_secret_name(name)
    assert redacted({name: "zebra"}) == {name: REDACTED}
    assert redacted({"a": [{name: ["zebra"]}]}) == {"a": [{name: [REDACTED]}]}
    assert redacted({name: {"user": "zebra"}}) == {name: {"user": REDACTED}}
    assert "zebra" not in str(redacted({"model_init_kwargs": f'{{"{name}": "zebra"}}'}))


@pytest.mark.parametrize("name", HARMLESS)
def test_names_that_only_look_like_it(name):
    assert not is_secret_name(name)
    assert redacted({name: "zebra"}) == {name: "zebra"}


def test_of_the_keys_of_a_run_one_is_a_secret():
    assert [key for key in known_keys() if is_secret_name(key)] == ["hub_token"]


@pytest.mark.parametrize("value", [None, "", True, False])
def test_nothing_is_taken_out_where_nothing_is(value):
    assert redacted({"hub_token": value}) == {"hub_token": value}


def test_numbers_of_a_vocabulary_stay_and_numeric_passwords_do_not():
    assert redacted({"some_token": 7, "password": 1234, "flag_token": "7"}) == {
        "some_token": 7, "password": REDACTED, "flag_token": "7",
    }  # fmt: skip


@pytest.mark.parametrize("secret", FORMS.values(), ids=FORMS)
def test_forms_of_secrets_wherever_they_stand(secret):
    for shown in (
        redacted({"note": secret}), redacted([secret]), redacted({"a": {"b": f"see {secret} here"}}),
        redacted_words(["x", secret]), redacted_words([f"--note={secret}"]), without_secrets(f"it was {secret}."),
    ):  # fmt: skip
        assert secret not in str(shown)
        assert REDACTED in str(shown)


@pytest.mark.parametrize(
    "address",
    [
        "https://user:zebra@host/x", "postgres://me:zebra@db:5432/runs", "https://zebra@github.com/x.git",
        "https://host/x?token=zebra", "https://host/x?a=1&api_key=zebra&b=2", "http://h/?X-Amz-Signature=zebra",
        "https://host/x?access_token=zebra#top", "https://host/#id_token=zebra", "redis://:zebra@h",
    ],
)  # fmt: skip
def test_secrets_in_addresses(address):
    for shown in (redacted(address), redacted({"vllm_server_base_url": address}), without_secrets(f"at {address}!")):
        assert "zebra" not in str(shown)
    assert "zebra" not in str(redacted_words(["--vllm_server_base_url", address]))


@pytest.mark.parametrize(
    "text",
    [
        "me/space?api_key=Zq7xY83kPw0",
        "judges:digits?weight=2&judge_token=Zq7xY83kPw0",
        "data:x.jsonl?hf_token=Zq7xY83kPw0",
    ],
)
def test_secrets_in_parameters_of_what_is_no_address(text):
    assert redacted(text, "task") == text.replace("Zq7xY83kPw0", REDACTED)
    assert redacted("data:x.jsonl?answer_key=solution&limit=8", "task") == "data:x.jsonl?answer_key=solution&limit=8"


@pytest.mark.parametrize(
    "shown", ["{{'a': 1, 'hf_token': '{}'}}", '{{"hf_token": "{}"}}', "{{'x': {{'api_key': '{}", "{{'password': {}}}"]
)
def test_a_mapping_in_a_message_shows_no_secret(shown):
    secret = "Zq7xY83kPw0"
    assert secret not in without_secrets(f"leave it at its default, got generation_kwargs={shown.format(secret)}", [])
    plain = "got {'eos_token': '</s>', 'max_tokens': 5, 'key': 'a', 'enable_thinking': False}"
    assert without_secrets(plain, []) == plain


@pytest.mark.parametrize(
    "value",
    [
        "https://host:8000/v1?model=a&max_tokens=5", "ssh://git@github.com/x", "data.jsonl?answer_column=solution",
        "reasoning_gym:chain_sum?min_terms=2&seed=0", "Qwen/Qwen3-0.6B", "runs/sk-learn-and-other-long-names",
        "mask-sk-1234567890123456789", "{prompt}\nThe token: think", "a" * 39, "models/snapshots/" + "a" * 40,
        "math + 0.1*format?style=boxed",
    ],
)  # fmt: skip
def test_ordinary_values_stay_as_they_are(value):
    assert redacted({"x": value}) == {"x": value}
    assert without_secrets(value) == value


def test_forty_hexadecimal_digits_are_a_version_where_their_name_says_so():
    digits = "0123456789abcdef" * 2 + "01234567"
    assert redacted({"model_init_kwargs": {"revision": digits, "wandb": digits}}) == {
        "model_init_kwargs": {"revision": digits, "wandb": REDACTED}
    }
    assert redacted({"commit_sha": digits}) == {"commit_sha": digits}


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_token", "zebra"], ["--hub-token", "zebra"], ["--hub_token=zebra"], ["--hub-token=zebra", "--x", "1"],
        ["--hub_token", "zebra", "zebra"], ["--model_init_kwargs", "{token: zebra}"], ["--note", "api_key=zebra"],
        ["--model_init_kwargs", '{"token": "zebra", "dtype": "float32"}'], ["--x={password: 'zebra zebra'}"],
    ],
)  # fmt: skip
def test_secrets_of_a_command_line(words, monkeypatch):
    before = ["equipoise", "train", "--model", "m"]
    shown = redacted_words([*before, *words])
    assert "zebra" not in " ".join(shown)
    assert shown[:4] == before
    assert len(shown) == 4 + len(words)


def test_messages_name_no_value_of_this_process(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "zebra-of-the-environment")
    monkeypatch.setattr(sys, "argv", ["equipoise", "train", "--hub_token", "zebra-of-a-flag", "--a_key=zebra-joined"])
    text = without_secrets("zebra-of-the-environment, zebra-of-a-flag and zebra-joined")
    assert text == f"{REDACTED}, {REDACTED} and {REDACTED}"
    monkeypatch.setenv("PWD", "/somewhere/else")
    assert without_secrets("/somewhere/else") == "/somewhere/else"


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=20) | st.integers() | st.lists(st.text(max_size=9))))
def test_taking_out_twice_is_taking_out_once(values):
    once = redacted(values)
    assert redacted(once) == once
    assert list(once) == list(values)


# ---- run folders ----------------------------------------------------------------------------------------------------

SECRETS = {"hub_token": HUB, "model_init_kwargs": '{token: "zebra-of-the-model", dtype: float32}'}


def texts_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_no_file_of_a_run_holds_a_secret_and_it_goes_on_without(workplace, monkeypatch, capsys, caplog):
    words = arguments(max_steps=2, save_steps=1, reward="exact", record_tokens=1, logging_steps=1, **SECRETS)
    monkeypatch.setattr(sys, "argv", ["equipoise", *words])
    assert main(words) == 0
    for path, content in texts_of(Path("run")).items():
        assert HUB.encode() not in content, path
        assert b"zebra" not in content, path
    environment = json.loads(Path("run", ENVIRONMENT_FILE).read_text())
    assert environment["command"].count(REDACTED) == 1
    assert f"{{token: {REDACTED}, dtype: float32}}" in environment["command"]
    assert yaml.safe_load(Path("run", CONFIG_FILE).read_text())["hub_token"] == REDACTED
    assert main(["train", "--resume", "run", "--max_steps", "3"]) == 0
    assert "holds no hub_token" in caplog.text
    assert main(["train", "--resume", "run", "--max_steps", "4", "--hub_token", HUB]) == 0
    assert main(["report", "run", "-o", "page.html"]) == 0
    assert HUB not in Path("page.html").read_text()
    line = refusal(["train", "--config", f"run/{CONFIG_FILE}", "--output_dir", "run", "--hub_token", HUB], capsys)
    assert HUB not in line


@pytest.mark.slow
def test_messages_and_logs_of_a_command_hold_no_secret(workplace, monkeypatch, capsys):
    for words in (
        ["train", "--resume", "nowhere", "--hub_token", "zebra-flag"],
        ["train", "--model", "zebra-flag", "--task", "ladder", "--output_dir", "x", "--hub_token", "zebra-flag"],
        ["train", "--hub_token", "[zebra-flag, 1]", "--task", "ladder"],
        ["train", "--hub_token", "{zebra-flag", "--task", "ladder"],
        ["evaluate", "--hub_token", "zebra-flag", "model"],
        ["evaluate", HUB, "--task", "ladder"],
    ):
        line = refusal(words, capsys)
        assert "zebra-flag" not in line, words
        assert HUB not in line
    Path("a.yaml").write_text("hub_token: [zebra-file]\n")
    assert "zebra-file" not in refusal(["train", "--config", "a.yaml"], capsys)


def test_lines_of_the_log_hold_no_secret():
    record = logging.LogRecord("x", logging.WARNING, "", 1, "the token is %s", (HUB,), None)
    assert WithoutSecrets("%(message)s").format(record) == f"the token is {REDACTED}"


@pytest.mark.slow
def test_pages_of_older_runs_which_kept_secrets_show_none(workplace):
    folder = Path("old")
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"update": 1, "reward": 0.5, "equipoise/entropy": 1.0}\n')
    (folder / CONFIG_FILE).write_text(yaml.safe_dump({"hub_token": HUB, "run_name": "https://a:zebra@h/"}))
    (folder / RESOLVED_FILE).write_text(yaml.safe_dump({"hub_token": HUB, "generation_kwargs": {"api_key": "zebra"}}))
    environment = {"command": ["x", "--hub_token", HUB], "machine": HUB}
    (folder / ENVIRONMENT_FILE).write_text(json.dumps(environment))
    assert main(["report", "old", "-o", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert HUB not in page
    assert "zebra" not in page
    assert REDACTED in page


def test_what_transformers_pickles_of_the_settings_holds_none(tmp_path):
    import copy

    config = EquipoiseConfig(
        str(tmp_path), hub_token=HUB, use_cpu=True, generation_kwargs={}, vllm_server_base_url="http://a:zebra@h"
    )
    pickled = pickle.dumps(config)
    assert HUB.encode() not in pickled
    assert b"zebra" not in pickled
    assert pickle.loads(pickled).learning_rate == config.learning_rate
    for other in (copy.copy(config), copy.deepcopy(config)):
        assert other.hub_token == HUB
        assert vars(other).keys() == vars(config).keys()


# ---- going on without -----------------------------------------------------------------------------------------------


def test_a_token_is_left_to_the_environment_and_said_to_be_missing(caplog, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    values = {"hub_token": REDACTED, "model_init_kwargs": {"token": REDACTED, "dtype": "float32"}, "seed": 3}
    assert with_secrets(values, "a.yaml") == {"model_init_kwargs": {"dtype": "float32"}, "seed": 3}
    assert "a.yaml holds no hub_token" in caplog.text


def test_pushing_needs_a_token_from_somewhere(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    values = {"hub_token": REDACTED, "push_to_hub": True}
    with pytest.raises(InputError, match=r"--hub_token"):
        with_secrets(values, "a.yaml")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: HUB)
    assert with_secrets(values, "a.yaml") == {"push_to_hub": True}


@pytest.mark.parametrize("key", ["vllm_server_base_url", "trackio_space_id"])
def test_what_no_environment_holds_must_be_given_again(key):
    values = {key: redacted("https://me:zebra@host/")}
    assert is_redacted(values)
    with pytest.raises(InputError, match=f"--{key}"):
        with_secrets(values, "a.yaml")
    assert with_secrets(values | {key: "https://me:zebra@host/"}, "a.yaml") == {key: "https://me:zebra@host/"}
