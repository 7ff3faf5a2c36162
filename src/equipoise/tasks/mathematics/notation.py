r"""One spelling for what can be spelt in many ways: the normalisation of an answer before it is parsed.

Nothing here changes what an answer means, except that spacing, type faces and sizes mean nothing.
"""

import re
from fractions import Fraction

from .spans import replaced_commands
from .unicode_notation import latex_of_unicode

WRAPPERS = r"text|textbf|textit|textrm|textsf|texttt|textnormal|mathrm|mathbf|mathit|mathsf|mathtt|mbox|hbox|operatorname\*?|boldsymbol|bm|emph|rm|bf|underline|textup|fbox|framebox|boxed"  # noqa: E501
FUNCTIONS = (
    "arcsin", "arccos", "arctan", "arcsec", "arccsc", "arccot", "arcsinh", "arccosh", "arctanh", "sinh", "cosh", "tanh",
    "sin", "cos", "tan", "sec", "csc", "cot", "log", "ln", "exp", "gcd", "max", "min",
)  # fmt: skip

_REPLACED = [  # in this order: (pattern, what stands in its place)
    (re.compile(r"\\(?:displaystyle|tiny|small|normalsize|large|Large|LARGE|huge|Huge|bigskip|medskip|textstyle|scriptstyle|limits|nolimits|hfill|square|blacksquare|Box|qed|checkmark|null|strut|hline|noindent|rm(?![A-Za-z])|bf(?![A-Za-z]))(?![A-Za-z])"), " "),  # noqa: E501
    (re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?|m?left|m?right)(?![A-Za-z])\s*\.?"), ""),
    (re.compile(r"\\(?:hspace|vspace|phantom|hphantom|vphantom)\*?\s*\{[^{}]*\}"), " "),
    (re.compile(r"\\(?:[dtcsx]|nice)frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\(?:leqslant|leqq|leq)(?![A-Za-z])|<=|=<"), r"\\le "),
    (re.compile(r"\\(?:geqslant|geqq|geq)(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\(?:neq|not\s*=)|(?<!\d)!=|<>"), r"\\ne "),  # 5!=120 is a factorial
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:times|ast|cdotp|star|bullet)(?![A-Za-z])"), r"\\cdot "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\*"), r"\\cdot "),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\(?:varnothing|O(?![A-Za-z]))"), r"\\emptyset "),
    (re.compile(r"\\(?:dots[cbmio]?|cdots|ldots|hdots|vdots)(?![A-Za-z])|\.\.\."), r"\\ldots "),
    (re.compile(r"\\(?:lbrace|lcurly)(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace|rcurly)(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\lbrack(?![A-Za-z])"), "["),
    (re.compile(r"\\rbrack(?![A-Za-z])"), "]"),
    (re.compile(r"\\(?:vert|lvert|rvert)(?![A-Za-z])"), "|"),
    (re.compile(r"\\(?:simeq|thickapprox|sim|cong|doteq)(?![A-Za-z])|~="), r"\\approx "),
    (re.compile(r"\\(?:rightarrow|longrightarrow|Rightarrow|implies|iff|Leftrightarrow)(?![A-Za-z])|->"), r"\\to "),
    (re.compile(r"\\(?:backslash|smallsetminus)(?![A-Za-z])"), r"\\setminus "),
    (re.compile(r"\\lor(?![A-Za-z])|\\vee(?![A-Za-z])"), r"\\text{ or }"),
    (re.compile(r"\\(?:land|wedge|And|&)(?![A-Za-z])"), r"\\text{ and }"),
    (re.compile(r"\\colon(?![A-Za-z])"), ":"),
    (re.compile(r"\\lg(?![A-Za-z])"), r"\\log "),
    (re.compile(r"\\(?:text|mathrm)\s*\{\s*(?:USD|US\s*\\?\$)\s*\}"), r"\\$"),
    (re.compile(r"\\text\s*\{\s*\(?mod\s*\)?\s*\}|\\mod(?![A-Za-z])|\(\s*mod(?=\s*\d+\s*\))"), r"\\pmod "),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])|\\deg(?![A-Za-z])"), r"\\degree "),
    (re.compile(r"\^\s*\{?\s*((?:\\prime\s*)+)\}?"), lambda m: "'" * m[1].count("prime")),
    (re.compile(r"\\(?:R|reals)(?![A-Za-z])"), r"\\mathbb{R}"),
    (re.compile(r"\\mathbb\s*([A-Z])"), r"\\mathbb{\1}"),
    (re.compile(r"\\mathbb\s*\{\s*([A-Z])\s*\}"), r"\\mathbb{\1}"),
    (re.compile(r"\\exp\s*\{([^{}]*)\}"), r"\\exp(\1)"),
    (re.compile(r"\\(arcsin|arccos|arctan|sin|cos|tan|ln|log)\s*\{"), r"\\\1 {"),
]  # fmt: skip
_THOUSANDS = [
    re.compile(r"(?<=\d)\s*(?:\{,\}|,\\!|\\,|\\;|\\:|\\ |\\thinspace|'|\\!)\s*(?=\d{3}(?!\d))"),
    re.compile(r"(?<=\d),\\[!,;: ]\s*(?=\d{3}(?!\d))"),
]
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,}])(?<!\d )\d{1,3}(?: \d{3})+(?!\d| \d|\s*(?:/|\\frac))")
_SPACES = re.compile(
    r"(?<!\\)\\(?:[,;:!/ ]|(?:thinspace|medspace|thickspace|enspace|negthinspace)(?![A-Za-z]))|(?<!\\)~"
)
_WORDS_OF_PLAIN_TEXT = {
    "infinity": r"\infty ", "inf": r"\infty ", "oo": r"\infty ", "pi": r"\pi ", "theta": r"\theta ",
    "alpha": r"\alpha ", "beta": r"\beta ", "degrees": r"\text{degrees}", "union": r"\cup ", "sqrt": r"\sqrt ",
}  # fmt: skip
_PLAIN_WORD = re.compile(r"(?<![A-Za-z\\{])(?:(?:np|math|numpy)\.)?([A-Za-z]{2,})(?![A-Za-z])")
_QUOTED = re.compile(r"(?s)(`{1,3}|\"|'|\*{1,3}|_{1,2})\s*(.+?)\s*\1")
_UNIT_WITH_POWER = re.compile(r"\s*[A-Za-z]{1,4}(?:\s*/\s*[A-Za-z]{1,4})?(?:\s*\^\s*-?\d)?\s*")
_TEXT = re.compile(r"(\\text\{[^{}]*\})")
_NUMBER = r"\d+(?:\.\d+)?|\.\d+"


def normalized(text: str) -> str:
    """An answer, as it stands in a box or a data set, in the one spelling that the readers of this package expect."""
    text = latex_of_unicode(text)
    text = unwrapped(text)
    text = re.sub(r"\\\\(?=(?:frac|sqrt|text|pi|cdot|times|infty|left|boxed)(?![A-Za-z]))", r"\\", text)
    text = re.sub(r"\\(?:label|tag|color|textcolor)\s*\{[^{}]*\}", "", text)
    for pattern in _THOUSANDS:
        text = pattern.sub("", text)
    text = _SPACES.sub(" ", text)
    text = re.sub(r"\s+", " ", text)
    for pattern, form in _REPLACED:
        text = pattern.sub(form, text)
    text = re.sub(r"(?<=[\d}])\s*\\(?:mathrm|text|rm)\s*\{\s*i\s*\}", "i", text)
    text = re.sub(r"(?<=[\d}])\s*\\mathrm\s*\{\s*([A-Zac-df-hk-z])\s*\}", r"\\text{\1}", text)  # 2 m, no product
    text = re.sub(r"(?<=[\d}])\s*\\text\s*\{\s*to\s*\}\s*(?=\d)", ":", text)
    text = re.sub(r"\{([^{}]*)\\(choose|over)(?![A-Za-z])([^{}]*)\}", _infix, text)
    text = replaced_commands(text, WRAPPERS, 1, _plain_face)
    text = _plain_words(text)
    text = _numbers(text)
    text = _arguments(text)
    return without_punctuation(re.sub(r"\s+", " ", text))


def unwrapped(text: str) -> str:
    r"""The text without the delimiters of mathematics, quotes, code ticks and emphasis around it, nor any `$` left."""
    text = text.strip().replace("...", r"\ldots ")  # before points are taken off the end
    text = re.sub(r"(?<!\\)\\[()]|(?<!\\)\\\[(?=.*\\\])|(?<!\\)\\\](?!.*\\\[)", " ", text)
    text = re.sub(r"(?<!\\)\$+", " ", text)  # "$8$,$4$"; \$ is money
    text = without_punctuation(text)
    while quoted := _QUOTED.fullmatch(text):
        text = without_punctuation(quoted[2])
    return text


def without_punctuation(text: str) -> str:
    """The text without what ends a sentence."""
    return re.sub(r"(?:\s|(?<!\\)\\[,;:! ]|[.,;:]|\\\\|\\(?:quad|qquad)(?![A-Za-z])|(?<!\\)\\$)+$", "", text.strip())


def _infix(match: re.Match) -> str:
    return rf"\{'binom' if match[2] == 'choose' else 'frac'}{{{match[1].strip()}}}{{{match[3].strip()}}}"


def _plain_face(name: str, content: str) -> str:
    r"""A single letter is a letter in every face, and a number a number; words stay words."""
    content = content.strip() if not re.search(r"(?i)\b(and|or)\b", content) else content
    bare = content.strip("() ") if re.fullmatch(r"\(?\s*[A-Za-z]\s*\)\s*", content) else content
    if re.fullmatch(r"[A-Za-z]", content) and name.startswith(("math", "bold", "bm", "rm", "bf")):
        return content
    if name in ("boldsymbol", "bm", "underline", "fbox", "boxed") or not re.search(r"[A-Za-z]", content):
        return f" {content} "
    if content.strip().lower() == "infinity":
        return r"\infty "
    if name in ("text", "mathrm", "mbox", "rm") and _UNIT_WITH_POWER.fullmatch(content):
        return rf"\text{{{content}}}"
    if (counted := re.fullmatch(r"(-?\d[\d.,]*)\s+([^\d]+)", content)) and not re.search(
        r"\b(?:and|or|not|to)\b", content
    ):
        return rf"{counted[1]}\text{{{counted[2]}}}"
    if re.search(r"[\\^=<>]", content) and not re.search(r"[A-Za-z]{4}", re.sub(r"\\[A-Za-z]+", "", content)):
        return f" {content} "  # mathematics within \mathbf{...} and the like
    if name.startswith("operatorname") and content.strip() in FUNCTIONS:
        return f"\\{content.strip()} "
    return rf"\text{{{bare}}}"


def _plain_words(text: str) -> str:
    r"""Names of functions and constants without a backslash, outside of \text{}: sqrt(2), pi, sin x."""

    def named(match: re.Match) -> str:
        word = match[1]
        if word in FUNCTIONS or word.lower() in ("asin", "acos", "atan"):
            return "\\" + (f"arc{word[1:]}" if word in ("asin", "acos", "atan") else word) + " "
        return _WORDS_OF_PLAIN_TEXT.get(word, str(match[0]))

    pieces = re.split(r"(\\[A-Za-z]+\s*\{[^{}]*\}|\\[A-Za-z]+)", text)
    plain = [
        piece if piece.startswith(r"\text") or piece.startswith((r"\begin", r"\end", r"\mathbb"))
        else (piece if piece.startswith("\\") and "{" not in piece else _PLAIN_WORD.sub(named, piece))
        for piece in pieces
    ]  # fmt: skip
    return "".join(plain)


def _numbers(text: str) -> str:
    """E-notation, repeating decimals, mixed numbers and points at either end of a number."""
    text = _SPACED_THOUSANDS.sub(lambda m: m[0].replace(" ", ""), text)
    text = re.sub(r"(?<![\d.])\.(?=\d|\s*\\(?:overline|bar|dot)(?![A-Za-z]))", "0.", text)
    text = re.sub(r"(?<=\d)\.(?=\s*(?:/|\\cdot|\^|$))", "", text)
    text = re.sub(rf"(?<![A-Za-z\\\d.])({_NUMBER})[eE]([+-]?\d{{1,4}})(?![\d.A-Za-z])",
                  lambda m: f"{m[1]}\\cdot 10^{{{int(m[2])}}}", text)  # fmt: skip
    text = re.sub(r"(\d+)\.(\d*)\s*\\dot\s*\{?(\d)\}?(\d*)\s*\\dot\s*\{?(\d)\}?", _repeating, text)
    text = re.sub(r"(\d+)\.(\d*)\s*\\(?:overline|bar|dot)\s*\{?(\d+)\}?", _repeating, text)
    text = re.sub(r"(?<![\d.])(\d+)\.(\d*)\((\d+)\)(?!\d)", _repeating, text)
    text = re.sub(r"(?<![\d.])(\d+)\.(\d*?)(\d+?)\3{2,}\s*\\ldots", _repeating, text)
    text = re.sub(r"(?<![\d.}^_/])(\d+)\s*\\frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))", _mixed, text)
    return re.sub(r"(?<![\d.}^_/])(\d+)\s+(\d+)()\s*/\s*(\d+)()(?![\d.])", _mixed, text)


def _repeating(match: re.Match) -> str:
    whole, fixed, repeated = match[1], match[2], "".join(match.groups()[2:])
    value = Fraction(int(whole + fixed + repeated) - int(whole + fixed), 10 ** len(fixed + repeated) - 10 ** len(fixed))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(match: re.Match) -> str:
    r"""2\frac{1}{2} is 5/2; with an improper fraction it is a product."""
    whole, above, below = int(match[1]), int(match[2] or match[3]), int(match[4] or match[5])
    if not 0 < above < below:
        return rf"{whole}\cdot \frac{{{above}}}{{{below}}}"
    return rf"\frac{{{whole * below + above}}}{{{below}}}"


def _arguments(text: str) -> str:
    r"""Braces around the arguments of \frac, \sqrt, ^ and _, which TeX does not need but parsers do."""
    text = re.sub(r"(?<!\\)sqrt", r"\\sqrt", text)
    text = re.sub(r"\\sqrt\s*\(", lambda m: r"\sqrt(", text)
    text = _bracketed_argument(text, r"\sqrt(")
    text = _bracketed_argument(text, "^(")
    text = re.sub(r"\\sqrt\s*\[\s*2\s*\]", r"\\sqrt", text)
    text = "".join(piece if piece.startswith(r"\text") else _braced_scripts(piece) for piece in _TEXT.split(text))
    text = re.sub(r"\\log\s*_\s*\{\s*e\s*\}", r"\\ln ", text)
    for name, count in (("frac", 2), ("binom", 2)):
        text = replaced_commands(
            text, name, count, lambda name, *given: f"\\{name}" + "".join(f"{{{a}}}" for a in given)
        )
    return replaced_commands(text, r"sqrt(?!\s*\[)", 1, lambda name, content: rf"\sqrt{{{content}}}")


def _braced_scripts(text: str) -> str:
    text = re.sub(r"\^\s*(-?\d+)", r"^{\1}", text)
    text = re.sub(r"\^\s*-\s*([A-Za-z])", r"^{-\1}", text)
    return re.sub(r"_\s*(\d+|[A-Za-z])", r"_{\1}", text)


def _bracketed_argument(text: str, opening: str) -> str:
    start = 0
    while (start := text.find(opening, start)) >= 0:
        level, end = 0, -1
        first = start + len(opening) - 1
        for index in range(first, len(text)):
            level += (text[index] == "(") - (text[index] == ")")
            if level == 0:
                end = index
                break
        if end < 0:
            return text
        text = f"{text[:first]}{{{text[first + 1 : end]}}}{text[end + 1 :]}"
        start = first
    return text
