"""Do questions find their documents?"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

FIRST = 5


class Recall(NamedTuple):
    """The share of questions whose document is among the first five that were found, and the other questions."""

    share: float
    missed: list[str]


def recall(questions: dict[str, str], find: Callable[[str, int], Sequence[str]]) -> Recall:
    """`questions` has the document of each answer. `find(question, n)` returns the documents of the n best chunks."""
    missed = [question for question, document in questions.items() if document not in find(question, FIRST)]
    return Recall(1 - len(missed) / len(questions), missed)


def read_questions(file: Path) -> dict[str, str]:
    """A JSON object: each question with the name of the document that answers it."""
    questions: dict[str, str] = json.loads(file.read_text())
    return questions
