"""Every recipe of the papers runs end to end, tiny, and exercises what it is about."""

import json
import time
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig, AutoTokenizer

from equipoise.cli import main
from equipoise.commands import smoke
from equipoise.models.architectures import architecture, recipe_folder
from equipoise.tasks import known_tasks
from equipoise.tasks.math_data import MATH_DATA
from equipoise.trl import keys as settings

PAPERS = recipe_folder() / "papers"
RECIPES = [path.stem for path in sorted(PAPERS.glob("*.yaml"))]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func'"),
    pytest.mark.filterwarnings("ignore:.*environment_factory"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Recipe -> run folder, the processor time it took and what it printed; each is run once."""
    return {}


@pytest.fixture
def run(runs, tmp_path_factory, capsys):
    def run(recipe):
        if recipe not in runs:
            folder, start = tmp_path_factory.mktemp(recipe) / "out", time.process_time()
            config = str(PAPERS / f"{recipe}.yaml")
            assert main(["train", "--config", config, "--smoke", "--output_dir", str(folder), "--disable_tqdm"]) == 0
            runs[recipe] = folder, time.process_time() - start, capsys.readouterr().out
        return runs[recipe]

    return run


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / "run" / name).read_text().splitlines()]


def keys_of(recipe):
    from equipoise.settings.presets import with_preset

    return with_preset(settings.read_config(PAPERS / f"{recipe}.yaml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_settings(recipe, tmp_path):
    run, config = settings.build(keys_of(recipe) | {"output_dir": str(tmp_path)})
    assert run.model
    assert config.loss_type == "dapo"


@pytest.mark.parametrize("recipe", RECIPES)
def test_end_to_end(recipe, run):
    folder, seconds, _ = run(recipe)
    metrics = lines(folder)
    given = yaml.safe_load((folder / "run/config.yaml").read_text())
    assert [line["update"] for line in metrics] == list(range(1, given["max_steps"] + 1))
    assert any((folder / "run").glob("checkpoint-*"))
    assert (folder / "run/model/config.json").exists() or (folder / "run/model/adapter_config.json").exists()
    evaluations = lines(folder, "evaluation.jsonl")
    assert [line["update"] for line in evaluations] == [0, given["max_steps"]]
    assert all(line["num_prompts"] == 2 for line in evaluations)
    assert all(line["grad_norm"] > 0 for line in metrics), "without different rewards nothing is exercised"
    assert seconds < 20


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_steers_the_run_stays(recipe, run):
    folder, _, said = run(recipe)
    given, asked = yaml.safe_load((folder / "run/config.yaml").read_text()), keys_of(recipe)
    kept = {"clipping", "bapo_target_share", "bapo_low", "bapo_high", "bapo_measure", "bapo_token_weight", "polarity",
            "papo_strength", "papo_width", "loss_type", "beta", "epsilon", "epsilon_high", "temperature", "use_peft",
            "num_iterations", "chat", "prompt_template", "reward", "scale_rewards", "seed",
            "max_tool_calling_iterations"}  # fmt: skip
    assert {k: given.get(k) for k in kept} == {k: asked.get(k) for k in kept}
    for key in given.keys() & asked.keys() - kept - {"model", "task", "eval_task", "output_dir"}:
        assert given[key] == asked[key] or f"  {key}: {asked[key]} -> {given[key]}" in said


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_tiny_model_is_of_the_same_architecture(recipe, run):
    folder, _, _ = run(recipe)
    tiny, whole = AutoConfig.from_pretrained(folder / "base"), architecture(keys_of(recipe)["model"])
    assert tiny.model_type == whole.model_type
    assert tiny.tie_word_embeddings == whole.tie_word_embeddings
    assert tiny.num_attention_heads * whole.num_key_value_heads == whole.num_attention_heads * tiny.num_key_value_heads
    assert getattr(tiny, "rope_parameters", None) == getattr(whole, "rope_parameters", None)


def test_staleness_and_the_search_are_those_of_the_recipe(run):
    for recipe in ("bapo_r1_distill_7b", "bapo_r1_distill_32b", "octothinker_3b"):
        metrics = lines(run(recipe)[0])
        assert [line["equipoise/staleness"] for line in metrics] == [0, 1, 2, 3, 0, 1]
    low, high = keys_of("octothinker_3b")["bapo_low"], keys_of("octothinker_3b")["bapo_high"]
    for line in lines(run("octothinker_3b")[0]):
        assert low[0] <= line["equipoise/bounds_low"] <= low[1]
        assert high[0] <= line["equipoise/bounds_high"] <= high[1]


def test_partial_rollouts_take_rounds_and_carry_over(run):
    metrics = lines(run("bapo_r1_distill_7b_partial")[0])
    assert metrics[0]["equipoise/rollout_rounds"] > 1
    assert metrics[0]["equipoise/rollout_carried_over"] > 0


def test_the_polarity_controller_acts(run):
    for recipe in ("papo_dapo_math", "agent_calculator"):
        metrics = lines(run(recipe)[0])
        assert metrics[0]["equipoise/phase"] == 0
        assert metrics[-1]["equipoise/phase"] == 1


def test_the_agent_calls_its_tool(run):
    assert any(line.get("episodes/steps_mean", 0) > 0 for line in lines(run("agent_calculator")[0]))


def test_the_tokenizer_of_bytes_survives_the_folder_of_a_qwen_model(run):
    folder, _, _ = run("bapo_r1_distill_7b")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    text = "What is √2 · 7?\n"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_without_an_output_folder_nothing_is_left_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(smoke.tempfile, "mkdtemp", lambda prefix: str(tmp_path / "elsewhere" / prefix))
    monkeypatch.setattr(smoke.run, "train", lambda values, **_: Path(values["output_dir"]))
    folder = smoke.smoke(keys_of("octothinker_3b"))
    assert folder == tmp_path / "elsewhere" / "equipoise-smoke-" / "run"
    assert {p.name for p in tmp_path.iterdir()} == {"elsewhere"}


@pytest.mark.parametrize("name", [name for name in known_tasks() if not name.endswith(":")])
def test_files_have_the_form_of_the_data_sets(name, tmp_path):
    """Every named data set can be smoked: its file is read with the columns that the data set has."""
    from equipoise.tasks import named_task

    keys = smoke.data_keys({"task": name}, tmp_path)
    if name not in MATH_DATA:
        assert keys == {"task": name}
        return
    task = named_task(keys["task"])
    assert len(task.train) == len(smoke.PROBLEMS)
    assert all(answer in (gold, [gold]) for answer, (_, gold) in zip(task.train["answer"], smoke.PROBLEMS, strict=True))


def test_mixtures_and_own_data(tmp_path):
    keys = smoke.data_keys({"task": "0.7*dapo_math_17k?limit=5 + 0.3*data:mine.jsonl?answer_column=solution"}, tmp_path)
    first, second = settings.checked_keys(keys, "")["task"].split(" + ")
    assert first == f"0.7*dapo_math_17k?path={tmp_path / 'task' / 'dapo_math_17k.jsonl'}"
    assert second == f"0.3*data:{tmp_path / 'task' / 'mine.jsonl'}?answer_column=solution"
    assert "solution" in json.loads((tmp_path / "task" / "mine.jsonl").read_text().splitlines()[0])
    same = {"dataset": "here/mine.csv?prompt_column=question", "eval_dataset": "there/mine.csv"}
    own = smoke.data_keys(settings.checked_keys(same, ""), tmp_path)
    path = own["task"].removeprefix("data:").removesuffix("?prompt_column=question")
    row = json.loads(Path(path).read_text().splitlines()[0])
    assert row == {"question": smoke.PROBLEMS[0][0], "answer": smoke.PROBLEMS[0][1]}
    held_out = own["eval_task"].removeprefix("data:")
    assert len(Path(held_out).read_text().splitlines()) == len(smoke.HELD_OUT)


def test_replay_keeps_a_stored_group():
    keys = {"replay_fraction": 0.1, "replay_max_age": 64, "gradient_accumulation_steps": 8, "steps_per_generation": 8}
    cut = smoke.cut_keys(keys)
    groups = cut["per_device_train_batch_size"] * cut["steps_per_generation"] // cut["num_generations"]
    assert groups * cut["replay_fraction"] >= 1
    assert cut["replay_max_age"] is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--smoke"], "model is required"),
        (["--smoke", "--model", "no/where", "--task", "ladder"], "model no/where: its config.json cannot be read"),
        (["--smoke", "--resume", "runs/x"], "--smoke starts a run of its own"),
    ],
)
def test_refusals(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(smoke.tempfile, "mkdtemp", lambda prefix: str(tmp_path / prefix))
    assert main(["train", *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused(capsys, tmp_path):
    (tmp_path / "file").touch()
    config = str(PAPERS / "octothinker_3b.yaml")
    assert main(["train", "--config", config, "--smoke", "--output_dir", str(tmp_path)]) == 2
    assert "exists and is not empty: a smoke run needs a new folder" in capsys.readouterr().err
