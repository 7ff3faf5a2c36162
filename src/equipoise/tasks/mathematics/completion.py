r"""Where the answer stands in a completion: tags, boxes, a marked answer, or the last formula or number."""

import re

from .spans import group_end

MAX_BARE = 40  # characters of a completion that is nothing but a formula without delimiters
NEAR = 70  # characters between boxes that may belong together
_BOX = re.compile(  # without a backslash only before a brace: "the boxed answer" is prose
    r"(?:\\{1,2}(?:boxed|fbox|framebox)(?![A-Za-z])|(?<![A-Za-z\\])(?:boxed|fbox|framebox)(?=\s*\{))\s*"
)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_MARKED = re.compile(
    r"####\s*|(?:final\s+answer|answers?|result|solutions?|option|choice)\s*(?:is|are|equals)\s*:?|"
    r"\*{0,2}(?:final\s+)?answer\*{0,2}\s*[:=]\s*\*{0,2}", re.IGNORECASE,
)  # fmt: skip
_FORMULA = re.compile(
    r"\$\$(.{1,1000}?)\$\$|(?<!\\)\$((?:\\.|[^$\\\n])+?)(?<!\\)\$|\\\[(.{1,1000}?)\\\]|\\\((.{1,1000}?)\\\)", re.DOTALL
)
_NUMBER = re.compile(
    r"(?<![\w.^{\\])[-+−]?(?:[$€£]\s?)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?\s*(?:%|percent\b|°)?(?![a-fi-ln-rt-z]\b)"
)
_JOINT = re.compile(
    r"[\s$.]*(?:\\[()\[\]])?[\s$]*(?:,|;|&|and|or|\\text\{\s*(?:and|or)\s*\})?(?:,?\s*(?:and|or))?[\s$]*"
    r"(?:\\[()\[\]])?[\s$]*(?:[A-Za-z](?:_\{?\w+\}?)?\s*=\s*)?\s*"
)
_BARE = re.compile(r"(?!.*[a-z]{2,}\s+[a-z]{2,})[^\w\s]*[\d.,/^*()√π\sa-z=<>≤≥½¼¾²³%°+\-−\\{}]*[^\w\s]*", re.DOTALL)
_HEDGE = re.compile(r"\bor\b", re.IGNORECASE)
_ADVERB = re.compile(
    r"(?:(?:therefore|thus|hence|then|so|approximately|about|simply|just|exactly|clearly|indeed)\b,?\s*)+",
    re.IGNORECASE,
)
_REASON = re.compile(r",?\s+(?:because|since|as)\b|,\s*(?:and\s+)?not\b", re.IGNORECASE)
_GOES_ON = re.compile(r"\s*[-+*/^=,<>(]|\w\b|\s*(?:…|\\[cl]?dots)")
_SUFFIX = re.compile(
    r"\s*(?:\$\s*)?(\\?%|\s*percent\b|\^\s*\{?\s*\\circ\s*\}?|°|\^\{[^{}]*\}|\^\w|!(?!\s*$)|\\(?:text|mathrm)\s*\{[^{}]*\})"
)


def answer_text(completion: str) -> str | None:
    """The text of the answer; None where the completion has none.

    The first of these that there is: what stands in the last <answer> tags; the last box, together with those that it
    is joined to; what follows the last "answer is" or "####"; the last formula; the last number. What a model thinks
    before </think> does not count.
    """
    text = completion.rpartition("</think>")[2]
    if (inside := tagged_answer(text)) is not None:
        return _boxed(inside) if _BOX.search(inside) else inside or None
    if _BOX.search(text):
        found = _boxed(text)
        if found is not None or _has_content(text):
            return found
    return _prose(text)


def marked_answer(completion: str) -> str | None:
    """The text in the last <answer> tags, or else in the last box; None where there is neither."""
    text = completion.rpartition("</think>")[2]
    if (inside := tagged_answer(text)) is not None:
        return inside
    return _boxed(text) if _BOX.search(text) else None


def tagged_answer(text: str) -> str | None:
    """The text between the last <answer> and </answer> that belong together; None where there are none.

    One pass over the text: a pattern with both tags would go over many opening ones again and again.
    """
    start, found = -1, None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            start = tag.end()
        elif start >= 0:
            found, start = (start, tag.start()), -1
    return text[found[0] : found[1]].strip() if found else None


def _has_content(text: str) -> bool:
    """Whether a box has been begun with something in it: a completion that is cut off has no answer."""
    return any(not re.match(r"\{\s*\}", text[match.end() :]) for match in _BOX.finditer(text))


def _boxed(text: str) -> str | None:
    boxes = []  # (start, end, content)
    for match in _BOX.finditer(text):
        if boxes and match.start() < boxes[-1][1]:
            continue  # a box within a box
        start = match.end()
        if start < len(text) and text[start] == "{":
            end = group_end(text, start)
            content = text[start + 1 : end - 1].strip() if end > 0 else None  # None: it is not closed
            boxes.append((match.start(), end if end > 0 else len(text), content))
        elif match[0].startswith("\\") and (bare := re.match(r"[-+]?[\w.]+", text[start:])):
            boxes.append((match.start(), start + bare.end(), bare[0]))
    boxes = [box for box in boxes if box[2] != ""]
    if not boxes or boxes[-1][2] is None:
        return None
    kept = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        between = text[box[1] : kept[-1][0]]
        if box[2] is None or not _belong_together(between):
            break
        kept.append(box)
    contents = list(dict.fromkeys(box[2] for box in reversed(kept)))
    if len(contents) > 1:
        return ", ".join(contents)
    return _with_surroundings(text, kept[0])


def _belong_together(between: str) -> bool:
    if len(between) > NEAR:
        return False
    return bool(_JOINT.fullmatch(between)) or bool(_HEDGE.search(between))


def _with_surroundings(text: str, box: tuple[int, int, str]) -> str:
    r"""The content with what belongs to it outside: \boxed{5}\%, -\boxed{5}, \boxed{x} = 5."""
    start, end, content = box
    after = text[end:]
    value = re.match(r"\s*=\s*([^$\n,;]+?)\s*(?:\$|\.?\s*$|\.\s|\\[)\]])", after)
    if value and re.fullmatch(r"[A-Za-z](?:_\{?\w+\}?)?", content):
        return f"{content}={value[1]}"
    if attached := re.match(r"[A-Za-z0-9]+", after):
        return f"{content}{attached[0]}"
    if suffix := _SUFFIX.match(after):
        content = f"{content}{suffix[1]}"
    return f"-{content}" if re.search(r"(?:^|[=$\s({])-\s*$", text[max(0, start - 3) : start]) else content


def _prose(text: str) -> str | None:
    stripped = text.strip()
    if not stripped:
        return None
    marked = list(_MARKED.finditer(text))
    if marked:
        found = _sentence(text[marked[-1].end() :])
        if found is not None:
            return found
    formulas = [match for match in _FORMULA.finditer(text) if not _is_money(match)]
    if formulas:
        return _joined_formulas(text, formulas)
    if len(stripped) <= MAX_BARE and _BARE.fullmatch(stripped) and re.search(r"\d|\\", stripped):
        return stripped
    numbers = [match for match in _NUMBER.finditer(text) if re.search(r"\d", match[0])]
    return numbers[-1][0] if numbers else None


def _is_money(match: re.Match) -> bool:
    """Two prices are no formula between dollars: $18 per day and $20."""
    return bool(match[2] and re.match(r"\d[\d.,]*\s+[A-Za-z]", match[2]) and re.search(r"[A-Za-z]{2,}\s", match[2]))


def _sentence(rest: str) -> str | None:
    """What a marked answer says: formulas if it has any, else its words up to the end of the sentence."""
    line = rest.strip().split("\n")[0].strip().replace("...", r"\ldots ")
    if not line:
        return None
    formulas = [match for match in _FORMULA.finditer(line) if not _is_money(match)]
    if formulas and not line[: formulas[0].start()].strip(" *:"):
        return _joined_formulas(line, formulas, last=False)
    if formulas:
        return _joined_formulas(line, formulas)
    sentence = re.split(r"(?<=[^\d\s])[.!?](?:\s|$)|(?<=\d)[.!?](?:\s|$)|(?<=[a-z])\.(?=\s[A-Z])", line)[0].strip(
        " *:_`\"'"
    )
    sentence = _ADVERB.sub("", _REASON.split(sentence)[0])
    number = _NUMBER.match(sentence)
    if number and re.search(r"\d", number[0]) and not _GOES_ON.match(sentence[number.end() :]):
        rest_words = sentence[number.end() :].strip()
        if not re.search(r"\b(or|and)\b|\d", rest_words):
            return number[0]
    if re.search(r"\d", sentence) and len(sentence.split()) > 6:
        numbers = [match[0] for match in _NUMBER.finditer(sentence) if re.search(r"\d", match[0])]
        return numbers[-1] if numbers else None
    return sentence or None


def _joined_formulas(text: str, formulas: list[re.Match], *, last: bool = True) -> str:
    """The last formula with those that it is joined to by commas, "and" or "or"; or the first with what follows."""
    kept = [formulas[-1] if last else formulas[0]]
    if last:
        for match in reversed(formulas[:-1]):
            between = text[match.end() : kept[0].start()]
            if not re.fullmatch(r"\s*(?:,|;|,?\s*(?:and|or))\s*", between):
                break
            kept.insert(0, match)
    else:
        for match in formulas[1:]:
            if not re.fullmatch(r"\s*(?:,|;|,?\s*(?:and|or))\s*", text[kept[-1].end() : match.start()]):
                break
            kept.append(match)
    after = text[kept[-1].end() :]
    percent = re.match(r"\s*(?:\\?%|percent\b)", after)
    contents = [next(group for group in match.groups() if group is not None) for match in kept]
    return ", ".join(contents) + (r"\%" if percent else "")
