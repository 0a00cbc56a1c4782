"""Exercises that say whether an answer is right, and if not, which mistake it looks like.

The prompts stand at the end of the book's chapters, each with a cell to write the answer in::

    exercises.check("3.2", answer)  # judge it
    exercises.hint("3.2")           # a push; call it again for a stronger one
    exercises.solution("3.2")       # the code, and the proof that it passes its own check
    exercises.progress()            # what has been attempted and passed

Answers are judged by properties and by exact models, never by comparing code or stored output: a
right answer written in another way passes. Each exercise knows its likely mistakes as functions,
and a wrong answer that behaves like one of them is told so. Everything is offline and
deterministic. Nothing is written to a file: the progress lasts as long as the session.
"""

from __future__ import annotations

import pkgutil
from collections import Counter
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vaetutor.exercises import _declare, _judge, _show
from vaetutor.exercises._attempt import Attempt
from vaetutor.exercises._declare import ORIGINS, Exercise, Mistake, register
from vaetutor.exercises._judge import Report

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ORIGINS",
    "Attempt",
    "Exercise",
    "Mistake",
    "Report",
    "check",
    "hint",
    "judge",
    "progress",
    "register",
    "solution",
    "table",
]

_attempts: Counter[str] = Counter()
_passed: set[str] = set()
_hints: Counter[str] = Counter()


def check(id: str, answer: Any) -> None:  # noqa: ANN401
    """Judge an answer and show the verdict: a box in a notebook, text elsewhere.

    Whatever the answer does is reported and not fatal: it may raise, loop, print, or change the
    global random state, which is put back.

    Args:
        id: number of the exercise, ``"3.2"``.
        answer: what the prompt asks for: a function, a number, a distribution or a letter. With
            the ``...`` of the stub still in it, it counts as not attempted.

    Raises:
        ValueError: if there is no such exercise.
    """
    report = judge(id, answer)
    if report.status != "untouched":
        _attempts[id] += 1
    if report.passed:
        _passed.add(id)
    _show.verdict(report)


def judge(id: str, answer: Any) -> Report:  # noqa: ANN401
    """As :func:`check`, but the verdict is returned: for marking by program.

    Args:
        id, answer: as :func:`check`.

    Returns:
        ``Report``: ``.status``, ``.passed``, ``.sentence``, ``.detail`` and ``.printed``.

    Raises:
        ValueError: if there is no such exercise.
    """
    return _judge.report(_declare.find(id), answer)


def hint(id: str) -> None:
    """Show the next hint; after the last, the last again.

    In a notebook the further hints are folded inside the first.

    Args:
        id: number of the exercise.

    Raises:
        ValueError: if there is no such exercise.
    """
    exercise = _declare.find(id)
    stage = min(_hints[id], len(exercise.hints) - 1)
    _hints[id] += 1
    _show.hint(exercise, stage)


def solution(id: str) -> None:
    """Show a solution, folded in a notebook, and what its own check says about it.

    Args:
        id: number of the exercise.

    Raises:
        ValueError: if there is no such exercise.
        RuntimeError: if the solution did not pass its check.
    """
    exercise = _declare.find(id)
    report = judge(id, exercise.right_answer())
    if not report.passed:
        raise RuntimeError(f"the solution of exercise {id} fails its check: {report.sentence}")
    _show.solution(exercise, report)


def progress() -> pd.DataFrame:
    """What has been attempted in this session.

    Returns:
        A table with one row for each attempted exercise, with its title, the number of checked
        answers and whether one of them has passed.
    """
    import pandas as pd

    rows = {
        exercise.id: [exercise.title, _attempts[exercise.id], exercise.id in _passed]
        for exercise in _declare.ordered()
        if _attempts[exercise.id]
    }
    columns = ["title", "attempts", "passed"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("exercise")


def table() -> pd.DataFrame:
    """All exercises, in the order of the book.

    Returns:
        A table with one row for each, with title, page, kind, difficulty, minutes and origin.
    """
    import pandas as pd

    columns = ["title", "page", "kind", "difficulty", "minutes", "origin"]
    rows = {e.id: [getattr(e, name) for name in columns] for e in _declare.ordered()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("exercise")


# Every module of the package without an underscore holds the exercises of one page of the book.
for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")
_declare.complete()
