r"""One quantity: an exact number or an expression, with its unit, percent sign and number of digits."""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 4000  # of an integer that is compared exactly without the algebra system

_DEGREES = ("degree", "degrees", "deg", "degs", "°")
_UNITS = {
    "degree": _DEGREES,
    "cm": ("cm", "centimeter", "centimetre"), "mm": ("mm", "millimeter", "millimetre"),
    "km": ("km", "kilometer", "kilometre"), "m": ("m", "meter", "metre"), "in": ("in", "inch", "inches"),
    "ft": ("ft", "foot", "feet"), "yd": ("yd", "yard"), "mi": ("mi", "mile"), "kg": ("kg", "kilogram"),
    "g": ("g", "gram"), "mg": ("mg", "milligram"), "lb": ("lb", "lbs", "pound"), "oz": ("oz", "ounce"),
    "l": ("l", "liter", "litre"), "ml": ("ml", "milliliter", "millilitre"), "s": ("s", "sec", "second"),
    "min": ("min", "mins", "minute"), "h": ("h", "hr", "hrs", "hour"), "day": ("day",), "week": ("week", "wk"),
    "month": ("month",), "year": ("year", "yr"), "am": ("am", "a.m.", "a.m"), "pm": ("pm", "p.m.", "p.m"),
    "dollar": ("dollar", "usd", "$", "bucks"), "cent": ("cent", "¢"), "euro": ("euro", "eur", "€"),
    "gbp": ("gbp", "£"), "radian": ("radian", "rad"), "mph": ("mph",), "km/h": ("kmh", "kph", "kmph"),
    "unit": ("unit", "un"), "gallon": ("gallon", "gal"), "k": ("kelvin",), "n": ("newton",), "j": ("joule",),
    "w": ("watt",), "hz": ("hertz", "hz"), "ev": ("ev",), "mol": ("mol", "mole"), "ms": ("ms",), "kev": ("kev",),
    "mev": ("mev",), "nm": ("nm", "nanometer", "nanometre"), "ha": ("hectare",), "acre": ("acre",),
}  # fmt: skip
_KNOWN = {spelling: unit for unit, spellings in _UNITS.items() for spelling in spellings}
_PLAIN = sorted((word for word in _KNOWN if len(word) > 1 and word.isalpha()), key=len, reverse=True)
_NUMBER_WORDS = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "tenth": -1, "hundredth": -2,
    "thousandth": -3, "millionth": -6,
}  # fmt: skip
"""Word after a number -> the power of ten that it means."""
_NO_UNIT = re.compile(r"(?i)\b(?:is|not|wrong|incorrect|false|if|unless|when|except|but)\b|n't\b")
_ONLY_WORDS = {"even", "odd", "true", "false", "yes", "no", "none", "positive", "negative"}

_PERCENT = re.compile(
    r"\s*(?:\\?%|\\text\{\s*(?:percent|percentage|pct|per cent)\s*\}|\b(?:percent|percentage|pct)\b)\s*$"
)
_TEXT_UNIT = re.compile(
    r"(?:(?:\s*/\s*|\s*\\cdot\s*|\s*)\\text\{[^{}]*[A-Za-z$][^{}]*\}\s*(?:\^\{?-?\d\}?)?)+\s*$|"
    r"\s*\\frac\{\s*\\text\{[^{}]*\}\s*\}\{\s*\\text\{[^{}]*\}(?:\^\{?\d\}?)?\s*\}\s*$"
)
_PLAIN_UNIT = re.compile(
    rf"(?<=[\d}})])\s*((?:(?:square|cubic|sq\.?|cu\.?)\s+)?(?:{'|'.join(map(re.escape, _PLAIN))})s?"
    r"(?:\s*\^\s*\{?[23]\}?)?(?:\s*(?:/|per)\s*[A-Za-z]+(?:\^\{?[23]\}?)?)?|"
    r"(?:km|m|cm|mm|ft|mi)\s*/\s*(?:s|h|hr|min)(?:\s*\^\s*\{?2\}?)?|[ap]\.\s?m\.?)\s*$", re.IGNORECASE,
)  # fmt: skip
_PLAIN_NOUNS = re.compile(r"(?<=[\d})])((?:\s+[A-Za-z][A-Za-z-]{2,}){1,5})\s*$")
_DEGREE = re.compile(r"\s*\\degree\s*(?:[CFK](?![A-Za-z])|\\text\{\s*[CF]\s*\})?\s*$")
_CURRENCY = re.compile(
    r"^([-+]?)\s*(?:\\\$|\\text\{\s*\\?\$\s*\}|\\euro|€|£|\\pounds|\\text\{\s*USD\s*\}|USD\s|Rs\.?\s)\s*|\s*(?:\\\$|€|£)\s*$"
)

_DECIMAL = re.compile(r"([-+]?)\s*(\d+)(?:\.(\d*))?(?:\s*\\cdot\s*10\s*(?:\^\{\s*([-+]?\d{1,4})\s*\})?)?")
_FRACTION = re.compile(r"([-+]?)\s*(?:\\frac\{\s*([-+]?\d+)\s*\}\{\s*([-+]?\d+)\s*\}|([-+]?\d+)\s*/\s*(\d+))")
_COMMAS = re.compile(r"(?<![\d.,{_^])(\d{1,3}(?:,\d{3})+)(?![\d,])")


@dataclass(frozen=True)
class Quantity:
    """One quantity.

    Attributes:
        latex: in the one spelling, without unit and percent sign.
        number: its exact value where it is a plain number; the percent sign is not applied.
        digits: significant digits of a decimal as it was written; 0 for what is exact.
        percent: whether a percent sign follows.
        unit: what follows in words, or the currency before it; "" for none.
    """

    latex: str
    number: Fraction | None = None
    digits: int = 0
    percent: bool = False
    unit: str = ""

    @property
    def letters(self) -> str:
        """The letters where it is nothing else, such as a choice or a word."""
        return self.latex if re.fullmatch(r"[A-Za-z]+", self.latex) else ""

    @property
    def value(self) -> Fraction | None:
        """The exact value, with the percent sign."""
        return self.number / 100 if self.percent and self.number is not None else self.number


def quantity(text: str) -> Quantity:
    """What a piece of LaTeX in the one spelling says of one quantity; its unit is taken off."""
    text = text.strip()
    percent = _PERCENT.search(text)
    if percent and percent.start() > 0:
        number = number_of(text[: percent.start()].strip())
        return Quantity(text[: percent.start()].strip(), *number, percent=True)
    text, unit = _without_unit(text)
    number, digits = number_of(text)
    first, _, rest = unit.partition(" ")
    power = _NUMBER_WORDS.get(first.lower().removesuffix("s"))
    if power is None:
        return Quantity(text, number, digits, unit=unit)
    scaled = None if number is None else number * Fraction(10) ** power
    return Quantity(rf"({text})\cdot 10^{{{power}}}", scaled, digits, unit=rest)  # 5 million dollars


def number_of(text: str) -> tuple[Fraction | None, int]:
    r"""(exact value, significant digits) of -3, 2.50, \frac{1}{2}, 1/2, 1.6\cdot 10^{-19}; (None, 0) of more."""
    while len(text) > 2 and text[0] == "(" and text[-1] == ")" and "(" not in text[1:]:
        text = text[1:-1].strip()
    while len(text) > 2 and text[0] == "{" and text[-1] == "}" and "{" not in text[1:]:
        text = text[1:-1].strip()
    text = without_thousands(text)
    if len(text) > MAX_DIGITS:
        return None, 0
    if match := _DECIMAL.fullmatch(text):
        sign, whole, decimals, exponent = match.groups()
        scaled = "\\cdot" in text
        power = int(exponent) if exponent is not None else int(scaled)
        value = Fraction(int(whole + (decimals or "")) * (-1 if sign == "-" else 1), 10 ** len(decimals or ""))
        digits = len((whole + (decimals or "")).lstrip("0")) if decimals else 0
        return value * Fraction(10) ** power, digits
    if match := _FRACTION.fullmatch(text):
        above, below = int(match[2] or match[4]), int(match[3] or match[5])
        if below:
            return Fraction(-above if match[1] == "-" else above, below), 0
    return None, 0


def without_thousands(text: str) -> str:
    """The text without the commas in 1,234,567; 12,34 and 1, 234 keep theirs."""
    return _COMMAS.sub(lambda match: match[1].replace(",", ""), text) if "," in text else text


def units_agree(one: str, other: str) -> bool:
    """Whether two units are no contradiction: one is missing, or unknown, or both are the same."""
    first, second = _known(one), _known(other)
    return not first or not second or first == second


def _known(unit: str) -> str:
    """The unit in one spelling, "" where it has a word that is no unit."""
    text = re.sub(r"\b(square|sq\.?)\s+([A-Za-z]+)", r"\2^2", unit.lower())
    text = re.sub(r"\b(cubic|cu\.?)\s+([A-Za-z]+)", r"\2^3", text)
    text = re.sub(r"\s*\b(per)\b\s*|\s*/\s*", "/", text.replace("{", "").replace("}", ""))
    text = re.sub(r"\s*\^\s*", "^", text)
    parts = []
    for word in re.findall(r"[ap]\.\s?m\.?|[^\W\d_]+(?:\^-?\d)?|[/$°€£¢]", text):
        name, _, power = word.replace(". ", ".").partition("^")
        known = "/" if name == "/" else _KNOWN.get(name) or _KNOWN.get(name.removesuffix("s"))
        if known is None:
            return ""
        parts.append(known + (f"^{power}" if power else ""))
    return "".join(parts)


def _without_unit(text: str) -> tuple[str, str]:
    currency = _CURRENCY.search(text)
    unit = ""
    if currency and currency.end() - currency.start() < len(text):
        unit = (
            "euro"
            if "€" in currency[0] or "euro" in currency[0]
            else "gbp"
            if re.search("£|pound", currency[0])
            else "$"
        )
        text = _CURRENCY.sub(lambda match: match[1] or "", text).strip()
    degree = _DEGREE.search(text)
    if degree and not re.search(r"\\(?:sin|cos|tan|sec|csc|cot)(?![A-Za-z])", text):
        return (text[: degree.start()].strip(), "degree") if degree.start() else (text, unit)
    for pattern in (_TEXT_UNIT, _PLAIN_UNIT, _PLAIN_NOUNS):
        match = pattern.search(text)
        if match and match.start() > 0 and re.search(r"\d|\\pi|[a-z]$", text[: match.start()]):
            words = re.sub(r"\\text|\\frac|\\cdot", " ", match[0])
            words = (
                re.sub(r"[{}()]", " ", words.replace("}{", "/"))
                if "frac" in match[0]
                else re.sub(r"[{}()]", " ", words)
            )
            if words.strip().lower() in _ONLY_WORDS or _NO_UNIT.search(words):
                break
            rest = text[: match.start()].strip().removesuffix(r"\cdot").strip()
            return rest, " ".join(words.split()) or unit
    return text, unit
