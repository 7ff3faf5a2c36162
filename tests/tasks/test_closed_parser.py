"""Formulas pass the closed parser with sympy's own result; whatever could act is refused before it is evaluated."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

FORMULAS = [
    "2+3*x", "(1+2)/3 - 4**2", "7 % 4",
    "sin(x)**2 + pi + E + I", "5!", "5!!", "f(x)", "log(x, 2)", "ln(2)", "1e5", "0x1f + 0b11",
    "sqrt(2)*x**(1/3)", "Abs(-3)", "abs(-3)", "max(1, 2)", "binomial(5, 2)", "gamma(5)", "exp(-x**2)", "oo", "-x",
    "Rational(1, 3)", "x**2/2 + C", "17 // 5 % 3", "Max(x, 2)", "1 < 2", "Heaviside(x)", "Function('g')(x)", "[1, x]",
    "pow(2, 3)", "1.5*x - .5",
]  # fmt: skip
ACTS = [
    "print.__self__.open('x','w')", "__import__('os').system('touch x')", "open('x','w')", "exec('x=1')", "eval('1')",
    "().__class__.__base__.__subclasses__()", "getattr(x, 'y')", "S('1')", "sympify('1')", "x.y", "pi.evalf()",
    "x[0]", "Lambda(x, x)", "lambdify(x, x)", "Integral(x, x)", "integrate(x, x)", "solve(x, x)", "var('q')",
    "preview(x)", "f'{x}'", "x if y else z", "(lambda: 1)()", "compile('1', '', 'eval')", "vars()", "globals()",
    "breakpoint()", "input()", "Symbol('x', positive=True)", "plot(x)", "type(x)(3).func.__init__",
    "Symbol('x').name.__class__", "parse_expr('1')", "sum([i for i in (1, 2)])", "{i: 1 for i in (1,)}",
]  # fmt: skip
NO_NUMBERS = ["'abc'", "None", "b'1'", "['4', '2']"]

PARSE = """
import json, sys
from sympy.parsing.sympy_parser import parse_expr
from equipoise.tasks.workers import closed_parser
def result(text, **settings):
    try:
        return repr(parse_expr(text, **settings))
    except Exception as error:
        return type(error).__name__
texts, noted = json.loads(sys.argv[1]), []
def refuse(what):
    noted.append(what)
    return PermissionError(what)
open_results = [result(text) for text in texts] if sys.argv[2] == "compare" else None
closed_parser.close_sympy(refuse, lambda: noted.append("memory"))
answers = []
for text in texts:
    noted.clear()
    answers.append([result(text), len(noted), result(text, evaluate=False)])
print(json.dumps([open_results, answers]))
"""


def parsed(texts, tmp_path, mode="closed"):
    """(results of the open parser, [result, number of refusals, result unevaluated] of the closed one)."""
    command = [sys.executable, "-c", PARSE, json.dumps(texts), mode]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_formulas_are_what_sympy_makes_of_them(tmp_path):
    plain, closed = parsed(FORMULAS, tmp_path, "compare")
    assert [result for result, *_ in closed] == plain
    assert not {refusals for _, refusals, _ in closed} - {0}
    assert "PermissionError" not in {unevaluated for *_, unevaluated in closed}


def test_what_could_act_is_refused_and_noted(tmp_path):
    _, closed = parsed(ACTS, tmp_path)
    passed = [
        text
        for text, (result, *_) in zip(ACTS, closed, strict=True)
        if result not in ("PermissionError", "SyntaxError")
    ]
    assert passed == []
    unnoted = [t for t, (result, n, _) in zip(ACTS, closed, strict=True) if n == 0 and result != "SyntaxError"]
    assert unnoted == []
    assert {unevaluated for *_, unevaluated in closed} <= {"PermissionError", "SyntaxError"}
    assert not list(tmp_path.iterdir())


def test_what_is_no_number_is_an_error_like_any_other(tmp_path):
    _, closed = parsed(NO_NUMBERS, tmp_path)
    assert [answer[:2] for answer in closed] == [["ValueError", 0]] * len(NO_NUMBERS)


EVAL = """
import json, sys, types
from equipoise.tasks.workers import closed_parser
module, noted = types.ModuleType("scorer"), []
exec("def read(text): return eval(text)", vars(module))
def refuse(what):
    noted.append(what)
    return PermissionError(what)
closed_parser.close_eval([module], refuse)
answers = []
for text in json.loads(sys.argv[1]):
    noted.clear()
    try:
        answers.append([repr(module.read(text)), len(noted)])
    except Exception as error:
        answers.append([type(error).__name__, len(noted)])
print(json.dumps(answers))
"""


@pytest.mark.parametrize(
    ("text", "result", "refusals"),
    [
        ("['a', 'b']", "['a', 'b']", 0), (" [[1, 0], [0, 1]]", "[[1, 0], [0, 1]]", 0), ("(0x1f + 1) << 2", "128", 0),
        ("1/2", "0.5", 0), ("{1: (2, None)}", "{1: (2, None)}", 0), ("-3 // 2", "-2", 0), ("abc", "NameError", 0),
        ("abc def", "SyntaxError", 0), ("print", "PermissionError", 1), ("open('x', 'w')", "PermissionError", 1),
        ("().__class__", "PermissionError", 1), ("[i for i in 'ab']", "PermissionError", 1),
        ("'a'[0]", "PermissionError", 1),
        ("__import__('os').system('touch x')", "PermissionError", 1), ("f'{1}'", "PermissionError", 1),
        ("abc()", "PermissionError", 1), ("(lambda: 1)", "PermissionError", 1),
    ],
)  # fmt: skip
def test_eval_of_scorers_knows_literals_and_arithmetic(text, result, refusals, evaluated):
    assert evaluated[text] == [result, refusals]


@pytest.fixture(scope="module")
def evaluated(request, tmp_path_factory):
    """Every text of the test above, evaluated in one process."""
    marks = [m for m in test_eval_of_scorers_knows_literals_and_arithmetic.pytestmark if m.name == "parametrize"]
    texts = [text for text, *_ in marks[0].args[1]]
    folder = tmp_path_factory.mktemp("eval")
    command = [sys.executable, "-c", EVAL, json.dumps(texts)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, check=True)
    assert not list(folder.iterdir())
    return dict(zip(texts, json.loads(ended.stdout), strict=True))
