import json
import os
import re

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset

from equipoise.errors import InputError
from equipoise.tasks import load_examples

USER = [{"role": "user", "content": "2 + 2?"}]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into the current directory, so that messages can be compared whole."""
    monkeypatch.chdir(tmp_path)

    def writer(name, content):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return name

    return writer


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def refusal(source, **settings):
    with pytest.raises(InputError) as caught:
        load_examples(source, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_jsonl_with_blank_lines_numbers_and_other_columns(write):
    rows = [
        {"prompt": "a", "answer": 7, "level": 1},
        {"prompt": "b", "answer": " x "},
        {"note": "n", "prompt": "c", "answer": 0.5},
    ]
    source = write("data.jsonl", "\n" + jsonl(*rows[:2]) + "   \n" + jsonl(rows[2]))
    loaded = load_examples(source)
    assert loaded.to_dict() == {
        "prompt": ["a", "b", "c"],
        "answer": ["7", " x ", "0.5"],
        "level": [1, None, None],
        "note": [None, None, "n"],
    }


def test_jsonl_line_ends_and_byte_order_mark(write):
    source = write(
        "data.json-lines",
        b'\xef\xbb\xbf{"prompt": "\xc3\xa9\xe2\x80\xa8", "answer": "1"}\r\n{"prompt": "b", "answer": "2"}',
    )
    assert load_examples(source)["prompt"][:] == ["é\u2028", "b"]


def test_chosen_columns_become_prompt_and_answer(write):
    source = write("data.jsonl", jsonl({"question": "q", "solution": 3, "prompt_id": 5}))
    loaded = load_examples(source, prompt_column="question", answer_column="solution")
    assert loaded.to_dict() == {"prompt": ["q"], "answer": ["3"], "prompt_id": [5]}


def test_columns_may_swap_names(write):
    source = write("data.jsonl", jsonl({"prompt": "p", "answer": "a"}))
    loaded = load_examples(source, prompt_column="answer", answer_column="prompt")
    assert loaded.to_dict() == {"prompt": ["a"], "answer": ["p"]}


def test_several_answers_make_every_answer_a_list(write):
    source = write("data.jsonl", jsonl({"prompt": "a", "answer": [1, "x"]}, {"prompt": "b", "answer": 0.5}))
    assert load_examples(source)["answer"][:] == [["1", "x"], ["0.5"]]


def test_a_key_within_a_column_of_mappings(write):
    rows = [{"prompt": "a", "reward_model": {"ground_truth": "7", "style": "rule"}}, {"prompt": "b"}]
    source = write("data.jsonl", jsonl(rows[0]))
    loaded = load_examples(source, answer_column="reward_model.ground_truth")
    assert loaded["answer"][:] == ["7"]
    assert loaded["reward_model"][:] == [rows[0]["reward_model"]]
    source = write("data.jsonl", jsonl(*rows))
    assert refusal(source, answer_column="reward_model.ground_truth").startswith(
        "data.jsonl, line 2, column 'reward_model.ground_truth': the answer must be"
    )
    assert refusal(source, answer_column="reward.ground_truth").startswith("data.jsonl: no column 'reward.ground_tr")


def test_csv_values_stay_text(write):
    source = write("data.csv", 'prompt,answer,extra\na,007,\n\n"b, c",1.50,x\n')
    assert load_examples(source).to_dict() == {"prompt": ["a", "b, c"], "answer": ["007", "1.50"], "extra": ["", "x"]}


def test_parquet_keeps_the_types_of_other_columns(write):
    table = pa.table({"prompt": ["a", "b"], "answer": [1, 2], "score": pa.array([0.5, 1.5], pa.float32())})
    pa.parquet.write_table(table, write("data.parquet", b""))
    loaded = load_examples("data.parquet")
    assert loaded.to_dict() == {"prompt": ["a", "b"], "answer": ["1", "2"], "score": [0.5, 1.5]}
    assert loaded.features["score"].dtype == "float32"


def test_chat_messages_are_kept_and_strings_wrapped(write):
    source = write("data.jsonl", jsonl({"prompt": USER, "answer": "4"}, {"prompt": USER, "answer": "4"}))
    assert load_examples(source)["prompt"][:] == [USER, USER]
    mixed = write("mixed.jsonl", jsonl({"prompt": USER, "answer": "4"}, {"prompt": "3 + 3?", "answer": "6"}))
    wrapped = load_examples(mixed, chat=True)["prompt"][:]
    assert wrapped == [USER, [{"role": "user", "content": "3 + 3?"}]]


def test_chat_messages_from_parquet(write):
    pa.parquet.write_table(pa.table({"prompt": [USER], "answer": ["4"]}), write("data.parquet", b""))
    assert load_examples("data.parquet").to_dict() == {"prompt": [USER], "answer": ["4"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", "", "d.jsonl: the data set is empty"),
        ("d.jsonl", "\n \n", "d.jsonl: the data set is empty"),
        ("d.csv", "", "d.csv: the data set is empty"),
        ("d.csv", "prompt,answer\n", "d.csv: the data set is empty"),
        (
            "d.jsonl",
            '\n{"prompt": "a", "answer": "1"}\n[1, 2]\n',
            "d.jsonl, line 3: must be one JSON object, got '[1, 2]'",
        ),
        ("d.jsonl", b'{"prompt": "\xff"}\n', "d.jsonl, line 1: must be UTF-8, got the byte 0xff"),
        ("d.jsonl", '{"prompt": "a", "prompt": "b"}\n', "d.jsonl, line 1: has the key 'prompt' twice"),
        ("d.csv", "prompt,answer\na,1\nb\n", "d.csv, row 2: must have 2 values, got 1: ['b']"),
        ("d.csv", "prompt,answer,answer\na,1,2\n", "d.csv: column 'answer' occurs 2 times in the header"),
        ("d.txt", "x", "d.txt: the suffix must be one of .jsonl, .json-lines, .parquet, .csv, got '.txt'"),
        ("d", "x", "d: the suffix must be one of .jsonl, .json-lines, .parquet, .csv, got ''"),
        (
            "d.jsonl",
            jsonl({"prompts": "a", "answer": "1"}),
            "d.jsonl: no column 'prompt' for the prompt, the columns are prompts, answer; did you mean 'prompts'?",
        ),
        (
            "d.jsonl",
            jsonl({"prompt": "a", "zzz": "1"}),
            "d.jsonl: no column 'answer' for the answer, the columns are prompt, zzz",
        ),
        (
            "d.jsonl",
            jsonl({"prompt": "a", "answer": "1", "x": 1}, {"prompt": "a", "answer": "1", "x": "b"}),
            "d.jsonl: column 'x' mixes types of value",
        ),
    ],
)
def test_unusable_files_are_refused(write, name, content, message):
    assert refusal(write(name, content)).startswith(message)


def test_malformed_json_names_line_and_text(write):
    source = write("d.jsonl", '{"prompt": "a", "answer": "1"}\n\n{"prompt": ' + "b" * 200 + "\n")
    message = refusal(source)
    assert message.startswith("d.jsonl, line 3: is no JSON: ")
    assert 'got \'{"prompt": bbb' in message
    assert "…" in message
    assert len(message) < 250


PROMPT_RULE = "the prompt must be a string or a non-empty list of chat messages"
MESSAGE_RULE = 'every chat message must have "role" and "content"'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "", "answer": "1"}, "column 'prompt': the prompt must not be empty, got ''"),
        ({"prompt": " \n", "answer": "1"}, "column 'prompt': the prompt must not be empty, got ' \\n'"),
        ({"prompt": None, "answer": "1"}, f"column 'prompt': {PROMPT_RULE}, got None"),
        ({"answer": "1"}, f"column 'prompt': {PROMPT_RULE}, got None"),
        ({"prompt": 5, "answer": "1"}, f"column 'prompt': {PROMPT_RULE}, got 5"),
        ({"prompt": [], "answer": "1"}, f"column 'prompt': {PROMPT_RULE}, got []"),
        ({"prompt": ["hi"], "answer": "1"}, f"column 'prompt': {MESSAGE_RULE}, got ['hi']"),
        ({"prompt": [{"role": "user"}], "answer": "1"}, f"column 'prompt': {MESSAGE_RULE}, got [{{'role': 'user'}}]"),
        (
            {"prompt": [*USER, {"role": "user", "content": ""}], "answer": "1"},
            "column 'prompt': \"content\" of every chat message must be a non-empty string, got [{'role'",
        ),
        (
            {"prompt": [{"role": 1, "content": "x"}], "answer": "1"},
            "column 'prompt': \"role\" of every chat message must be a non-empty string, got [{'role': 1",
        ),
        ({"prompt": "a", "answer": ""}, "column 'answer': the answer must not be empty, got ''"),
        ({"prompt": "a", "answer": None}, "column 'answer': the answer must be a string or a finite number, got None"),
        ({"prompt": "a", "answer": True}, "column 'answer': the answer must be a string or a finite number, got True"),
        (
            {"prompt": "a", "answer": [[1]]},
            "column 'answer': the answer must be a string or a finite number, got [[1]]",
        ),
        (
            {"prompt": "a", "answer": float("nan")},
            "column 'answer': the answer must be a string or a finite number, got nan",
        ),
        (
            {"prompt": USER, "answer": "1"},
            "column 'prompt': prompts must be all strings or all chat messages"
            " (chat=True makes strings into messages), got [{'role'",
        ),
    ],
)
def test_unusable_rows_are_refused_by_line(write, row, message):
    source = write("d.jsonl", jsonl({"prompt": "a", "answer": "1"}) + "\n" + jsonl(row))
    assert refusal(source).startswith(f"d.jsonl, line 3, {message}")


def test_rows_of_other_files_are_counted_from_one(write):
    assert refusal(write("d.csv", "prompt,answer\na,1\nb,\n")).startswith(
        "d.csv, row 2, column 'answer': the answer must not"
    )
    pa.parquet.write_table(pa.table({"prompt": ["a", None], "answer": ["1", "2"]}), write("d.parquet", b""))
    assert refusal("d.parquet").startswith("d.parquet, row 2, column 'prompt': the prompt must be")


def test_long_values_are_shortened(write):
    source = write("d.jsonl", jsonl({"prompt": "a", "answer": [["y" * 500]]}))
    message = refusal(source)
    assert message.endswith("yyy…")
    assert len(message.split("got ")[1]) == 80


def test_columns_in_each_others_way_are_refused(write):
    source = write("d.jsonl", jsonl({"prompt": "a", "question": "b", "answer": "1"}))
    assert refusal(source, prompt_column="question") == (
        "d.jsonl: column 'question' was chosen as the prompt, and a column 'prompt' exists too"
    )
    assert refusal(source, answer_column="prompt") == (
        "d.jsonl: prompt and answer must be two columns, got 'prompt' for both"
    )


@pytest.mark.parametrize(
    "source", ["missing.jsonl", "folder/missing.csv", "./missing", "/nowhere/x", "~/no-such-thing.parquet"]
)
def test_missing_files_are_refused(write, source):
    assert refusal(source) == f"{source}: no such file"


def test_folders_and_broken_files_are_refused(write, tmp_path):
    (tmp_path / "folder").mkdir()
    assert refusal("folder") == "folder: is a folder, name one file in it"
    assert refusal(write("d.parquet", b"no parquet")).startswith("d.parquet: cannot be read as Parquet (ArrowInvalid: ")
    assert refusal(write("d.csv", b'prompt,answer\n"a,1\n')).startswith("d.csv: cannot be read as UTF-8 CSV (Error: ")
    assert refusal(write("e.csv", b"prompt,answer\n\xff,1\n")).startswith("e.csv: cannot be read as UTF-8 CSV (Unicode")


def test_unreadable_file_is_refused(write, monkeypatch):
    source = write("d.jsonl", "{}")

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    assert re.fullmatch(r"d.jsonl: cannot be read \(PermissionError: .*Permission denied.*\)", refusal(source))


def hub(monkeypatch, answer):
    calls = []

    def load_dataset(*arguments, **settings):
        calls.append((arguments, settings))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_other_sources_are_hub_ids(write, monkeypatch):
    calls = hub(monkeypatch, Dataset.from_dict({"question": ["q"], "answer": ["a"], "level": [2]}))
    loaded = load_examples("owner/name:main", split="test[:5]", prompt_column="question")
    assert calls == [(("owner/name", "main"), {"split": "test[:5]"})]
    assert loaded.to_dict() == {"prompt": ["q"], "answer": ["a"], "level": [2]}
    load_examples("name", prompt_column="question")
    assert calls[1] == (("name", None), {"split": "train"})


def test_rows_of_a_hub_data_set_are_named(monkeypatch):
    hub(monkeypatch, Dataset.from_dict({"prompt": ["a", "b"], "answer": ["1", None]}))
    assert refusal("owner/name").startswith("owner/name, row 2, column 'answer': ")


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError('Unknown split "tst"')])
def test_a_hub_that_fails_is_one_line(monkeypatch, error):
    hub(monkeypatch, error)
    cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
    assert refusal("owner/name") == (
        f"owner/name: no such file, and split 'train' of a hub data set of that name cannot be loaded ({cause})"
    )


def test_a_split_that_is_no_table_is_refused(monkeypatch):
    hub(monkeypatch, {"train": None})
    assert refusal("owner/name") == "owner/name: split 'train' is no single table of rows, got dict"


def test_half_a_character_is_one_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b \\ud800", "answer": "2"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: must be text that UTF-8 can hold"):
        load_examples(str(path))
    path.write_text('{"prompt": "a", "answer": "1", "other": {"\\udfff": [1]}}\n')
    with pytest.raises(InputError, match=r"line 1: must be text"):
        load_examples(str(path))
    path.write_text('{"prompt": "\\ud83d\\ude00", "answer": "2"}\n')
    assert load_examples(str(path))["prompt"][0] == "\U0001f600"


def test_text_in_parquet_that_is_no_text_is_one_line(tmp_path):
    path = tmp_path / "b.parquet"
    offsets = pyarrow.py_buffer((0).to_bytes(4, "little") + (2).to_bytes(4, "little"))
    broken = pyarrow.StringArray.from_buffers(1, offsets, pyarrow.py_buffer(b"\xff\xfe"))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": broken, "answer": ["1"]}), path)
    with pytest.raises(InputError, match=r"^[^\n]*b\.parquet: cannot be read as Parquet [^\n]*UTF8[^\n]*$"):
        load_examples(str(path))


def test_whole_numbers_have_any_size(write):
    source = write("d.jsonl", '{"prompt": "a", "answer": 1' + "0" * 400 + "}\n")
    assert load_examples(str(source))["answer"][0] == "1" + "0" * 400


def test_chat_messages_with_keys_of_several_types_are_one_line(write):
    prompt = [{"role": "user", "content": "a", "x": 1}, {"role": "user", "content": "b", "x": "c"}]
    message = refusal(write("d.jsonl", jsonl({"prompt": prompt, "answer": "1"})))
    assert message.startswith("d.jsonl, line 1, column 'prompt': \"x\" of a chat message is text")


def test_columns_that_a_data_set_cannot_hold_are_named(tmp_path):
    path = tmp_path / "m.parquet"
    kind = pyarrow.list_(pyarrow.struct([("m", pyarrow.map_(pyarrow.string(), pyarrow.int64()))]))
    values = pyarrow.array([[{"m": [("k", 1)]}]], type=kind)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "answer": ["1"], "extra": values}), path)
    with pytest.raises(InputError, match=r"m\.parquet: column 'extra' has the type .*map<"):
        load_examples(str(path))


@pytest.mark.parametrize(
    "metadata", [b"{broken", b"\xff", b"[]", b'{"info": 3}', b'{"info": {"features": {"prompt": {"_type": "Nope"}}}}']
)
def test_damaged_metadata_is_one_line(tmp_path, metadata):
    path = tmp_path / "h.parquet"
    table = pyarrow.table({"prompt": ["a"], "answer": ["1"]}).replace_schema_metadata({b"huggingface": metadata})
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(InputError, match=r"^[^\n]*h\.parquet: its columns or its metadata [^\n]*$"):
        load_examples(str(path))


def test_rows_without_an_answer_are_kept_on_request(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": ""}\n{"prompt": "c"}\n')
    assert load_examples(str(path), empty_answers=True)["answer"][:] == ["1", "", ""]
    with pytest.raises(InputError, match="line 2, column 'answer': the answer must not be empty"):
        load_examples(str(path))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "data.jsonl")
    with pytest.raises(InputError, match=r"data\.jsonl.*regular file"):
        load_examples(str(tmp_path / "data.jsonl"))


@pytest.mark.parametrize("depth", [60, 400])
def test_rows_nested_too_deeply_are_refused(tmp_path, depth):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "answer": "b", "other": ' + "[" * depth + "1" + "]" * depth + "}")
    with pytest.raises(InputError, match=r"data\.jsonl, line 1.*nested"):
        load_examples(str(path))
    path.write_text('{"prompt": "a", "answer": "b", "other": ' + "[" * 30 + "1" + "]" * 30 + "}")
    assert len(load_examples(str(path))) == 1
