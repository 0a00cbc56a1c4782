"""Every exercise: its solution and other right answers pass, wrong ones get their sentence.

The answers stand in ``tests/answers``, one module for each page.
"""

import pkgutil
import re
from collections import Counter
from importlib import import_module

import answers
import pytest

from vaetutor import exercises
from vaetutor.exercises import _declare, _judge

ALL = _declare.ordered()
RIGHT, WRONG = {}, {}
for found in pkgutil.iter_modules(answers.__path__):
    module = import_module(f"answers.{found.name}")
    RIGHT |= module.RIGHT
    WRONG |= module.WRONG

each = pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.id)


def stub(a, b): ...


@each
def test_solution_passes(exercise):
    report = exercises.judge(exercise.id, exercise.right_answer())
    assert report.passed, report
    assert report.sentence == exercise.lesson and "Checked: " in report.detail


@each
def test_untouched_stub_is_neutral(exercise):
    for answer in [..., stub] if exercise.kind == "function" else [...]:
        assert exercises.judge(exercise.id, answer).status == "untouched"


@each
def test_other_right_answers_pass(exercise):
    others = RIGHT[exercise.id]
    # Of letters there is only one that is right; it may be written in capitals.
    assert len(others) >= (1 if exercise.kind == "choice" else 2)
    for answer in others:
        report = exercises.judge(exercise.id, answer)
        assert report.passed, (answer, report)


@each
def test_wrong_answers_get_their_sentence(exercise):
    wrong = WRONG[exercise.id]
    assert len(wrong) >= 4
    earned = set()
    for answer, fragment in wrong:
        report = exercises.judge(exercise.id, answer)
        assert report.status in ("wrong", "broken"), (answer, report)
        assert fragment in report.sentence, (answer, fragment, report)
        earned.add(report.sentence)
    missing = {mistake.says for mistake in exercise.mistakes} - earned
    assert not missing, "no answer in tests/answers makes these mistakes"


@each
@pytest.mark.parametrize("seed", range(3))
def test_every_mistake_is_told_apart(exercise, seed):
    for mistake in exercise.mistakes:
        report = _judge.report(exercise, mistake.answer, seed)
        assert report.status == "wrong" and report.sentence == mistake.says, report


@each
def test_hints_do_not_hold_the_solution(exercise):
    def bare(text):
        return re.sub(r"[\s`]", "", text)

    code = [bare(line.partition("#")[0]) for line in exercise.source().splitlines()[1:]]
    told = [*exercise.hints]
    for text in told:
        for line in code:
            body = line.removeprefix("return")
            assert len(body) < 9 or body not in bare(text), (body, text)
    if exercise.kind == "number":
        value = float(exercise.right_answer())
        for text in told:
            for number in re.findall(r"-?\d+(?:\.\d+)?", text):
                assert float(number) != pytest.approx(value, rel=0.01), text


@each
def test_right_answers_pass_whatever_the_seed(exercise):
    """The rate of false alarms of a comparison of means is measured in `test_exercises.py`."""
    for seed in range(1, 6):
        report = _judge.report(exercise, exercise.right_answer(), seed)
        assert report.passed, (seed, report)


def test_numbers_and_titles_are_taken_once():
    assert not [title for title, n in Counter(e.title for e in ALL).items() if n > 1]
