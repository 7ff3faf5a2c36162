"""sympy's parser and the `eval` of scorers with closed namespaces: formulas and literals, and nothing that acts.

`sympy.parse_expr` evaluates text as Python with all of sympy and the built-in functions at hand, `open` and `exec`
among them. Here the Python that it makes of a text is looked at before it is evaluated: numbers, symbols, arithmetic
and functions of mathematics pass. There are no attributes, so that nothing can be reached from what passes.
"""

import ast
import builtins
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

_NODES = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator,
    ast.BoolOp, ast.boolop, ast.Compare, ast.cmpop, ast.Tuple, ast.List, ast.Set, ast.Dict,
)  # fmt: skip
_FROM_TEXT = frozenset(["Symbol", "Integer", "Float", "Rational", "Function", "RealNumber", "Number"])
"""What the parser calls with a text: it makes a symbol or a number of it, and evaluates nothing."""
_FUNCTIONS = frozenset(
    ["Add", "Mul", "Pow", "Mod", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Max", "Min", "Abs", "Tuple", "FiniteSet",
     "Matrix", "Interval", "Union", "sqrt", "cbrt", "root", "abs", "round", "min", "max", "sum", "pow", "divmod"]
)  # fmt: skip


def close_sympy(refuse: Callable[[str], Exception], note_memory: Callable[[], None]) -> None:
    """Closes the parser of sympy, for whoever calls it in this process.

    Args:
        refuse: makes the error to raise for what may not be evaluated.
        note_memory: told that an evaluation ended in MemoryError, which scorers swallow.
    """
    from sympy.parsing import sympy_parser

    stringify, evaluate = sympy_parser.stringify_expr, sympy_parser.eval_expr

    @functools.wraps(stringify)
    def closed_stringify(s: str, local_dict: dict, global_dict: dict, transformations: Any) -> str:
        code = stringify(s, local_dict, global_dict, transformations)
        if (what := _not_a_formula(code, local_dict, global_dict)) is not None:
            raise refuse(what)
        return code

    @functools.wraps(evaluate)
    def watched_evaluate(code: Any, local_dict: dict, global_dict: dict) -> Any:
        try:
            return evaluate(code, local_dict, global_dict)
        except MemoryError:
            note_memory()
            raise

    sympy_parser.stringify_expr, sympy_parser.eval_expr = closed_stringify, watched_evaluate


def close_eval(modules: list[ModuleType], refuse: Callable[[str], Exception]) -> None:
    """Gives modules an `eval` that knows literals and arithmetic only.

    Args:
        modules: those whose code may call it.
        refuse: makes the error to raise for what may not be evaluated.
    """

    def closed_eval(source: str, *namespaces: dict) -> Any:
        tree = ast.parse(source.strip(), mode="eval")
        for node in ast.walk(tree):
            is_built_in = isinstance(node, ast.Name) and hasattr(builtins, node.id)
            if is_built_in or isinstance(node, ast.Call) or not isinstance(node, _NODES):
                raise refuse(_described(node))
        return eval(compile(tree, "<answer>", "eval"), {"__builtins__": {}})

    for module in modules:
        vars(module)["eval"] = closed_eval


def _not_a_formula(code: str, local_dict: dict, global_dict: dict) -> str | None:
    """What in the source could act; None for a formula, and for source that is no Python, which fails on its own.

    Raises:
        ValueError: a text or another literal that is no number: no formula, and harmless.
    """
    try:
        tree = ast.parse(code.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return None
    read = set()
    for node in ast.walk(tree):  # a call comes before its arguments
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FROM_TEXT:
            read.update(map(id, node.args))
        is_unknown = isinstance(node, ast.Name) and not _is_known(node.id, local_dict, global_dict)
        if is_unknown or not isinstance(node, _NODES):  # keywords of calls among them
            return _described(node)
        if (
            isinstance(node, ast.Constant)
            and id(node) not in read
            and not isinstance(node.value, int | float | complex)
        ):
            raise ValueError(f"{str(node.value)[:80]!r} is no number")
    return None


def _described(node: ast.AST) -> str:
    return f"evaluating {type(node).__name__} {ast.unparse(node)[:80]!r}"


def _is_known(name: str, local_dict: dict, global_dict: dict) -> bool:
    if name in _FROM_TEXT or name in _FUNCTIONS or name in local_dict:
        return True
    return name in global_dict and _is_mathematics(global_dict[name])


def _is_mathematics(value: object) -> bool:
    from sympy import Basic
    from sympy.core.function import Function, FunctionClass

    if isinstance(value, FunctionClass):  # sin, factorial …; not Integral or Derivative, which would be no answer
        return isinstance(value, type) and issubclass(value, Function)
    return isinstance(value, Basic) and not isinstance(value, type)  # pi, E, I
