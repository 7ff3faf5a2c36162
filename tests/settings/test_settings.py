"""YAML and flags to settings: types converted, every mistake named in one line."""

import math
from typing import Any, Literal

import pytest
from accelerate.parallelism_config import ParallelismConfig

from equipoise.errors import InputError
from equipoise.settings.reading import converted, read_flags, read_yaml, type_in_words, written_keys
from equipoise.trl.keys import build, checked_keys, known_keys


def test_flags_override_and_aliases_of_trl_are_known(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("model_name_or_path: a\nlearning_rate: 1e-3\nmax_steps: 10\n")
    keys = checked_keys(read_yaml(file), "config a: ")
    keys |= checked_keys(
        read_flags(["--max-steps", "20", "--bapo_low", "0.7", "0.9", "--use_cpu", "--run_name=x"]), "--"
    )
    assert keys == {
        "model": "a", "learning_rate": 1e-3, "max_steps": 20, "bapo_low": [0.7, 0.9], "use_cpu": True, "run_name": "x",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("1", 1.0), ("1e-6", 1e-6)],
)
def test_numbers_as_people_write_them(text, value):
    assert checked_keys(read_flags(["--learning_rate", text]), "--") == {"learning_rate": value}


def test_one_value_is_a_list_of_one():
    values = {"lora_target_modules": "q_proj", "evaluate_k": 4}
    assert checked_keys(values, "") == {"lora_target_modules": ["q_proj"], "evaluate_k": [4]}


@pytest.mark.parametrize(("value", "kind"), [("5", int | str), (5, str | int), (5, float | int), ("a", int | str)])
def test_of_several_types_the_exact_one_is_kept(value, kind):
    kept = converted(value, kind)
    assert (kept, type(kept)) == (value, type(value))


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (10.0, int, 10), ("7", int, 7), (3, float, 3.0), ("0.5", float, 0.5), (5, str, "5"), (0.5, str | None, "0.5"),
        (None, float | None, None), (True, bool | None, True), (True, str | bool, True), ([1, 2], list[float], [1, 2]),
        (["1", 0.5], list[float] | None, [1.0, 0.5]), (2, list[str], ["2"]), ("a", str | list[str], "a"),
        (["a"], str | list[str], ["a"]), ({"a": [1]}, dict | None, {"a": [1]}), ({}, dict[str, Any] | str | None, {}),
        (math.inf, float, math.inf), ("b", Literal["a", "b"], "b"), (-(2**63), int, -(2**63)),
    ],
)  # fmt: skip
def test_values_become_what_their_key_is(value, kind, expected):
    result = converted(value, kind)
    assert (result, type(result)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, int), (False, float | None), (True, str), (True, list[int]), ([1, True], list[float]), (1, bool),
        ("true", bool | None), (0, bool | None), (1.5, int), ("1.5", int | None), (math.nan, float), ("nan", float),
        ([0.5, math.nan], list[float]), (2**63, int), ([2**63], list[int]), ("a", float), (["a"], str), ({}, str),
        ([1], dict | None), ("a", dict), (None, int), (None, str), ("c", Literal["a", "b"]), (["a", ["b"]], list[str]),
        ({"dp_shard_size": 2}, ParallelismConfig | None),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_refused(value, kind):
    with pytest.raises(ValueError, match="^$"):
        converted(value, kind)


def test_every_key_of_a_run_has_a_type_that_can_be_read_and_told():
    for key, kind in known_keys().items():
        assert type_in_words(kind), key
        with pytest.raises(ValueError, match="^$"):
            converted(object(), kind)


def test_of_two_spellings_of_a_number_both_are_read(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("learning_rate: 1e-3\nmax_steps: 1e3\nrun_name: 1e\nbapo_low: [5e-1, 1.5E-1]\n")
    keys = checked_keys(read_yaml(file), "")
    assert keys == {"learning_rate": 0.001, "max_steps": 1000, "run_name": "1e", "bapo_low": [0.5, 0.15]}
    assert type(keys["max_steps"]) is int


@pytest.mark.parametrize(
    "written", ["2026-11-27", "2026-13-45", "12:30", "007", "1_000", "0x10", "1e3", "0.10", "123e456", "5", "no", "+5"]
)
def test_text_keeps_its_spelling_whatever_number_or_date_it_resembles(tmp_path, written):
    file = tmp_path / "a.yaml"
    file.write_text(f"run_name: {written}\nmodel_init_kwargs: {{revision: '{written}', scale: 1e-3}}\n")
    keys = checked_keys(read_yaml(file), "")
    assert keys["run_name"] == written
    assert checked_keys(read_flags(["--run_name", written]), "") == {"run_name": written}
    file.write_text(written_keys(keys))  # as a run folder keeps them
    assert checked_keys(read_yaml(file), "") == keys
    assert keys["model_init_kwargs"] == {"revision": written, "scale": 0.001}


@pytest.mark.parametrize(
    "word", ["a # b", "#a", "a: b", "- a", "&a", "*a", "|", "@a", "%a", "a\nb", "? a", "Solve: {prompt}", "", "<<", "="]
)
def test_a_word_on_the_command_line_is_the_text_it_looks_like(word):
    assert read_flags(["--model", word]) == {"model": word}


@pytest.mark.parametrize(
    ("word", "value"),
    [("'5'", "5"), ('"a # b"', "a # b"), ("[1, a]", [1, "a"]), ("{a: 1}", {"a": 1}), ("null", None), ("true", True)],
)
def test_a_word_in_the_signs_of_yaml_is_yaml(word, value):
    assert read_flags(["--model", word]) == {"model": value}


def test_a_mapping_may_be_merged_into_another(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("base: &base {seed: 1, max_steps: 2}\nmore: {<<: *base, seed: 3}\n")
    assert read_yaml(file)["more"] == {"seed": 3, "max_steps": 2}


def test_no_is_a_word(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("save_strategy: no\nuse_cpu: true\n")
    assert checked_keys(read_yaml(file), "") == {"save_strategy": "no", "use_cpu": True}
    assert checked_keys(read_flags(["--eval_strategy", "no"]), "") == {"eval_strategy": "no"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learnig_rate", "1"], "flag --learnig_rate is not known; did you mean learning_rate?"),
        (["--clip", "fixed"], "flag --clip is not known; did you mean clipping?"),
        (["--max_steps", "many"], "flag --max_steps must be a whole number, got 'many'"),
        (["--max_steps", "1.5"], "flag --max_steps must be a whole number, got 1.5"),
        (["--use_cpu", "1"], "flag --use_cpu must be true or false, got 1"),
        (["--learning_rate", "true"], "flag --learning_rate must be a number, got True"),
        (["--learning_rate", ".nan"], "flag --learning_rate must be a number, got nan"),
        (["--max_steps", "1" + "0" * 400], "flag --max_steps must be a whole number, got 10+…"),
        (["--epsilon_high", "1" + "0" * 400], "flag --epsilon_high must be a number, got 10+…"),
        (["--bapo_low", "a"], r"flag --bapo_low must be a list \(a number each\), got 'a'"),
        (["--model", "a", "--model", "b"], "flag --model is given twice"),
        (["--model", "a", "--model_name_or_path", "b"], "model_name_or_path is given twice, under another name"),
        (["stray"], r"expected a flag \(--key value\), got 'stray'"),
        (["--model", "[a"], r"flag --model has a value that cannot be read: '\[a'"),
        (["--model", "'a"], "flag --model has a value that cannot be read"),
        (["--model", "!!int x"], "flag --model has a value that cannot be read"),
        (["--model", "a\0"], "flag --model has a value that cannot be read"),
        (["--max_steps", "9" * 5000], "flag --max_steps must be a whole number"),
    ],
)
def test_flags_that_cannot_be_used(flags, message):
    with pytest.raises(InputError, match=message):
        checked_keys(read_flags(flags), "flag --")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "must be a mapping of keys to values, got list"),
        ("a: [", "line 1 is no valid YAML|line 2 is no valid YAML"),
        ("seed: 1\nseed: 2", "line 2 is no valid YAML: the key 'seed' is given twice"),
        ("[a]: 1", "line 1 is no valid YAML: a key must be a word"),
        ("{a: b}: 1", "line 1 is no valid YAML: a key must be a word"),
        ("[" * 5000, "nested too deeply"),
        *((f"run_name: !!{tag} x", "no valid YAML") for tag in ("int", "float", "bool", "timestamp", "binary")),
        ("seed: " + "9" * 5000, "seed must be a whole number"),
        ("model_init_kwargs: &a {b: *a}", "line 1 is no valid YAML: an alias stands for what it is in"),
        ("seed: x", "seed must be a whole number, got 'x'"),
        ("sed: 1", r"sed is not known; did you mean seed\?"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=f"config {file}.*({message})"):
        checked_keys(read_yaml(file), f"config {file}: ")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="config .*none.yaml cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "ladder", "output_dir": "x"}, "model is required"),
        ({"model": "m", "output_dir": "x"}, "task is required"),
        ({"model": "m", "task": "chess"}, "task 'chess' is not known"),
        ({"model": "m", "task": "lader"}, r"task 'lader' is not known; did you mean ladder\?"),
        ({"model": "m", "task": "ladder", "eval_task": "aime_2023"}, "did you mean aime_202"),
        ({"model": "m", "task": "ladder", "prompt_template": "Solve."}, "prompt_template must contain {prompt} once"),
        ({"model": "m", "task": "ladder", "environment": "m:C"}, "environment needs a data set of prompts"),
        ({"model": "m", "task": "data:a + data:b", "environment": "m:C"}, "environment needs a data set of prompts"),
        ({"model": "m", "task": "data:a", "environment": "m:C", "reward": "math"}, "brings its own reward"),
        ({"model": "m", "task": "ladder"}, "output_dir is required"),
        (
            {"model": "m", "task": "ladder", "evaluate_k": [32]},
            "evaluate_k must be numbers from 1 to evaluate_samples=16",
        ),
        ({"model": "m", "task": "ladder", "evaluate_every": -1}, "evaluate_every must be >= 0"),
        ({"model": "m", "task": "ladder", "evaluate_prompts": 0}, "evaluate_prompts must be >= 1"),
        (
            {"model": "m", "task": "ladder", "output_dir": "x", "resume_from_checkpoint": "y"},
            "continue a run with --resume RUN",
        ),
        (
            {"model": "m", "task": "ladder", "output_dir": "x", "save_strategy": "often"},
            "often is not a valid SaveStrategy",
        ),
        (
            {"model": "m", "task": "ladder", "output_dir": "x", "papo_strength": 2.0, "use_cpu": True},
            "papo_strength must leave every weight > 0",
        ),
    ],
)
def test_settings_that_do_not_fit(keys, message):
    with pytest.raises(InputError, match=message):
        build(keys)


def test_a_preset_is_overridden_by_keys_beside_it():
    _, config = build({"model": "m", "task": "ladder", "output_dir": "o", "preset": "bapo_paper"})
    assert (config.clipping, config.bapo_measure, config.bapo_token_weight) == ("balanced", "surrogate", "rollout")
    _, config = build(
        {"model": "m", "task": "ladder", "output_dir": "o", "preset": "bapo", "bapo_target_share": 0.5, "use_cpu": True}
    )
    assert (config.bapo_measure, config.bapo_target_share, config.bapo_low) == ("gradient", 0.5, [0.9, 0.98])


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(
        InputError,
        match="preset must be one of bapo_paper, .* got preset='bapo_papr'; did you mean bapo_paper",
    ):
        build({"model": "m", "task": "ladder", "output_dir": "o", "preset": "bapo_papr"})
