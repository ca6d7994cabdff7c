r"""Whether two answers in LaTeX are the same: by value where they have one, by normalised text otherwise.

Neither sympy nor `eval` sees what a model wrote: the text is read by a small parser of the mathematics of school
answers, and expressions with letters are compared at a few points. Deliberately not implemented: algebra. Matrices,
intervals with `\cup` and sentences are compared as text.
"""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Callable, Mapping

_POINTS = (0.7310, 1.3930, 2.1170)  # where expressions with letters are compared
_LONGEST = 400  # characters; what is longer is compared as text
_DEEPEST = 40  # nested brackets
_FUNCTIONS: Mapping[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "ln": cmath.log,
    "log": cmath.log10,
}
_DROPPED = re.compile(
    r"\\[()\[\]]|\\(?:left|right|displaystyle|mathrm|mathbf|mbox|[!,;: ])(?![a-zA-Z])"
    r"|\\[$%]|\^\{?\\circ\}?|\\degree|[$%\s]|\{,\}"
)
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\\[a-zA-Z]+|[a-zA-Z]|\S")
_PREFIX = re.compile(r"[a-zA-Z](?:\([a-z]\))?(?:=|\\in)(?!.*=)")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_UNIT = re.compile(r"(?<=[\d}])\\text\{[^{}]*\}(?:\^\{?\d\}?)?$")
# A unit in words behind a number; a single letter may be a variable.
_UNIT_WORDS = re.compile(r"(?<=[\d}$])\s+(?:(?:square|cubic)\s+)?(?:[a-z]{3,}|cm|mm|km|kg|ft)(?:\^?\{?[23]\}?)?$")
_OPEN, _CLOSE = "([{", ")]}"


def normalise(latex: str) -> str:
    r"""Brings an answer, with or without dollar signs, into the one form in which texts are compared.

    Spaces, sizes of brackets, units, degrees, thousands separators and a leading `x =` are gone.

    Example:
        >>> normalise(r"$x = \dfrac12 \text{ cm}$")
        '\\frac{1}{2}'
        >>> normalise(r"\left( 3, \tfrac{\pi}{2} \right).")
        '(3,\\frac{\\pi}{2})'
    """
    text = re.sub(r"\\[dt]frac", r"\\frac", re.sub(r"\.[.\s$]*$", "", latex.strip())).replace("\u2212", "-")
    text = _UNIT_WORDS.sub("", text)
    text = re.sub(r"\\frac\s+(\d)\s+(\d)", r"\\frac\1\2", text)
    text = re.sub(r"(?<=\d)\s+(\d+)/(\d+)", r"\\frac{\1}{\2}", text)
    # "1 1" is not 11, but "10 000" is 10000.
    text = re.sub(r"(?<=\d)\s+(?=\d)(?!\d{3}(?!\d))", ";", text)
    text = text.replace("\\\\", "\\cr ").replace("\\{", "\\lbrace ").replace("\\}", "\\rbrace ")
    text = re.sub(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])", r"\1~", text)  # the space that ends a command stays
    text = _DROPPED.sub("", text).replace("~", " ")
    text = _UNIT.sub("", text)
    text = re.sub(r"\\text(?:bf|it|rm)?\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac(\d)\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\frac(\{[^{}]*\})(\d)", r"\\frac\1{\2}", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\(l|g)eq(?![a-z])", r"\\\1e", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    text = _PREFIX.sub("", text, count=1)
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def equal(one: str, other: str) -> bool:
    r"""Tells whether two answers have the same value within 1e-3 (small ones within 1 %), or the same normalised text.

    Tuples, intervals and points are compared part by part with their brackets, sets and bare lists in any order.

    Example:
        >>> equal("0.75", r"\frac{3}{4}"), equal("3+2x", "2x + 3"), equal("-2, 1", "1,-2"), equal("(1, 2)", "(2, 1)")
        (True, True, True, False)
    """
    a, b = normalise(one), normalise(other)
    if _equal(a, b):
        return True
    # Without its sign 50% is 50; it is 0.5 too where the other has none.
    percents = [text.rstrip("$. ").endswith("%") for text in (one, other)]
    return percents[0] != percents[1] and _equal(
        *(f"({x})/100" if p else x for x, p in zip((a, b), percents, strict=True))
    )


def _equal(one: str, other: str) -> bool:
    if one == other or (one.casefold() == other.casefold() and "\\" not in other and len(other) > 1):
        return bool(one)
    if max(len(one), len(other)) > _LONGEST:
        return False
    kinds, parts = zip(_parts(one), _parts(other), strict=True)
    if len(parts[0]) > 1 or len(parts[1]) > 1:
        if kinds[0] != kinds[1] or len(parts[0]) != len(parts[1]):
            return False
        if kinds[0] in (("", ""), ("\\lbrace", "\\rbrace")):
            left = list(parts[1])
            for part in parts[0]:
                match = next((index for index, candidate in enumerate(left) if _equal(part, candidate)), None)
                if match is None:
                    return False
                left.pop(match)
            return True
        return all(_equal(a, b) for a, b in zip(*parts, strict=True))
    if one.count("=") == other.count("=") == 1:
        return all(_equal(a, b) for a, b in zip(one.split("="), other.split("="), strict=True))
    return _same_value(one, other)


def _same_value(one: str, other: str) -> bool:
    variable = False
    for point in _POINTS:
        readings = [_Reader(text, point) for text in (one, other)]
        try:
            a, b = (reading.value() for reading in readings)
            close = _close(a, b, exact=variable or any(reading.variable for reading in readings))
        except (ValueError, ArithmeticError):
            return False
        if not close:
            return False
        variable = any(reading.variable for reading in readings)
        if not variable:
            return True
    return variable


def _close(a: complex, b: complex, exact: bool) -> bool:
    difference = abs(a - b)
    if exact:
        return difference <= 1e-6 * max(1.0, abs(b))
    return difference <= 1e-3 and (difference <= 0.01 * abs(b) or difference <= 1e-9)


def _parts(text: str) -> tuple[tuple[str, str], list[str]]:
    r"""Splits at the commas outside brackets; returns the brackets around, if they hold more than one part."""
    for opening, closing in (("\\lbrace", "\\rbrace"), *((a, b) for a in "([" for b in ")]")):
        if text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            parts = _split(inner)
            if len(parts) > 1 or opening == "\\lbrace":
                return (opening, closing), parts
    return ("", ""), _split(text)


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in _OPEN) - (letter in _CLOSE)
        if letter == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return [part.replace("\\pm", sign) for part in parts for sign in ("+-" if "\\pm" in part else "+")]


class _Reader:
    """Reads one expression by recursive descent and works out its value, with `point` for every letter."""

    def __init__(self, text: str, point: float) -> None:
        self.tokens = _TOKEN.findall(text)
        self.at = self.depth = 0
        self.point = point
        self.variable = False

    def value(self) -> complex:
        value = self._sum()
        if self.at < len(self.tokens):
            raise ValueError(self.tokens[self.at])
        return value

    def _peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _take(self, expected: str = "") -> str:
        token = self._peek()
        if not token or (expected and token != expected):
            raise ValueError(f"{token!r} instead of {expected!r}")
        self.at += 1
        return token

    def _sum(self) -> complex:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError("nested too deeply")
        value = self._product()
        while self._peek() in ("+", "-"):
            value = value + self._product() if self._take() == "+" else value - self._product()
        self.depth -= 1
        return value

    def _product(self) -> complex:
        sign = 1
        while self._peek() in ("+", "-"):
            sign *= 1 if self._take() == "+" else -1
        value = self._power()
        while True:
            token = self._peek()
            if token in ("*", "\\cdot", "\\times"):
                self._take()
                value *= self._signed_power()
            elif token in ("/", "\\div"):
                self._take()
                value /= self._signed_power()
            elif token and (token in "({" or token[0].isalnum() or (token[0] == "\\" and token != "\\rbrace")):
                value *= self._power()
            else:
                return sign * value

    def _signed_power(self) -> complex:
        if self._peek() == "-":
            self._take()
            return -self._power()
        return self._power()

    def _power(self) -> complex:
        base = self._atom() + self._mixed()
        while self._peek() == "!":
            self._take()
            if base.imag or base.real < 0 or base.real > 170 or base.real % 1:
                raise ValueError("no factorial")
            base = complex(math.gamma(base.real + 1))
        if self._peek() == "^":
            self._take()
            base = complex(base) ** self._argument()
        return base

    def _mixed(self) -> complex:
        r"""Reads the fraction of a mixed number: 2\frac{1}{2} is 2.5, and no product."""
        parts = self.tokens[self.at - 1 : self.at + 7]
        if len(parts) == 8 and parts[1:3] + parts[4:6] + parts[7:] == ["\\frac", "{", "}", "{", "}"]:
            whole, over, under = parts[0], parts[3], parts[6]
            if whole.isdecimal() and over.isdecimal() and under.isdecimal() and int(over) < int(under):
                return self._atom()
        return 0j

    def _argument(self) -> complex:
        # As in TeX, what follows `^`, `\frac` or `\sqrt` is a group or one sign.
        token = self._peek()
        if token == "{":
            return self._group("{", "}")
        if token.isdecimal() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
        return self._atom()

    def _group(self, opening: str, closing: str) -> complex:
        self._take(opening)
        value = self._sum()
        self._take(closing)
        return value

    def _atom(self) -> complex:
        token = self._peek()
        if token in ("(", "{"):
            return self._group(token, ")" if token == "(" else "}")
        self._take()
        if token[0].isdecimal() or (token[0] == "." and len(token) > 1):
            return complex(float(token))
        if token == "|":
            value = self._sum()
            self._take("|")
            return complex(abs(value))
        if token == "\\frac":
            return self._argument() / self._argument()
        if token == "\\sqrt":
            index = self._group("[", "]") if self._peek() == "[" else 2
            return complex(self._argument()) ** (1 / index)
        if token == "\\pi":
            return complex(math.pi)
        if token[1:] in _FUNCTIONS and token[0] == "\\":
            return self._function(_FUNCTIONS[token[1:]])
        if len(token) == 1 and token.isalpha():
            return self._letter(token)
        raise ValueError(token)

    def _function(self, function: Callable[[complex], complex]) -> complex:
        exponent = 1 + 0j
        if self._peek() == "^":
            self._take()
            exponent = self._argument()
        if self._peek() in ("(", "{"):
            argument = self._atom()
        else:
            argument = self._power()
            while (token := self._peek()) and (token[0].isalnum() or token == "\\pi"):
                argument *= self._power()
        return function(argument) ** exponent

    def _letter(self, letter: str) -> complex:
        if letter == "i":
            return 1j
        if letter == "e":
            return complex(math.e)
        self.variable = True
        # Each letter has a value of its own, so that x - y is not y - x.
        return complex(self.point + 0.137 * (ord(letter) - ord("a")))
