r"""Expected answers as data sets have them: each is read for what it is, and no other answer passes for it."""

import json
import os
import re
from pathlib import Path

import pytest
from datasets import Dataset

from equipoise.tasks.answers import MAX_DROPPED_FRACTION, check_answers
from equipoise.tasks.mathematics import parsed_gold, perturbed, verdict

FOLDER = Path(os.environ.get("EQUIPOISE_MATH_DATA", Path(__file__).resolve().parents[4] / "shared" / "data" / "math"))

# One or more of each form that the seven public files have (AIME, AMC, MATH, GSM8K, Minerva, OlympiadBench).
SAMPLES = [
    "204", "027", "27.0", "-1.0", "18", "1,450,000", "2,125", r"10,\!080", r"11,\! 111,\! 111,\! 100", r"\$32,\!348",
    r"\$18.90", "58,500", ".35625", ".0000672", r"\frac{14}{3}", r"\frac43", r"\frac 59", r"\frac9{19}",
    r"\frac{270}7\text{ degrees}", r"1\frac{4}{5}", r"137 \frac{1}{2}", r"90^\circ", r"$90^{\circ}$,$60^{\circ}$",
    r"15\mbox{ cm}^2", r"864 \mbox{ inches}^2", r"5.4 \text{ cents}", "62.5%", r"$8 \%$", "52_8", "4210_{5}", "6 - 5i",
    r"\left( 3, \frac{\pi}{2} \right)", "(6,31,-1)", "1,-2", r"3 \pm 2 \sqrt{2}", r"\{1\pm\sqrt{5},-2\}", "(3,4]",
    r"(-\infty, 2) \cup (3, \infty)", r"x \in [-2,7]", r"$(-\infty, 0) \cup\{1\}$.", r"k \geqslant 2",
    r"\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix}", r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}",
    r"\begin{cases} x=1 \\ y=2 \end{cases}", r"\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}", r"\text{Evelyn}",
    r"\text{(C)}", r"\text{June 20}", "y = 2x + 3", "5x - 7y + 11z + 4 = 0", "x=5", r"\cot x", "4.5e33", "1e-07",
    "1e-3",
    "2.7778e-6", "-1./3", "-3./2", "np.arcsin(10/13)", r"\arcsin{1.3 \sin{\theta_w}}", "MR=SRMC", "E_{1},E_{2}", "m",
    r"\frac{dM}{dt}=\frac{10^{5} L_{\odot}}{0.007 c^{2} M_{\odot}^{6}} M^{6}", r"y^{\prime}+r y-r x(t)=0", "+2",
    r"x_{0} \cos (\omega t)+$ $\dot{x}_{0} \sin (\omega t) / \omega", "I(0) e^{-\\frac{t}{R C}}\n", r"-8-8 \sqrt{3} i",
    r"\frac{d^{2} v_{o}}{d t^{2}}+\frac{v_{o}}{L C}=\frac{v_{i}}{L C}", r"\lambda_{\text {red}} / \sqrt{2}",
    r"(1 - 3e^{-2t} + 2e^{-5t}) u(t)", r"m_{\max }=n^{2}-n-1", "$69$,$84$", "$221,$8$",
    r"$(1,8,19), (2,7,13), (4,5,7)$",
    r"$f(x)=-1$,$f(x)=x+1$", r"$\angle B E A_{1}=90$,$\angle A E B_{1}=90$", "2400, 1350, 864", "$41352,42351,51342$",
    r"$\left\lfloor\log _{2} n\right\rfloor+1$", r"$\frac{100!}{2^{50}}$", r"$2^{1009}$", "-2,-2", "16,3,1,1",
    r"$x=\frac{1}{6} \pi+\pi k, \frac{1}{3} \pi+\pi k$", r"$\frac{d !}{2 k(d-k) !}$", r"$(10^{4}, 10^{3}, 10^{10})$",
    r"\{x \mid x > 2\}", r"\binom{5}{2}", r"{7 \choose 3}", r"x \equiv 3 \pmod{7}",
    r"n \in \mathbb{Z}", "(3, 4)", "[1,2]", "1,000", "She has 16 - 3 = <<16-3=13>>13.\n#### 1,300",
    r"The image is $s=\boxed{1.6} \mathrm{~cm}$ wide.",
]  # fmt: skip


@pytest.mark.parametrize("gold", SAMPLES)
def test_a_gold_is_told_from_all_that_are_like_it(gold):
    text = gold if "####" in gold or "boxed" in gold else rf"It is \boxed{{{gold}}}."
    assert verdict(text, [gold]) == ("correct", "")
    for other in perturbed(gold):
        assert verdict(rf"\boxed{{{other}}}", [gold])[0] != "correct", other


@pytest.mark.parametrize(
    ("gold", "others"),
    [
        ("12", {"13", "-(12)"}), ("-0.5", {"-0.6", "0.5"}), ("1,000", {"1,001", "1"}), ("0", {"1"}),
        (r"\begin{array} 1 \\ 2 \end{array}", {r"\begin{array} 1 \\ 3 \end{array}", r"\begin{array} 1 \end{array}"}),
        ("$8$,$4$", {"$8$,$5$", "8"}), (r"\text{Evelyn}", set()), (r"15\mbox{ cm}^2", {r"16\mbox{ cm}^2"}),
        ("1e-07", {"1e-08", "-(1e-07)"}), (r"\pm 2", {r"\pm 3"}), ("x", {"-(x)"}), ("a-b", {"-(a-b)"}),
        ("-a-b", {"-(-a-b)"}),
        (r"\binom{5}{2}", {r"\binom{6}{2}", r"-(\binom{5}{2})"}), (r"\binom52", {r"\binom53", r"-(\binom52)"}),
        (r"{5 \choose 2}", {r"{6 \choose 2}", r"-({5 \choose 2})"}),
        (r"so \boxed{3} m", {"4", "-(3)"}), ("2 + 3 = 5\n#### 5", {"6", "-(5)"}),
    ],
)  # fmt: skip
def test_changes_of_a_gold(gold, others):
    assert {re.sub(r"\s+", " ", other) for other in perturbed(gold)} == others


@pytest.mark.parametrize(
    "gold",
    ["", "  ", "?", r"\frac{1}{", "$t(0,4]$", r"\begin{pmatrix} 1 \\ ", "(1,2", "x = ", "= 5 = ", r"\sqrt{}", "1 2 3",
     "every word of this long sentence would have to be said again in an answer", "5 +", "{" * 50 + "}" * 50],
)  # fmt: skip
def test_what_is_no_answer_is_not_read_as_one(gold):
    assert parsed_gold(gold) is None
    assert verdict(r"\boxed{5}", [gold]) == ("bad_gold", gold[:200])


def rows(name):
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines() if line.strip()]


def real(name):
    """The expected answers of a file, as the field reads them."""
    column = {"minerva_math.jsonl": "solution", "olympiadbench.jsonl": "final_answer"}.get(name, "answer")
    return [str(row[column]) if isinstance(row[column], int | float) else row[column] for row in rows(name)]


FILES = {
    "aime_2024.jsonl": 30, "aime_2025.jsonl": 30, "amc23.jsonl": 40, "math_500.jsonl": 500, "minerva_math.jsonl": 272,
    "olympiadbench.jsonl": 675, "gsm8k_test.jsonl": 1319, "gsm8k_train.jsonl": 7473,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the public files are not in {FOLDER} (EQUIPOISE_MATH_DATA names it)")
@pytest.mark.parametrize("name", FILES)
def test_golds_of_the_public_files_are_verified(name, caplog):
    golds = real(name)
    assert len(golds) == FILES[name]
    kept = check_answers(
        "math", Dataset.from_dict({"prompt": ["?"] * len(golds), "answer": golds}), name, progress=False
    )
    dropped = len(golds) - len(kept)
    assert dropped <= MAX_DROPPED_FRACTION * len(golds)
    assert len(re.findall(r"row \d+ ", caplog.text)) == dropped
