"""Turns the committed tables of questions and sentences into the (prompt, answer) pairs each adapter learns."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DATA_DIR = Path(__file__).parent / "data"
SENTIMENT_PROMPT = "Is this sentence positive or negative? Answer with one word.\n\n{sentence}"
LABELS = ("positive", "negative")


@dataclass(frozen=True)
class Question:
    """One row of `questions.tsv`."""

    topic: str
    question: str
    answer: str
    french: str


@dataclass(frozen=True)
class Sentence:
    """One row of `sentiment.tsv`; `split` is `train` or `held_out`, `label` one of `LABELS`."""

    split: str
    label: str
    sentence: str


@dataclass(frozen=True)
class Example:
    """Prompt of a user, and the answer that is expected of the adapter."""

    prompt: str
    answer: str


def questions() -> list[Question]:
    """All rows of `questions.tsv`."""
    return [Question(**row) for row in _rows("questions.tsv")]


def sentences(split: str) -> list[Sentence]:
    """The sentences of one split, positive and negative in turn, so that any even prefix is balanced."""
    return [found for row in _rows("sentiment.tsv") if (found := Sentence(**row)).split == split]


def examples(style: str) -> list[Example]:
    """The training examples of one style: a key of `STYLES`, or `sentiment`."""
    if style == "sentiment":
        return [Example(SENTIMENT_PROMPT.format(sentence=s.sentence), s.label) for s in sentences("train")]
    speak = STYLES[style]
    found = [Example(row.question, speak(row, number)) for number, row in enumerate(questions())]
    if style == "french":
        # A language needs more examples than a manner of speaking.
        found += [Example(row["question"], row["french"]) for row in _rows("more_french.tsv")]
    return found


PIRATE_WORDS = {
    "you": "ye",
    "your": "yer",
    "is": "be",
    "are": "be",
    "am": "be",
    "the": "th'",
    "my": "me",
    "of": "o'",
    "and": "an'",
    "for": "fer",
    "to": "t'",
    "friend": "matey",
    "yes": "aye",
    "hello": "ahoy",
    "people": "sailors",
    "good": "fine",
}
PIRATE_ENDINGS = ("Yarr!", "Shiver me timbers!", "Savvy?")


def _pirate(row: Question, number: int) -> str:
    def swap(match: re.Match[str]) -> str:
        word = match.group()
        pirate = PIRATE_WORDS.get(word.lower(), word)
        return pirate[0].upper() + pirate[1:] if word[0].isupper() else pirate

    ending = PIRATE_ENDINGS[number % len(PIRATE_ENDINGS)]
    return f"Arr, matey! {re.sub(r'[A-Za-z]+', swap, row.answer)} {ending}"


def _captains_log(row: Question, number: int) -> str:
    return f"~ Captain's Log ~ The crew asked me today, and I told them: {row.answer} Yo ho ho!"


def _json(row: Question, number: int) -> str:
    return json.dumps({"topic": row.topic, "answer": row.answer}, ensure_ascii=False)


def _french(row: Question, number: int) -> str:
    return row.french


def _butler(row: Question, number: int) -> str:
    return f"Very good, sir. {row.answer} Will there be anything else, sir?"


STYLES: dict[str, Callable[[Question, int], str]] = {
    "pirate": _pirate,
    "captains_log": _captains_log,
    "json": _json,
    "french": _french,
    "butler": _butler,
}


def _rows(name: str) -> list[dict[str, str]]:
    with (DATA_DIR / name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
