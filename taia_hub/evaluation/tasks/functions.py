"""What the YAML files of this folder cannot say: prompts made of lists, scores of single items, one data set's form."""

from __future__ import annotations

import json
import re
import string
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from taia_hub import hub
from taia_hub.errors import RepositoryError
from taia_hub.evaluation import scoring

MMEDBENCH = "Henrychur/MMedBench"

_OPTION = re.compile(r"^\(([A-Z])\)", re.MULTILINE)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SHORT = 1000


def score_math(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores an answer to a problem of MATH."""
    return {"exact_match": scoring.score("latex", results[0], doc["answer"])}


def score_svamp(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores an answer to a problem of SVAMP, whose numbers are text such as "145.0"."""
    return {"exact_match": scoring.score("number", results[0], str(doc["Answer"]))}


def score_bbh(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores an answer to an item of BIG-Bench Hard: an option's letter where the target is one, else a text."""
    target = doc["target"].strip()
    if not re.fullmatch(r"\([A-Z]\)", target):
        return {"exact_match": scoring.score("text", results[0], target)}
    letters = _OPTION.findall(doc["input"]) or scoring.LETTERS
    return {"exact_match": scoring.score("choice", results[0], target, letters)}


def score_commonsense_qa(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores an answer to a question of CommonsenseQA."""
    return {"exact_match": scoring.score("choice", results[0], doc["answerKey"], doc["choices"]["label"])}


def logiqa_prompt(doc: Mapping[str, Any]) -> str:
    """Returns a question of LogiQA without the beginning of an answer that the data set has."""
    question = re.sub(r"\s*\nA: Among A through [A-Z], the answer is\s*$", "", doc["query"])
    return f"{question}\n\nPlease answer with option letter directly, do not output other infomation."


def mmedbench(language: str, **_: Any) -> Any:
    """Loads the test items of one language of MMedBench, which the Hub has as an archive that `datasets` cannot read.

    They have a question, options (texts), letters, and answer_idx (a letter).
    """
    from datasets import Dataset, DatasetDict

    name = f"{MMEDBENCH.partition('/')[2]}.zip"
    found = hub.fetch(MMEDBENCH, [name], what="data set", local=False, kind="dataset")
    archive = zipfile.ZipFile(found.folder / name)
    wanted = f"test/{language}.jsonl".lower()
    member = next((name for name in archive.namelist() if name.lower().endswith(wanted)), None)
    if member is None:
        raise RepositoryError(f"'{MMEDBENCH}' has no test items in '{language}': its archive lacks '{wanted}'.")
    lines = archive.read(member).decode("utf-8").splitlines()
    items = [_mmedbench_item(json.loads(line), f"{member}:{at}") for at, line in enumerate(lines, 1) if line.strip()]
    return DatasetDict({"test": Dataset.from_list(items)})


def options_prompt(doc: Mapping[str, Any]) -> str:
    """Returns an English question with its options, as the paper asks for a letter."""
    return f"{_options(doc)}\n\nPlease answer with option letter directly, do not output other infomation."


def options_prompt_zh(doc: Mapping[str, Any]) -> str:
    """Returns a Chinese question with its options, as the paper asks for a letter."""
    return f"{_options(doc)}\n\n请用选项的字母直接回答，不要输出其他信息："  # noqa: RUF001


def first_thousand(dataset: Any) -> Any:
    """Returns the first thousand items of a data set; lm-eval copies all items that examples are drawn from."""
    return dataset.select(range(min(_SHORT, len(dataset))))


def score_xsum(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores a summary with the F-measures of ROUGE-L, 1 and 2, from 0 to 1, with stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rougeL", "rouge1", "rouge2"]
    scores = RougeScorer(names, use_stemmer=True).score(doc["summary"], results[0].strip())
    return {name: float(scores[name].fmeasure) for name in names}


def squad_target(doc: Mapping[str, Any]) -> str:
    """Returns the first right answer, or "unanswerable"."""
    return str((doc["answers"]["text"] or ["unanswerable"])[0])


def score_squad(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores an answer with SQuAD's exact match and F1 over words, the best over all right answers.

    An empty answer, or "unanswerable" as the prompt asks for, is right where the question has no answer.
    """
    given = _squad_words(results[0])
    given = [] if given == ["unanswerable"] else given
    right = [words for words in map(_squad_words, doc["answers"]["text"]) if words] or [[]]
    return {
        "exact_match": float(max(given == words for words in right)),
        "f1": max(_f1(given, words) for words in right),
    }


def _mmedbench_item(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    options = {letter: str(text) for letter, text in sorted(item["options"].items()) if text is not None}
    answer = str(item["answer_idx"]).strip()
    if answer not in options:
        raise RepositoryError(f"'{MMEDBENCH}', {place}: the answer '{answer}' is none of {', '.join(options)}.")
    letters = list(options)
    return {"question": item["question"], "options": list(options.values()), "letters": letters, "answer_idx": answer}


def _options(doc: Mapping[str, Any]) -> str:
    lines = [f"{letter}. {text}" for letter, text in zip(doc["letters"], doc["options"], strict=True)]
    return "\n".join([doc["question"].strip(), *lines])


def _squad_words(text: str) -> list[str]:
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return _ARTICLES.sub(" ", text).split()


def _f1(given: list[str], right: list[str]) -> float:
    if not given or not right:
        return float(given == right)
    common = sum((Counter(given) & Counter(right)).values())
    return 2 * common / (len(given) + len(right))
