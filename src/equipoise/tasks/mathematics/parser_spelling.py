r"""What math-verify's LaTeX parser would misread, spelt so that it does not.

It multiplies 2(3) to 5, takes 2\frac{5}{3} for a mixed number, drops primes and the index of a number, divides the d of
dx/dt away, and reads E, I and \gamma as constants.
"""

import re

from .spans import replaced_commands

_LETTERS = {"E": "capitalE", "I": "capitalI", "d": "smalld", "O": "capitalO", "S": "capitalS", "N": "capitalN"}
_ACCENTS = {"overline": "bar", "widehat": "hat", "widetilde": "tilde", "overrightarrow": "vec"}
_ACCENTED = "dot|ddot|hat|bar|vec|tilde|widetilde|widehat|overline|overrightarrow|mathcal|mathscr|mathfrak"
_DERIVATIVE = re.compile(
    r"\\frac\{\s*d\s*\^?\s*\{?\s*(\d?)\s*\}?\s*([A-Za-z](?:_\{?\w+\}?)?|\\[a-z]+)?\s*\}"
    r"\{\s*d\s*([A-Za-z])\s*(?:\^\s*\{?\s*(\d)\s*\}?)?\s*\}"
)


def for_parser(latex: str) -> str:
    r"""What the parser would misread, spelt so that it does not: names with accents, primes, 2(3), d, E, I."""
    text = re.sub(r"\\degree", r"\\cdot \\frac{\\pi}{180}", latex)
    text = re.sub(r"\\(sin|cos|tan|sec|csc|cot)\s*\^\s*\{\s*-\s*1\s*\}", r"\\arc\1 ", text)
    text = _DERIVATIVE.sub(_derivative, text)
    text = replaced_commands(
        text, _ACCENTED, 1, lambda name, inner: rf"\text{{{_ACCENTS.get(name, name)}{_name(inner)}}}"
    )
    text = re.sub(
        r"(\\[a-zA-Z]+|[A-Za-z]|\\text\{\w+\})('+)", lambda m: rf"\text{{prime{'i' * len(m[2])}{_name(m[1])}}}", text
    )
    text = re.sub(r"\\text\{([^{}]*)\}", lambda m: rf"\text{{{_name(m[1])}}}", text)
    text = re.sub(r"\\(odot|oplus|otimes|ell|star|dagger|mho|perp|parallel)(?![A-Za-z])", r"\\text{\1}", text)
    text = re.sub(r"\\gamma(?![A-Za-z])", r"\\text{lettergamma}", text)
    text = re.sub(r"\\(?:angle|triangle|overline|measuredangle)\s*", "", text)
    text = re.sub(r"\\(max|min)(?=\s*\}|\s*$)", r"\\text{\1}", text)
    text = re.sub(r"(\d|\))\s*(?=\()", r"\1\\cdot ", text)
    text = re.sub(r"\)\s*(?=\d)", r")\\cdot ", text)
    text = re.sub(r"\}\s*(?=\d)", r"}\\cdot ", text) if not re.search(r"_\{[^{}]*\}\s*\d", text) else text
    text = re.sub(r"(?<=\})\\cdot (?=\d*\}\{)", "", text)
    text = re.sub(r"(\d)\s+(?=\d)", r"\1 \\unreadable ", text)  # "1 2" is no number
    text = re.sub(r"(\d)\s*(?=\\frac)", r"\1\\cdot ", text)
    text = re.sub(r"(?<!\\)\[([^\[\]]*)\](?=\s*\^)", r"(\1)", text)
    if not re.search(r"\\(?:int|sum|prod|lim)", text):
        pieces = re.split(r"(\\text\{[^{}]*\}|\\[A-Za-z]+)", text)
        text = "".join(
            p if p.startswith("\\") else re.sub(r"[EIdOSN]", lambda m: rf"\text{{{_LETTERS[m[0]]}}}", p) for p in pieces
        )
    return re.sub(r"\\(sin|cos|tan|sec|csc|cot|log|ln)\s*(\^|_)\s*", r"\\\1\2", text)


def _name(text: str) -> str:
    """A word for a name: the parser takes letters only."""
    spelt = re.sub(r"\d", lambda m: "zabcdefghj"[int(m[0])] + "q", text)
    return re.sub(r"[^A-Za-z]", "", spelt)


def _derivative(match: re.Match) -> str:
    """The derivative as one name, its order counted in letters."""
    above, below = "i" * int(match[1] or 1), "i" * int(match[4] or 1)
    return rf"\text{{derivative{above}{_name(match[2] or '')}by{match[3]}{below}}}"
