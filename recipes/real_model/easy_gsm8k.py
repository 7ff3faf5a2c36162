"""The easy part of GSM8K to train on, and its test questions to evaluate on, as `prompt` and `answer` (#### 42).

    python recipes/real_model/easy_gsm8k.py gsm8k_train.jsonl gsm8k_test.jsonl --output runs/gsm8k [--steps 2]

The files are those of github.com/openai/grade-school-math (grade_school_math/data; MIT). A question is easy whose
solution has at most `--steps` calculations, which are annotated as <<48/2=24>>. The test questions are all kept.
"""

import argparse
import json
import re
from pathlib import Path

CALCULATION = re.compile(r"<<.*?>>")


def main() -> None:
    """Write train.jsonl and test.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/gsm8k"))
    parser.add_argument("--steps", type=int, default=2, help="Calculations of an easy question, at most.")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, source, steps in (("train", options.train, options.steps), ("test", options.test, None)):
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        kept = [row for row in rows if steps is None or 1 <= len(CALCULATION.findall(row["answer"])) <= steps]
        lines = [json.dumps({"prompt": row["question"], "answer": row["answer"]}) for row in kept]
        (options.output / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{options.output / name}.jsonl: {len(kept)} of {len(rows)} questions")


if __name__ == "__main__":
    main()
