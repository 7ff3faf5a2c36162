"""What samples faster, vLLM or transformers' generate, and what vLLM's log-probs differ by from the trainer's.

    make test-vllm    # makes the environment
    OMP_NUM_THREADS=2 .venv-vllm/bin/python benchmarks/sampling_engines.py --model FOLDER

Speed: prompts of 16 tokens, completions of exactly so many tokens, at temperature 1, in float32 and in bf16; a random
Llama of about a million parameters, and the model of a folder. Each engine is measured in a process of its own, after
one call that is not counted: the median of three. The time to make an engine is measured too: a run pays it once.
Mismatch: log-probs of the same tokens by the model in transformers, in float32, and what becomes of a ratio whose true
value is 1: its spread, and the bounds that BAPO's search finds for it, against those for the exact ratio.
Writes results/sampling_engines.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "sampling_engines.md"
ENGINES = (("transformers", "float32"), ("vllm", "float32"), ("vllm", "bfloat16"))
SIZES = {"1M": (256, 48), "folder": (32, 48)}
"""Prompts, and tokens of a completion."""


def small_model(folder: Path) -> Path:
    """A random Llama with heads of 32."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=256,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
            initializer_range=0.08,
        )
    ).float()
    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(512)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1").save_pretrained(folder)
    return folder


def prompts(model: str, count: int) -> list[list[int]]:
    import torch
    from transformers import AutoConfig

    size = AutoConfig.from_pretrained(model).vocab_size
    return torch.randint(2, size, (count, 16), generator=torch.Generator().manual_seed(1)).tolist()


def measured(engine: str, dtype: str, model: str, count: int, length: int) -> dict:
    """Seconds to make the engine, tokens per second; with vLLM what it sampled, and its log-probs."""
    import torch

    asked, begun = prompts(model, count), time.perf_counter()
    if engine == "vllm":
        from vllm import LLM, SamplingParams

        llm = LLM(
            model=model, dtype=dtype, max_model_len=256, max_num_batched_tokens=4096, seed=0,
            logprobs_mode="processed_logprobs", enable_prefix_caching=False,
        )  # fmt: skip
        settings = SamplingParams(temperature=1.0, max_tokens=length, ignore_eos=True, logprobs=0)

        def sample():
            return llm.generate([{"prompt_token_ids": ids} for ids in asked], settings, use_tqdm=False)
    else:
        from transformers import AutoModelForCausalLM

        policy = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        ids = torch.tensor(asked)
        settings = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": True, "temperature": 1.0}

        def sample():
            with torch.no_grad():
                return policy.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), top_k=0, top_p=1.0, **settings
                )

    made, times = time.perf_counter() - begun, []
    for _ in range(4):
        begun = time.perf_counter()
        outputs = sample()
        times.append(time.perf_counter() - begun)
    found = {"made": made, "first": times[0], "rate": count * length / statistics.median(times[1:])}
    if engine == "vllm":
        answers = [output.outputs[0] for output in outputs]
        found["ids"] = [list(answer.token_ids) for answer in answers]
        found["logprobs"] = [
            [of[token].logprob for of, token in zip(answer.logprobs, answer.token_ids, strict=True)]
            for answer in answers
        ]
    return found


def mismatch(model: str, count: int, found: dict) -> dict:
    """What vLLM's log-probs do to the ratios of fresh tokens, and to those of tokens that are stale."""
    import torch
    from transformers import AutoModelForCausalLM

    from equipoise import BoundGrid, contribution, select_bounds

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    exact = []
    with torch.no_grad():
        for row, ids in zip(prompts(model, count), found["ids"], strict=True):
            logits = policy(input_ids=torch.tensor([row + ids])).logits[0, len(row) - 1 : -1]
            exact.append(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0])
    exact, theirs = torch.stack(exact).double(), torch.tensor(found["logprobs"]).double()
    error, g = exact - theirs, torch.Generator().manual_seed(2)
    mask = torch.ones_like(error, dtype=torch.bool)
    advantage = torch.randn(len(error), 1, generator=g, dtype=torch.float64).expand_as(error)
    moved = 0.2 * torch.randn(error.shape, generator=g, dtype=torch.float64)  # of a policy some updates old
    said = {
        "mean": error.abs().mean().item(),
        "most": error.abs().max().item(),
        "ratio_std": error.exp().std().item(),
        "outside": ((error.exp() < 0.8) | (error.exp() > 1.2)).double().mean().item(),
    }
    grid = BoundGrid()
    for name, log_ratio in {"fresh": torch.zeros_like(error), "stale": moved}.items():
        for who, off in (("exact", 0), ("vLLM", error)):
            made = contribution((log_ratio + off).exp(), advantage, mask, grid)
            chosen = select_bounds(made, grid, target_share=0.51)
            end = "inactive" if chosen.inactive else "exhausted" if chosen.exhausted else "found"
            said[f"{name}, {who}"] = f"[{float(chosen.bounds.low):.2f}, {float(chosen.bounds.high):.2f}] {end}"
    return said


def in_a_process(task: str, *arguments: object) -> dict:
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--task", task, "--output", output, "--arguments", *arguments]
        subprocess.run(list(map(str, command)), env=os.environ | environment, check=True)
        return json.loads(output.read_text())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="folder of a larger model")
    parser.add_argument("--task", choices=("measured", "mismatch"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--arguments", nargs="*", default=[])
    options = parser.parse_args()
    if options.task:
        run_task(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        models = {"1M": str(small_model(Path(folder)))} | ({"folder": options.model} if options.model else {})
        lines = [line for size, model in models.items() for line in lines_of(size, model, Path(folder))]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}"
    RESULTS.write_text(f"{machine}, load {os.getloadavg()[0]:.1f} at the end\n\n" + "\n".join(lines) + "\n")


def lines_of(size: str, model: str, folder: Path) -> Iterator[str]:
    """What is measured with a model, line by line."""
    count, length = SIZES[size]
    for engine, dtype in ENGINES:
        found = in_a_process("measured", engine, dtype, model, count, length)
        speed = f"{found['rate']:.0f} tokens/s, made in {found['made']:.1f} s, first call {found['first']:.1f} s"
        said = [f"- {size}, {engine}, {dtype}: {speed}"]
        if engine == "vllm":
            kept = folder / "kept.json"
            kept.write_text(json.dumps(found))
            said.append(f"  - {in_a_process('mismatch', model, count, kept)}")
        print(*said, sep="\n", flush=True)
        yield from said


def run_task(options: argparse.Namespace) -> None:
    if options.task == "measured":
        engine, dtype, model, count, length = options.arguments
        found = measured(engine, dtype, model, int(count), int(length))
    else:
        model, count, kept = options.arguments
        found = mismatch(model, int(count), json.loads(Path(kept).read_text()))
    options.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
