"""From an answer to a verdict with its reason."""

from __future__ import annotations

import dis
import inspect
import sysconfig
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributions as td

from vaetutor.exercises import _guard
from vaetutor.exercises._attempt import Attempt, Observation, Untouched, Wrong
from vaetutor.exercises._declare import REGISTER, Exercise

Status = Literal["right", "wrong", "broken", "untouched"]


@dataclass(frozen=True)
class Report:
    """The verdict on one answer."""

    id: str
    title: str
    status: Status
    """Right, wrong, untouched, or broken: it raised an exception, or ran out of time."""
    sentence: str
    """Why; for a right answer, what to take away from the exercise."""
    detail: str = ""
    """What was found and what was expected, or what has been checked."""
    printed: str = ""
    """What the answer printed, shortened."""

    @property
    def passed(self) -> bool:
        return self.status == "right"


@dataclass(frozen=True)
class _Outcome:
    status: Status
    sentence: str
    observations: tuple[Observation, ...]
    printed: str


def report(exercise: Exercise, answer: Any, seed: int = 0) -> Report:  # noqa: ANN401
    """Examine `answer` and say what is right or wrong about it."""
    outcome = _examine(exercise, answer, seed)
    sentence, detail = outcome.sentence, ""
    if outcome.status == "wrong":
        says = _diagnosis(exercise, outcome, seed)
        sentence, detail = (says, sentence) if says else (sentence, "")
    elif outcome.status == "right":
        sentence, detail = exercise.lesson, _checked(outcome.observations)
    return Report(exercise.id, exercise.title, outcome.status, sentence, detail, outcome.printed)


def _checked(observations: tuple[Observation, ...], most: int = 6) -> str:
    """What a right answer has been compared in; of a long list, the first ones."""
    whats = list(dict.fromkeys(each.what for each in observations))
    if len(whats) > most:
        whats[most - 1 :] = [f"and {len(whats) - most + 1} more"]
    return f"Checked: {'; '.join(whats)}."


def _examine(exercise: Exercise, answer: Any, seed: int) -> _Outcome:  # noqa: ANN401
    """Run the judge on `answer`, with the session protected from it."""
    is_function = exercise.kind == "function"
    names = list(inspect.signature(exercise.solution).parameters) if is_function else []
    attempt = Attempt(answer, names, exercise.draws, seed)
    status: Status = "right"
    sentence = ""
    with _guard.quiet() as printed:
        try:
            with _guard.kept(seed), _guard.time_limit(exercise.seconds):
                if _is_stub(answer):
                    raise Untouched
                _check_kind(exercise, attempt)
                exercise.judge(attempt)
        except Untouched:
            status, sentence = (
                "untouched",
                "The `...` is still there: put your answer in its place.",
            )
        except Wrong as wrong:
            status, sentence = "wrong", str(wrong)
        except _guard.TimeIsUp:
            status = "broken"
            sentence = (
                f"It was stopped after {exercise.seconds:g} seconds. Is there a loop that does "
                "not end?"
            )
        except RecursionError:
            status, sentence = "broken", "It calls itself without an end (RecursionError)."
        except (Exception, SystemExit) as error:
            status, sentence = "broken", _raised(error)
            if isinstance(error, TypeError | AttributeError) and "ellipsis" in str(error):
                status, sentence = "untouched", "There is still a `...` in it: fill it in."
    return _Outcome(status, sentence, tuple(attempt.observations), _shown(printed))


def _check_kind(exercise: Exercise, attempt: Attempt) -> None:
    answer, kind = attempt.answer, exercise.kind
    if kind == "function" and not callable(answer):
        attempt.fail(
            f"A function is asked for, found {type(answer).__name__}. Pass the function itself, "
            "without calling it."
        )
    if kind == "distribution" and not isinstance(answer, td.Distribution):
        attempt.fail(f"A distribution is asked for, found {type(answer).__name__}.")
    if kind == "number" and callable(answer):
        attempt.fail("A number is asked for, found a function. Call it, and pass its result.")


def _is_stub(answer: Any) -> bool:  # noqa: ANN401
    """Whether it is the ``...`` of a prompt, or a function with nothing else in its body."""
    if isinstance(answer, tuple | list):
        return any(each is ... for each in answer)
    if not inspect.isfunction(answer):
        return answer is ...
    loads, *rest = [i for i in dis.get_instructions(answer) if i.opname not in _IDLE]
    returns = not rest or [i.opname for i in rest] == ["RETURN_VALUE"]
    return returns and loads.opname in _CONSTANT and loads.argval in (None, ...)


_IDLE = ("RESUME", "NOP", "COPY_FREE_VARS", "MAKE_CELL")
_CONSTANT = ("LOAD_CONST", "RETURN_CONST")


def _raised(error: BaseException) -> str:
    """The exception in one sentence, with the line of the answer that it came from."""
    message = str(error).strip().split("\n")[0][:300]
    text = f"It raised {type(error).__name__}" + (f": {message}" if message else "")
    libraries = {*sysconfig.get_paths().values(), *map(str, Path(__file__).parents[:2])}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.line and not any(frame.filename.startswith(path) for path in libraries)
    ]
    where = f" In the line `{frames[-1].line}`." if frames else ""
    return text.rstrip(".") + "." + where


def _shown(printed: _guard.Printed) -> str:
    text = printed.text.rstrip()
    dropped = printed.length - len(printed.text)
    return f"{text} [and {dropped} more characters]" if dropped else text


def _diagnosis(exercise: Exercise, outcome: _Outcome, seed: int) -> str:
    """What the mistake says that behaves as the answer did; empty if none does."""
    for index, mistake in enumerate(exercise.mistakes):
        if _alike(outcome, _of_mistake(exercise.id, index, seed)):
            return mistake.says
    return ""


@cache
def _of_mistake(id: str, index: int, seed: int) -> _Outcome:
    exercise = REGISTER[id]
    return _examine(exercise, exercise.mistakes[index].answer, seed)


def _alike(one: _Outcome, other: _Outcome) -> bool:
    """Whether both first went wrong in the same comparison, and with the same value."""
    if other.status != "wrong" or len(one.observations) != len(other.observations):
        return False
    if not one.observations:
        return False
    a, b = one.observations[-1], other.observations[-1]
    if a.right or b.right or a.what != b.what or a.found is None or b.found is None:
        return False
    if a.found.shape != b.found.shape:
        return False
    if a.error is not None and b.error is not None:
        return bool(((a.found - b.found).abs() <= 5 * (a.error + b.error) + 1e-9).all())
    return torch.allclose(a.found, b.found, rtol=a.tolerance, atol=1e-7, equal_nan=True)
