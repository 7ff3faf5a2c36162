r"""Unicode mathematics as LaTeX: ½ is \frac{1}{2}, √2 is \sqrt{2}, x² is x^{2}, 60° is 60^{\circ}."""

import re
import unicodedata

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙₖₘᵢⱼₐₓ", "0123456789+-=()nkmijax", strict=True))
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ϵ": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "ϑ": "vartheta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "µ": "mu", "ν": "nu",
    "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "varphi", "ϕ": "phi", "χ": "chi",
    "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi",
    "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
    "∙": r"\cdot ", "•": r"\cdot ", "∗": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/", "≤": r"\le ", "⩽": r"\le ",
    "≦": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≧": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ",
    "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ",
    "∅": r"\emptyset ", "⌀": r"\emptyset ", "∖": r"\setminus ", "⊂": r"\subset ", "⊆": r"\subseteq ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "°": r"^{\circ}", "º": r"^{\circ}", "∘": r"\circ ", "′": "'", "″": "''", "…": r"\ldots ", "⋯": r"\ldots ",
    "→": r"\to ", "⇒": r"\Rightarrow ", "⟹": r"\Rightarrow ", "∣": r"\mid ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
    "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": r"\langle ", "⟩": r"\rangle ", "∑": r"\sum ", "∏": r"\prod ",
    "∫": r"\int ", "∠": r"\angle ", "‰": "/1000", "“": '"', "”": '"', "‘": "'", "’": "'", "„": '"', "∧": ",",
    "ℓ": r"\ell ", "。": ".", "，": ",", "、": ",", "【": " ", "】": " ", "∂": r"\partial ", "∆": r"\Delta ",
    "■": "", "□": "", "∎": "",
}  # fmt: skip
_TABLE = str.maketrans(_SYMBOLS | {letter: rf"\{name} " for letter, name in _GREEK.items()})
_ROOT = re.compile(r"([√∛∜])\s*(\{[^{}]*\}|\([^()]*\)|\d+(?:\.\d+)?|\\[A-Za-z]+|[A-Za-z])")
_DEGREES = {"√": "", "∛": "[3]", "∜": "[4]"}


def latex_of_unicode(text: str) -> str:
    """The text with LaTeX commands and ASCII in the place of mathematical characters; plain ASCII is unchanged."""
    if text.isascii():
        return text
    text = "".join(character for character in text if unicodedata.category(character) not in ("Cf", "Cs", "Co"))
    text = re.sub(r"(\d)\s*([¼-¾⅐-⅞↉])", lambda m: f"{m[1]} {m[2]}", text)  # 2½ is a mixed number
    text = "".join(_fraction(character) for character in text)
    text = _runs(text, _SUPERSCRIPTS, "^")
    text = _runs(text, _SUBSCRIPTS, "_")
    text = text.translate(_TABLE)
    text = _ROOT.sub(lambda m: rf"\sqrt{_DEGREES[m[1]]}{{{m[2].strip('{}')}}}", text)
    return "".join(_digit(character) for character in unicodedata.normalize("NFKC", text))


def _fraction(character: str) -> str:
    if unicodedata.category(character) != "No" or "⁄" not in unicodedata.normalize("NFKC", character):
        return character
    above, _, below = unicodedata.normalize("NFKC", character).partition("⁄")
    return rf"\frac{{{above}}}{{{below}}}"


def _runs(text: str, table: dict[str, str], command: str) -> str:
    pattern = f"[{re.escape(''.join(table))}]+"
    return re.sub(pattern, lambda m: f"{command}{{{''.join(table[c] for c in m[0])}}}", text)


def _digit(character: str) -> str:
    """Digits of any script."""
    return character if character.isascii() or not character.isdecimal() else str(unicodedata.decimal(character))
