"""Answers found in generated text and compared: the paper's rules, and each of their defects mended."""

import json
import re
import time
from pathlib import Path

import pytest

from taia_hub.evaluation import latex, scoring

SAMPLES = Path(__file__).parents[1] / "data" / "eval"
PAPER_SPAN = re.compile(r"[Tt]he answer is (.*?)\.")


# --- The mended defects, one test each, beside what the paper's rule gives ------------------------------------------
def test_decimals_are_not_cut():
    assert PAPER_SPAN.search("The answer is 3.5.")[1] == "3"
    assert scoring.answer_span("The answer is 3.5.") == "3.5"
    assert scoring.number_matches("The answer is 3.5.", "3.5")
    assert not scoring.number_matches("The answer is 3.5.", "3")


def test_without_the_words_there_is_no_span():
    assert scoring.answer_span("It is (B).") is None
    assert scoring.answer_span("They give no answer. Is it 3?") is None


def test_the_literal_braces_of_the_prompt_are_no_answer():
    assert scoring.find_number("The answer is {7}.") == 7
    assert scoring.find_number("The answer is 8. Format: The answer is {answer}.") == 8
    assert scoring.find_letter("The answer is {B}.") == "B"


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("(A) is wrong, so it is (B)", "B"),
        ("(A) is wrong. The answer is (B).", "B"),
        ("The answer is B.", "B"),
        ("The answer is **B**.", "B"),
        ("The answer is: B) bank", "B"),
        ("The answer is option (C), bank.", "C"),
        ("\\boxed{D}", "D"),
        ("D", "D"),
        ("D. bank", "D"),
        ("The answer is a dog.", None),
        ("The answer is A dog.", None),
        ("A dog is seen in option (B).", "B"),
        ("Because BANKS have doors", None),
        ("The answer is (F).", None),
        ("", None),
        ("The answer is B because it fits.", "B"),
        ("The answer is A because it fits.", "A"),
        ("The answer is B bank.", "B"),
        ("The answer is B or C.", None),
        ("The answer is $\\boxed{\\text{B}}$.", "B"),
        ("The answer is: \\(B\\)", "B"),
        ("The answer is $B$.", "B"),
        ("The answer is b.", "B"),
        ("The answer is option B.", "B"),
        ("The best answer is B.", "B"),
        ("The correct option is B.", "B"),
        ("B\n\nbecause", "B"),
        ("A 45-year-old man has (C).", "C"),
        ("A Boeing is large, so (B)", "B"),
        ("E's best guess is (D)", "D"),
    ],
)
def test_a_letter_is_the_option_that_is_chosen(output, letter):
    assert scoring.find_letter(output, "ABCDE") == letter


def test_part_of_an_answer_is_not_the_answer():
    assert "1" in "12"
    assert not scoring.number_matches("The answer is 12.", "1")
    assert not scoring.text_matches("The answer is invalid.", "valid")
    assert not scoring.text_matches("The answer is not True.", "True")
    assert not scoring.text_matches("The answer is ) ] }.", ") ]")
    assert not scoring.text_matches("The answer is apple bee cat.", "apple bee")
    assert not scoring.text_matches("The answer is yes and no.", "yes")


@pytest.mark.parametrize(
    ("output", "number"),
    [
        ("The answer is $1,234,567.", 1234567),
        ("The answer is -3.", -3),
        ("The answer is \u22123.", -3),
        ("The answer is 50%.", 50),
        ("The answer is 3/4.", 0.75),
        ("The answer is \\frac{3}{4}.", 0.75),
        ("The answer is .5.", 0.5),
        ("The answer is 2 + 3 = 5 apples.", 5),
        ("the answer is:\n\n17", 17),
        ("So \\boxed{42}. The answer is 7.", 42),
        ("First 3, then 4, in all 7 apples", 7),
        ("The answer is 5. Next: how much is 3 - 1?\nThe answer is 2.", 2),
        ("It lasts from 5-3", 3),
        ("1,2", 2),
        ("nothing", None),
        ("1/0", None),
        ("\\boxed{2\\frac{1}{2}}", 2.5),
        ("The answer is -1 1/2.", -1.5),
        ("Step 2\n3/4", 0.75),
        ("The answer is \\frac12.", 0.5),
        ("The answer is 1.5e3.", 1500),
        ("The answer is 3 \\times 10^5.", 300000),
        ("The answer is 10^{6}.", 1000000),
        ("The area is 12 cm^2", 12),
        ("In all:\n- 3 apples", 3),
        ("The answer is 7, so 5 = x", 7),
        ("The answer is 20-5=15, because 15+5=20.", 15),
    ],
)
def test_numbers_as_people_write_them(output, number):
    assert scoring.find_number(output) == (None if number is None else pytest.approx(number))


def test_a_percentage_is_also_its_share():
    for output, answer in [("12.5%", "12.5"), ("12.5%", "0.125"), ("12.5\\%", "12.5%"), ("0.125", "12.5%")]:
        assert scoring.number_matches(f"The answer is {output}.", answer)
        assert scoring.latex_matches(f"The answer is {output}.", answer)
    assert not scoring.number_matches("The answer is 0.125%.", "12.5%")
    assert not latex.equal("0.125\\%", "12.5\\%")


def test_small_answers_differ():
    assert abs(1 / 2000 - 1 / 3000) < 1e-3
    assert not scoring.number_matches("The answer is 1/3000.", "1/2000")
    assert not scoring.latex_matches("\\boxed{\\frac{1}{3000}}", "\\frac{1}{2000}")
    assert scoring.number_matches("The answer is 0.333.", "1/3")
    assert not scoring.number_matches("The answer is 0.001.", "0")


def test_a_box_ends_at_its_own_brace():
    assert scoring.boxed("x \\boxed{\\frac{1}{2}} \\boxed{3}") == "\\frac{1}{2}"
    assert scoring.boxed("\\boxed{\\{1, 2\\}}") == "\\{1, 2\\}"
    assert scoring.boxed("\\boxed{1 \\boxed{2}") == "2"
    assert scoring.boxed("no box") is None


# --- Text ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("The answer is Yes.", "yes"),
        ("The answer is **True**.", "True"),
        ("valid", "valid"),
        ("Let me think.\nvalid", "valid"),
        ("Yes, because he does.", "Yes"),
        ("The answer is: apple, bee, cat.", "apple bee cat"),
        ("The answer is > ) }.", "> ) }"),
        ('The answer is "east".', "\\text{east}"),
        ("The answer is 8 books.", "8"),
        ("The answer is $\\boxed{\\text{Yes}}$.", "yes"),
        ("No. Let me check.\nYes.", "Yes"),
        ("Okay.\nYes", "yes"),
        ("No.\nHe does not.", "No"),
    ],
)
def test_text_is_compared_without_case_and_ornament(output, answer):
    assert scoring.text_matches(output, answer)


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("No. Let me check.\nYes.", "No"),
        ("True is what I'd guess first.\nFalse", "True"),
        ("Valid arguments need premises.\nSo it is invalid.", "valid"),
        ("The answer is no one.", "No"),
    ],
)
def test_a_sentence_that_begins_with_the_answer_is_not_it(output, answer):
    assert not scoring.text_matches(output, answer)


# --- LaTeX ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("0.5", "\\frac12"),
        ("\\dfrac{3}{4}", "3/4"),
        ("$2\\sqrt{5}$", "\\sqrt{20}"),
        ("1{,}000", "1000"),
        ("10080", "10,\\!080"),
        ("x=5", "5"),
        ("5\\text{ cm}", "5"),
        ("90", "90^\\circ"),
        ("\\left(3, \\frac{\\pi}{2}\\right)", "(3,\\pi/2)"),
        ("-2, 1", "1,-2"),
        ("\\{2, 1\\}", "\\{1, 2\\}"),
        ("1+\\sqrt{19},1-\\sqrt{19}", "1 \\pm \\sqrt{19}"),
        ("x(x-1)", "x^2-x"),
        ("9i+6", "6+9i"),
        ("y = 3 + 2x", "y=2x+3"),
        ("\\text{East}", "\\text{east}"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
        ("\\cot x", "\\frac{\\cos x}{\\sin x}"),
        ("5!", "120"),
        ("2^{10}", "1024"),
        ("10 \\%", "10"),
        ("2\\frac{1}{2}", "\\frac{5}{2}"),
        ("-1 1/2", "-1.5"),
        ("50\\%", "0.5"),
        ("5 cm", "5"),
        ("12 square units", "12"),
        ("\\(\\frac{1}{2}\\)", "0.5"),
        ("$5.$", "5"),
        ("\u22123", "-3"),
        ("10 000", "10000"),
        ("(-\\infty, 2) \\cup (3, \\infty)", "(-\\infty,2)\\cup(3,\\infty)"),
    ],
)
def test_the_same_mathematics(given, right):
    assert latex.equal(given, right)
    assert scoring.latex_matches(f"So it is $\\boxed{{{given}}}$.", right)


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("(1, 2)", "(2, 1)"),
        ("(1, 2)", "[1, 2]"),
        ("1", "1, 2"),
        ("1, 1", "1, 2"),
        ("x - y", "y - x"),
        ("x^2", "x^3"),
        ("4343_6", "4343_7"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"),
        ("", "0"),
        ("\\frac{1}{0}", "\\frac{2}{0}"),
        ("9^{9^{9^{9}}}", "1"),
        ("(" * 5000, "1"),
        ("X", "x"),
        ("2\\frac{1}{2}", "1"),
        ("1 1/2", "5.5"),
        ("1 1", "11"),
        ("5 x", "5"),
    ],
)
def test_other_mathematics(given, right):
    assert not latex.equal(given, right)


def test_answers_of_math_match_themselves_and_no_other():
    rows = [json.loads(line) for line in (SAMPLES / "math.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [scoring.boxed(row["solution"]) for row in rows]

    assert None not in answers
    for index, answer in enumerate(answers):
        assert scoring.latex_matches(rows[index]["solution"], answer)
        assert scoring.latex_matches(f"The answer is ${answer}$.", answer)
    same = {frozenset((a, b)) for a in answers for b in answers if a != b and latex.equal(a, b)}
    assert not same


def test_nothing_that_a_model_writes_is_run(tmp_path):
    target = tmp_path / "touched"
    assert not latex.equal(f"__import__('pathlib').Path('{target}').touch()", "1")
    assert not target.exists()


@pytest.mark.parametrize("text", ["\\boxed{" * 20000, "the answer is " * 20000, "answer:" + "*" * 100000, "9," * 50000])
def test_long_texts_take_no_time(text):
    start = time.process_time()
    for answer_type in ("choice", "number", "latex", "text"):
        scoring.score(answer_type, text, "1")
    assert time.process_time() - start < 2
