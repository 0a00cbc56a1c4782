"""What an exercise is: one declaration, and the register of all of them."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from vaetutor.exercises._attempt import Attempt

ORIGINS = (
    "parametrisation, question 1",
    "parametrisation, question 2",
    "amortisation, question 1",
    "amortisation, question 2",
    "the VAE, question 1",
    "the VAE, question 2",
    "advanced, question 1",
    "advanced, question 2",
    "advanced, question 3",
)
"""The nine questions of the text that the book grew from; each is the origin of one exercise."""


@dataclass(frozen=True)
class Mistake:
    """A likely mistake, as an answer that makes it.

    A wrong answer that gives the same values as `answer` where the judge first found it wrong is
    told `says`.
    """

    says: str
    """One or two sentences: what the mistake is, and why it is one."""
    answer: Any
    """A wrong answer: of the kind that the exercise asks for."""


@dataclass(frozen=True)
class Exercise:
    """One exercise, but for its prompt, which stands in the book."""

    id: str
    """Chapter and number, ``"3.2"``."""
    title: str
    """As in the heading of the prompt."""
    page: str
    """The page of the book that holds the prompt, ``"03_reparameterization"``."""
    kind: Literal["function", "number", "choice", "distribution"]
    """What an answer is. A number is anything that converts to one; a choice is a letter."""
    difficulty: Literal["easy", "medium", "hard"]
    minutes: int
    """What a reader of the chapter needs, roughly."""
    solution: Callable[..., Any]
    """The solution, as readers see it. For a kind other than a function it takes no argument and
    returns the answer."""
    judge: Callable[[Attempt], None]
    """Examines an answer; returns if it is right. See :class:`Attempt`."""
    mistakes: tuple[Mistake, ...]
    """At least three, each different from the right answer and from the others."""
    hints: tuple[str, ...]
    """Two or three, from a first push to all but the answer. Never the answer."""
    lesson: str
    """What to take away, shown with a right answer and with the solution."""
    origin: str = ""
    """One of ``ORIGINS``, or empty."""
    draws: bool = False
    """Whether an answer may draw random numbers, a module's first values among them."""
    seconds: float = 20.0
    """After so long an answer is stopped."""

    @property
    def chapter(self) -> int:
        return int(self.id.split(".")[0])

    @property
    def number(self) -> int:
        return int(self.id.split(".")[1])

    def right_answer(self) -> Any:  # noqa: ANN401
        return self.solution if self.kind == "function" else self.solution()

    def source(self) -> str:
        """The code of the solution."""
        return textwrap.dedent(inspect.getsource(self.solution)).strip()


REGISTER: dict[str, Exercise] = {}
"""All exercises by their id."""


def register(exercise: Exercise) -> None:
    """Put `exercise` into the register.

    Raises a ValueError if it is not complete, or its id is taken.
    """
    if problem := _problem(exercise):
        raise ValueError(f"exercise {exercise.id} {problem}")
    REGISTER[exercise.id] = exercise


def _problem(exercise: Exercise) -> str:
    texts = {"title": exercise.title, "page": exercise.page, "lesson": exercise.lesson}
    empty = [name for name, text in texts.items() if not text.strip()]
    if not re.fullmatch(r"[1-9]\.[1-9]\d?", exercise.id):
        return "must have an id such as '3.2'"
    if exercise.id in REGISTER:
        return "exists already"
    if empty:
        return f"has no {empty[0]}"
    if exercise.kind not in ("function", "number", "choice", "distribution"):
        return f"is of an unknown kind, {exercise.kind!r}"
    if exercise.difficulty not in ("easy", "medium", "hard"):
        return f"has an unknown difficulty, {exercise.difficulty!r}"
    if exercise.minutes < 1 or exercise.seconds <= 0:
        return "must take some time"
    if not 2 <= len(exercise.hints) <= 3 or not all(exercise.hints):
        return "must have two or three hints"
    if len({mistake.says for mistake in exercise.mistakes}) < max(3, len(exercise.mistakes)):
        return "must have at least three mistakes, each with its own sentence"
    if exercise.origin and exercise.origin not in ORIGINS:
        return f"has an unknown origin, {exercise.origin!r}"
    return ""


def complete() -> None:
    """Raise a ValueError unless numbers run without a gap and each origin has its exercise."""
    for chapter in sorted({exercise.chapter for exercise in REGISTER.values()}):
        numbers = sorted(e.number for e in REGISTER.values() if e.chapter == chapter)
        if numbers != list(range(1, len(numbers) + 1)):
            raise ValueError(f"the exercises of chapter {chapter} are numbered {numbers}")
    origins = sorted(e.origin for e in REGISTER.values() if e.origin)
    if origins != sorted(ORIGINS):
        raise ValueError(f"each origin must have one exercise, found {origins}")


def ordered() -> list[Exercise]:
    """All exercises, in the order of the book."""
    return sorted(REGISTER.values(), key=lambda e: (e.chapter, e.number))


def find(id: str) -> Exercise:
    """The exercise of that id. Raises a ValueError if there is none."""
    if id not in REGISTER:
        raise ValueError(
            f"id must be the number of an exercise, such as '1.1', found {id!r}: there are "
            + ", ".join(exercise.id for exercise in ordered())
        )
    return REGISTER[id]
