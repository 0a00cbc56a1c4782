"""The prompts stand where the register says, and the book would notice if they did not."""

import sys
from pathlib import Path

import pytest

from vaetutor.exercises import _declare

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

each = pytest.mark.parametrize("exercise", _declare.ordered(), ids=lambda exercise: exercise.id)


@pytest.fixture(scope="module")
def directive():
    return pytest.importorskip("exercise", reason="the book's extensions need the extra `book`")


def page(exercise):
    return (ROOT / "book" / f"{exercise.page}.md").read_text()


@each
def test_page_holds_the_exercise(directive, exercise):
    assert not directive.problems(exercise, page(exercise))


@each
def test_what_is_missing_is_noticed(directive, exercise):
    text = page(exercise)
    edits = {
        "the label": (f"({directive.label(exercise)})=", "(elsewhere)="),
        "the heading": (f": {exercise.title}\n", ": Another title\n"),
        "the facts": (f"{{exercise-facts}} {exercise.id}\n", "{exercise-facts} 0.0\n"),
        "the check": (f'exercises.check("{exercise.id}"', 'exercises.check("0.0"'),
        "the hint": (f'exercises.hint("{exercise.id}"', "print("),
        "the solution": (f'exercises.solution("{exercise.id}"', "print("),
    }
    for what, (old, new) in edits.items():
        assert directive.problems(exercise, text.replace(old, new)) == [what]


def test_prompts_come_in_the_order_of_their_numbers():
    for name in {exercise.page for exercise in _declare.ordered()}:
        text = (ROOT / "book" / f"{name}.md").read_text()
        mine = [e for e in _declare.ordered() if e.page == name]
        places = [text.index(f"### Exercise {e.id}:") for e in mine]
        assert places == sorted(places)
        # Model answers belong to the questions of the first text, and each has one.
        asked = sum(bool(e.origin) for e in mine)
        assert text.count("```{admonition} A model answer\n:class: dropdown\n") == asked


def test_pages_follow_the_numbers():
    pages = [exercise.page for exercise in _declare.ordered()]
    assert pages == sorted(pages)
