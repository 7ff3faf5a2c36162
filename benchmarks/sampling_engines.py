"""What samples faster, vLLM or transformers' generate, and what vLLM's log-probs differ by from the trainer's.

    make test-vllm    # makes the environment
    OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/sampling_engines.py --model FOLDER

Speed: prompts of 16 tokens, completions of exactly so many tokens, at temperature 1, in float32 and in bf16; a random
Llama of about a million parameters, and the model of a folder. Each engine is measured in a process of its own, after
one call that is not counted: the median of three, by the clock and by processor time (on a busy machine the second is
what counts, with one thread). The time to make an engine is measured too: a run pays it once.
Mismatch: log-probs of the same tokens by the model in transformers, in float32; what becomes of a ratio whose true
value is 1, and of the bounds that BAPO's search finds. With --errors, without an engine, for errors of given size.
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
        begun = time.perf_counter(), time.process_time()
        outputs = sample()
        times.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    first, (seconds, of_processors) = times[0][0], map(statistics.median, zip(*times[1:], strict=True))
    tokens = count * length
    found = {"made": made, "first": first, "rate": tokens / seconds, "processor_rate": tokens / of_processors}
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

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    exact = []
    with torch.no_grad():
        for row, ids in zip(prompts(model, count), found["ids"], strict=True):
            logits = policy(input_ids=torch.tensor([row + ids])).logits[0, len(row) - 1 : -1]
            exact.append(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0])
    exact, theirs = torch.stack(exact).double(), torch.tensor(found["logprobs"]).double()
    error = exact - theirs
    return {
        "mean": error.abs().mean().item(),
        "most": error.abs().max().item(),
        "ratio_std": error.exp().std().item(),
        "outside": ((error.exp() < 0.8) | (error.exp() > 1.2)).double().mean().item(),
        "searches": searches(error),
    }


def searches(error) -> list[str]:
    """What BAPO's search finds where the log-ratios of tokens [rows, time] are off by `error`.

    With the paper's lower bounds and the defaults; for fresh tokens, whose ratio is 1, and a target of 0.55, and for
    stale ones, with log-ratios of 0.2 and a target in the middle of the path, so that there is something to find.
    """
    import torch

    from equipoise import BoundGrid, contribution, select_bounds

    g = torch.Generator().manual_seed(3)
    advantage = torch.randn(len(error), 1, generator=g, dtype=torch.float64).expand_as(error)
    moved = 0.2 * torch.randn(error.shape, generator=g, dtype=torch.float64)
    mask, said = torch.ones_like(error, dtype=torch.bool), []
    for low in ((0.6, 0.9), (0.9, 0.98)):
        grid = BoundGrid(low=low)

        def chosen(log_ratio, target, grid=grid):
            return select_bounds(contribution(log_ratio.exp(), advantage, mask, grid), grid, target_share=target)

        path = chosen(moved, 0.999)
        middle = (path.share_before + path.share_after) / 2
        for name, log_ratio, target in (("fresh", error, 0.55), ("stale", moved + error, middle)):
            found = chosen(log_ratio, target)
            bounds, negative = (float(found.bounds.low), float(found.bounds.high)), advantage < 0
            clipped = (negative & (log_ratio.exp() < bounds[0])).sum() / negative.sum()
            end = "inactive" if found.inactive else "exhausted" if found.exhausted else "found"
            said.append(
                f"low {low}, {name}: [{bounds[0]:.2f}, {bounds[1]:.2f}] {end}, share {found.share_before:.4f} to "
                f"{found.share_after:.4f}, {clipped:.1%} of negative tokens clipped"
            )
    return said


def of_normal_errors() -> Iterator[str]:
    """The searches for errors of given size, without an engine."""
    import torch

    for std in (0.0, 1e-6, 0.014, 0.05):
        g = torch.Generator().manual_seed(2)
        error = std * torch.randn((256, 48), generator=g, dtype=torch.float64)
        yield from [f"- normal errors of {std:g}", *(f"  - {line}" for line in searches(error))]


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
    parser.add_argument("--errors", action="store_true", help="only what errors of given size do to the search")
    parser.add_argument("--task", choices=("measured", "mismatch"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--arguments", nargs="*", default=[])
    options = parser.parse_args()
    if options.task:
        run_task(options)
        return
    if options.errors:
        print(*of_normal_errors(), sep="\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        models = {"1M": str(small_model(Path(folder)))} | ({"folder": options.model} if options.model else {})
        lines = [line for size, model in models.items() for line in lines_of(size, model, Path(folder))]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}"
    named = f"; folder: {Path(options.model).resolve().name}" if options.model else ""
    RESULTS.write_text(f"{machine}, load {os.getloadavg()[0]:.1f} at the end{named}\n\n" + "\n".join(lines) + "\n")


def lines_of(size: str, model: str, folder: Path) -> Iterator[str]:
    """What is measured with a model, line by line."""
    count, length = SIZES[size]
    for engine, dtype in ENGINES:
        found = in_a_process("measured", engine, dtype, model, count, length)
        rates = f"{found['processor_rate']:.0f} tokens per second of a processor, {found['rate']:.0f} of the clock"
        speed = f"{rates}; made in {found['made']:.1f} s, first call {found['first']:.1f} s"
        said = [f"- {size}, {engine}, {dtype}: {speed}"]
        if engine == "vllm":
            kept = folder / "kept.json"
            kept.write_text(json.dumps(found))
            differs = in_a_process("mismatch", model, count, kept)
            said += [f"  - {line}" for line in (shown(differs), *differs["searches"])]
        print(*said, sep="\n", flush=True)
        yield from said


def shown(differs: dict) -> str:
    """The numbers of `mismatch` in one line."""
    mean, most, spread, outside = (f"{differs[name]:.2g}" for name in ("mean", "most", "ratio_std", "outside"))
    return f"mean {mean}, most {most}, ratio_std {spread}, outside {outside}"


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
