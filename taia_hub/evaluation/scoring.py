r"""Finds the answer in what a model wrote and compares it with the right one; pure functions of text.

The rules are those of the paper's evaluation, greedy answers that end with "The answer is …", without their defects:

1. The paper's span ends at the first full stop, so "The answer is 3.5." gives 3; `answer_span` ends at a sentence.
2. Its test for the words "the answer is" is always true; without the words there is no span here.
3. Its prompt asks literally for `{answer}`; braces around an answer, and the echoed word itself, do not count.
4. Its option in brackets is the first one in the text, often one that is being ruled out; `find_letter` takes the last
   one, and the one in the span before that. A letter inside a word, or the article "A", is no option.
5. A right answer that is part of the given one ("1" in "12") counts; the comparisons here are equalities.
6. Numbers with thousands separators, signs of currency and percent, and fractions are not read; `find_number` does.
7. Within 1e-3, small answers are all alike (1/2000 and 1/3000); here they must also agree within 1 %.
8. A box ends at its first brace, so that `\boxed{\frac{1}{2}}` is not read; `boxed` counts braces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from taia_hub.evaluation import latex

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_SPAN = re.compile(
    r"\b(?:the\s+(?:(?:final|correct|right|best)\s+)?answer\s+is|the\s+(?:correct|right)\s+(?:option|choice)\s+is"
    r"|(?:final\s+)?answer\s*[:\uff1a])[\s:\uff1a*]*(?P<span>[^\n]*)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\.(?=[^\w\s]{0,4}(?:\s|$))")
_CLAUSE_END = re.compile(r"[,;]\s+[a-z]|\s(?:because|since|as)\s")
_NOTATIONS = [
    (re.compile(pattern), meant)
    for pattern, meant in (
        (r"\{,\}|,\\!", ","),
        (r"\\(?=[$%])", ""),
        ("[\u2212\u2013]", "-"),
        (r"\\[dt]?frac\s*(?:\{(-?\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))", r" \1\2/\3\4"),
        (r"(?<=\d)\s*(?:\\times|\\cdot|\u00d7|\*)\s*10\s*\^\s*\{?(-?\d{1,2})\}?", r"e\1"),
        (r"(?<![\d.])10\s*\^\s*\{?(-?\d{1,2})\}?", r"1e\1"),
        (r"\^\s*\{?-?[\d.]+\}?", ""),  # the exponent of "12 cm^2" is no number of its own
    )
]
_NUMBER = re.compile(
    r"(?P<sign>-\s*)?[$€£]?\s*(?:(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:[ \t]+(?P<over>\d+)/(?P<under>\d+)"
    r"|(?P<decimals>\.\d+)?(?P<power>[eE][+-]?\d{1,2}(?!\w))?(?:\s*/\s*(?P<divisor>\d+(?:\.\d+)?))?)|(?P<bare>\.\d+))"
    r"(?P<percent>\s*%)?"
)
_BRACE = re.compile(r"\\[{}]|\\f?boxed\s*\{|[{}]")
_BRACKETED = re.compile(r"\(([A-Z])\)")
# Behind an option's letter stands a sign, the end or a reason: "A dog" and "I am" begin with words. Where an answer is
# announced, other letters may have words behind them, as in "B bank".
_BEHIND = r"[).,:;*$\"`\]}\u201d]|'(?!\w)|\s*(?:\n|$)|\s+[(\[=\u2013\u2014-]|\s+(?:because|since|as|due|which)\b"
_LEADING = re.compile(rf"[^\w(]*\(?(?:([A-Z])(?={_BEHIND})|([B-HJ-Z])(?=\s+[^a-z\s]))")
_ANNOUNCED = re.compile(
    r"(?:(?i:option|choice|letter)\s+)?[^\w(]*"
    rf"\(?(?:([A-Z])(?={_BEHIND}|\s+[^a-z\s])|([B-HJ-Z])(?=\s+(?!and\b|n?or\b)))"
)
_LATEX_MARKS = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}|\\[()\[\]]")


def boxed(text: str) -> str | None:
    r"""Returns what the first `\boxed{…}` holds, with balanced braces, or None.

    Example:
        >>> boxed(r"so $\boxed{\frac{1}{2}}$, not \boxed{3}")
        '\\frac{1}{2}'
        >>> boxed(r"\boxed{3") is None
        True
    """
    boxes, opened = [], []
    for brace in _BRACE.finditer(text):
        if brace[0].endswith("{") and brace[0] != r"\{":
            opened.append(brace)
        elif brace[0] == "}" and opened:
            box = opened.pop()
            if box[0] != "{":
                boxes.append((box.start(), text[box.end() : brace.start()].strip()))
    return min(boxes)[1] if boxes else None


def answer_span(text: str) -> str | None:
    """Returns what follows the last "the answer is" up to the end of its sentence or line, or None.

    Example:
        >>> answer_span("The answer is 3.5. It was hard.")
        '3.5'
        >>> answer_span("The answer is {answer}.") is None
        True
    """
    spans = [_trimmed(match["span"]) for match in _SPAN.finditer(text)]
    spans = [span for span in spans if span and span.lower() != "answer"]
    return spans[-1] if spans else None


def find_number(text: str) -> float | None:
    r"""Finds the number that a text gives as its answer: of its first box, else of its last span, else its last one.

    Example:
        >>> find_number("The answer is $1,234.50."), find_number("5 + 2 = 7 apples"), find_number(r"\boxed{-3/4}")
        (1234.5, 7.0, -0.75)
        >>> find_number(r"The answer is 2\frac{1}{2}."), find_number("The answer is 20 - 5 = 15, because 15 + 5 = 20.")
        (2.5, 15.0)
    """
    found = _find_number(text)
    return found and found[0]


def find_letter(text: str, letters: Sequence[str] = LETTERS) -> str | None:
    """Finds the allowed letter of the option that a text chooses, or None.

    That is the one in the answer's span; without a span, the one that the text begins with, else the last in brackets.

    Example:
        >>> find_letter("Not (A). The answer is (B)."), find_letter("C. Paris"), find_letter("The answer is a dog.")
        ('B', 'C', None)
    """
    span = answer_span(text) or boxed(text)
    if span is None:
        leading = _LEADING.match(text)
        # "(A)" at the beginning may be the first option that is weighed: the last one counts then.
        if leading and text[: leading.start(leading.lastindex or 0)].endswith("("):
            leading = None
        given = text
    else:
        given = _LATEX_MARKS.sub(r"\1", boxed(span) or span).strip()
        leading = _ANNOUNCED.match(given.upper() if len(given.strip("()")) == 1 else given)
    found = leading[leading.lastindex or 0] if leading else next(reversed(_BRACKETED.findall(given)), "")
    return found if found in letters and found else None


def number_matches(output: str, answer: str) -> bool:
    """Tells whether the number in `output` is `answer`, within 1e-3 and within 1 %.

    Where one of them has a sign of percent, "50%" is 50 or 0.5.

    Example:
        >>> number_matches("The answer is 3.5.", "3.5"), number_matches("The answer is 12.", "1")
        (True, False)
    """
    given, right = _find_number(output), _find_number(answer)
    if given is None or right is None:
        return False
    if given[1] != right[1]:
        parts = [value / 100 if percent else value for value, percent in (given, right)]
        return _close(given[0], right[0]) or _close(*parts)
    return _close(given[0], right[0])


def latex_matches(output: str, answer: str) -> bool:
    r"""Tells whether the mathematical answer in `output`, its first box, else its span or last line, is `answer`.

    Example:
        >>> latex_matches(r"We get $\boxed{0.5}$.", r"\frac{1}{2}")
        True
    """
    given = boxed(output) or answer_span(output) or _last_line(output)
    return bool(given) and latex.equal(given.strip("*` "), answer)


def letter_matches(output: str, answer: str, letters: Sequence[str] = LETTERS) -> bool:
    """Tells whether `output` chooses the option `answer`.

    Example:
        >>> letter_matches("The answer is (B).", "(B)", "ABC")
        True
    """
    return find_letter(output, letters) == answer.strip("() ")


def text_matches(output: str, answer: str) -> bool:
    """Tells whether the text that `output` gives as its answer is `answer`.

    The answer's span counts, else the last of the first and the last line that is as long as the answer. Case, spaces,
    commas, quotes and a full stop at the end do not; numbers are compared as numbers. An answer of one word may have a
    comment behind it.

    Example:
        >>> text_matches("The answer is: **Yes**, he does.", "yes"), text_matches("The answer is not True.", "True")
        (True, False)
        >>> text_matches("The answer is b, a.", "b a"), text_matches("The answer is 70.", "7")
        (True, False)
    """
    if _NUMBER.fullmatch(_written(answer).strip()):
        return number_matches(output, answer)
    right, span = _plain(answer), answer_span(output) or boxed(output)
    if span is not None:
        # Behind one word of letters a comment may follow; a longer answer, or one of signs, is a prefix of wrong ones.
        span = _plain(boxed(span) or span)
        comment = rf"{re.escape(right)}(?![\w-]|\s+(?:and|or|one)\b)"
        return bool(right) and (span == right or (right.isalpha() and bool(re.match(comment, span))))
    lines = [output.strip().partition("\n")[0], _last_line(output)]
    # A line that is as long as the answer is meant as one; "No. Let me check." is not.
    bare = [line for line in map(_plain, lines) if len(line.split()) == len(right.split())]
    if bare:
        return bool(right) and bare[-1] == right
    comment = rf"\W*{re.escape(right)}\W*?(?:[.,;:!()\u2013\u2014]|\s-|\s(?:because|since|as)\b)"
    return right.isalpha() and any(re.match(comment, line, re.IGNORECASE) for line in lines)


def score(answer_type: str, output: str, answer: str, letters: Sequence[str] = LETTERS) -> float:
    """Scores one generated answer, of the type `"choice"`, `"number"`, `"latex"` or `"text"`: 1.0 or 0.0.

    Example:
        >>> score("number", "The answer is 7.", "7")
        1.0
    """
    if answer_type == "choice":
        return float(letter_matches(output, answer, letters))
    return float({"number": number_matches, "latex": latex_matches, "text": text_matches}[answer_type](output, answer))


def _trimmed(span: str) -> str:
    end = _SENTENCE_END.search(span)
    span = (span[: end.start()] if end else span).strip().strip("*`\"'“”").strip()
    # The literal braces of the prompt: `{5}`, but not `{1, 2} \cup {3}`.
    return span[1:-1].strip() if re.fullmatch(r"\{[^{}]*\}", span) else span


def _find_number(text: str) -> tuple[float, bool] | None:
    """Finds the number of the answer, and whether it has a sign of percent."""
    for part in (boxed(text), answer_span(text)):
        if part is not None:
            clause = _CLAUSE_END.split(part, maxsplit=1)[0]
            for piece in (clause.rpartition("=")[2], clause, part):
                if found := _numbers(piece):
                    return found[0]
    found = _numbers(text)
    return found[-1] if found else None


def _numbers(text: str) -> list[tuple[float, bool]]:
    text, found = _written(text), []
    for match in _NUMBER.finditer(text):
        value = float(f"{(match['whole'] or '0').replace(',', '')}{match['decimals'] or match['bare'] or ''}")
        value = float(f"{value}{match['power']}") if match["power"] else value
        over, divisor = float(match["over"] or 0), float(match["divisor"] or match["under"] or 1)
        if divisor:
            value = value + over / divisor if match["over"] else value / divisor
            found.append((-value if _is_minus(match) else value, match["percent"] is not None))
    return found


def _is_minus(match: re.Match[str]) -> bool:
    """In "5-3" and "2023-24" the dash joins, and with a space behind it a line's first one is a bullet."""
    if not match["sign"]:
        return False
    before = match.string[: match.start()]
    return not (before.rstrip()[-1:].isalnum() or (before.endswith("\n") and match["sign"] != "-"))


def _written(text: str) -> str:
    """Writes LaTeX's fractions and powers of ten as in "1/2" and "1e6"."""
    for pattern, meant in _NOTATIONS:
        text = pattern.sub(meant, text)
    return text


def _close(given: float, right: float) -> bool:
    difference = abs(given - right)
    return difference <= 1e-3 and (difference <= 0.01 * abs(right) or difference <= 1e-9)


def _plain(text: str) -> str:
    text = _LATEX_MARKS.sub(r"\1", text)
    text = re.sub(r"[\"'`*$,“”]", " ", text)
    return " ".join(text.split()).rstrip(".").rstrip().casefold()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
