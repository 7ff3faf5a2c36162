import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import InputError
from equipoise.tasks.terms import Term, called, check_parameters, configured, nearest, parsed_terms, written


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("ladder", [(1.0, "ladder", {})]),
        (" 0.7*a:b?x=2&y=tru + c ", [(0.7, "a:b", {"x": 2, "y": "tru"}), (1.0, "c", {})]),
        ("a?x=1e-3&y=[1, 2]&z=true", [(1.0, "a", {"x": 1e-3, "y": [1, 2], "z": True})]),
        ("a?path=x+y.jsonl + 2 * b", [(1.0, "a", {"path": "x+y.jsonl"}), (2.0, "b", {})]),
        ("-1*a", [(-1.0, "a", {})]),
        ("data:/tmp/a b.jsonl", [(1.0, "data:/tmp/a b.jsonl", {})]),
        ("a?x='1'", [(1.0, "a", {"x": "1"})]),
        ("a?x='1e3'&y='true'", [(1.0, "a", {"x": "1e3", "y": "true"})]),
        ("2*a:'3*b?c=d&e + f.x'?g='h & i + j' + b", [(2.0, "a:3*b?c=d&e + f.x", {"g": "h & i + j"}), (1.0, "b", {})]),
        ("a:'it''s' + a:b's", [(1.0, "a:it's", {}), (1.0, "a:b's", {})]),
        (r'a:"tab\tquote\"end"', [(1.0, 'a:tab\tquote"end', {})]),
        (r"data:C:\mine\a=b + c&d.jsonl?x=1", [(1.0, r"data:C:\mine\a=b", {}), (1.0, "c&d.jsonl", {"x": 1})]),
        (r"data:'C:\mine\a=b + c&d.jsonl'?x=1", [(1.0, r"data:C:\mine\a=b + c&d.jsonl", {"x": 1})]),
    ],
)
def test_terms(text, terms):
    assert parsed_terms(text, "task") == [Term(*term) for term in terms]


SIGNS = st.text(st.sampled_from("ab1e3 ?&*+=:'\"\\\n-."), min_size=1, max_size=12)
VALUES = SIGNS | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none()


@given(SIGNS, st.dictionaries(st.sampled_from(["x", "answer_column"]), VALUES), st.floats(-1e6, 1e6))
def test_a_term_is_read_back_as_it_was_whatever_is_in_it(name, parameters, weight):
    terms = [Term(weight, f"data:{name}", parameters), Term(1.0, "ladder", {})]
    assert parsed_terms(" + ".join(map(written, terms)), "task") == terms


@pytest.mark.parametrize("text", ["", "a\0b", "a + ", " + a", "0.5*", "a*0.5", "1e999*a", "?x=1"])
def test_what_is_no_term_is_refused(text):
    with pytest.raises(InputError, match='task must be terms "name.parameter=value&…", each with an optional weight'):
        parsed_terms(text, "task")


@pytest.mark.parametrize("query", ["", "x", "x=", "=1", "x=1&x=2", "x=1&"])
def test_what_is_no_parameter_is_refused(query):
    if query == "x=":
        assert parsed_terms("a?x=", "task")[0].parameters == {"x": None}
        return
    with pytest.raises(InputError, match="task a: every parameter must be given once as name=value, got"):
        parsed_terms(f"a?{query}", "task")
    with pytest.raises(InputError, match=r"task a: parameter x cannot be read, got '\[1'"):
        parsed_terms("a?x=[1", "task")


def test_nearest_names():
    assert nearest("chain_som", ["chain_sum", "ladder"]) == "; did you mean chain_sum?"
    assert nearest("zzz", ["chain_sum"]) == ""
    with pytest.raises(InputError, match=r"^a has no parameter 'mox'; did you mean max\? \(it has max, min\)$"):
        check_parameters("a", {"mox": 1}, ["max", "min"])


def function(first: int, second: float = 1.0, third: str = "x"):
    if first < 0:
        raise ValueError("first must be >= 0")
    return first, second, third


def test_calls_with_parameters():
    assert called("f", function, {"first": 2, "second": 3}) == (2, 3, "x")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, r"^f needs the parameter first: f\?first=…$"),
        ({"first": 1.5}, "^f: parameter first must be int, got 1.5$"),
        ({"first": True}, "^f: parameter first must be int, got True$"),
        ({"first": 1, "second": "a"}, "^f: parameter second must be float, got 'a'$"),
        ({"first": 1, "second": float("nan")}, "^f: parameter second must be float, got nan$"),
        ({"first": 1, "third": 2}, "^f: parameter third must be str, got 2$"),
        ({"first": 1, "fourth": 2}, r"f has no parameter 'fourth'.*\(it has first, second, third\)"),
        ({"first": -1}, "^f: first must be >= 0$"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    with pytest.raises(InputError, match=message):
        called("f", function, parameters)


@dataclasses.dataclass
class Config:
    size: int = 1

    def validate(self):
        if self.size < 1:
            raise AssertionError("size must be positive")


def test_configurations_of_other_packages():
    assert configured("c", Config, {"size": 2}).size == 2
    with pytest.raises(InputError, match=r"c has no parameter 'sice'; did you mean size\? \(it has size\)"):
        configured("c", Config, {"sice": 2})
    with pytest.raises(InputError, match=r"c does not accept size=-1 \(AssertionError: size must be positive\)"):
        configured("c", Config, {"size": -1})
