"""The engine of the exercises: whatever an answer does, the session stays as it was."""

import dataclasses
import io
import random
import re
import signal
import sys
import threading
import time
import warnings
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy import stats

from vaetutor import exercises
from vaetutor.exercises import _declare, _guard, _judge, _show
from vaetutor.exercises._attempt import ALPHA, Attempt, Wrong


def solution(x):
    return (2 * x).sum(-1)


def examine(attempt):
    x = torch.randn(3, 4, generator=attempt.generator).requires_grad_()
    value = attempt(x)
    attempt.close(value, 2 * x.sum(-1), "twice the sum", draws_allowed=True)
    value = value.mean(0) if value.ndim == 2 else value
    attempt.close(attempt.gradient(value, [x])[0], torch.full((3, 4), 2.0), "its gradient")


SUM = _declare.Exercise(
    "9.1",
    title="Twice the sum",
    page="none",
    kind="function",
    difficulty="easy",
    minutes=1,
    solution=solution,
    judge=examine,
    mistakes=(
        _declare.Mistake("This is the mean.", lambda x: 2 * x.mean(-1)),
        _declare.Mistake("The two is missing.", lambda x: x.sum(-1)),
        _declare.Mistake("The batch is summed.", lambda x: 2 * x.sum()),
    ),
    hints=("Add.", "Double."),
    lesson="Sums double.",
)


@pytest.fixture
def declared():
    """Put exercises into the register for the length of a test."""
    before = dict(_declare.REGISTER)

    def put(exercise=SUM, **changes):
        exercise = dataclasses.replace(exercise, **changes)
        _declare.REGISTER.pop(exercise.id, None)
        _declare.register(exercise)
        _judge._of_mistake.cache_clear()
        return exercise

    yield put
    _declare.REGISTER.clear()
    _declare.REGISTER.update(before)
    _judge._of_mistake.cache_clear()


@pytest.fixture
def judged(declared):
    """A report on an answer to the exercise above, with nothing left changed by it."""
    declared(seconds=1)

    def judge(answer, **changes):
        if changes:
            declared(**{"seconds": 1, **changes})
        settings, states = _guard.settings(), _guard.random_states()
        handler = signal.getsignal(signal.SIGALRM)
        report = exercises.judge("9.1", answer)
        assert _guard.settings() == settings and _guard.random_states() == states
        assert signal.getsignal(signal.SIGALRM) is handler
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        return report

    return judge


# Right, wrong, untouched


def test_right_answer(judged):
    report = judged(lambda x: x.sum(-1) + x.sum(-1))
    assert report.passed and report.sentence == "Sums double."
    assert report.detail == "Checked: twice the sum; its gradient."


@pytest.mark.parametrize(
    "right",
    [
        lambda x, scale=2.0: scale * x.sum(1),
        lambda x: 2 * x.float().sum(-1),
        lambda x: torch.stack([2 * row.sum() for row in x]),
        lambda x: [2 * row.sum() for row in x],
        lambda x: [[2 * row.sum() for row in x] for _ in range(3)],
        lambda x: torch.stack([2 * x.sum(-1)] * 5),
        lambda *args: 2 * args[0].sum(-1),
    ],
)
def test_right_answers_in_other_forms(judged, right):
    assert judged(right).passed


@pytest.mark.parametrize(
    ("answer", "sentence", "detail"),
    [
        (lambda x: x.mean(-1) * 2, "This is the mean.", "found .* expected"),
        (lambda x: x @ torch.ones(4), "The two is missing.", "found .* expected"),
        (lambda x: 2 * x.sum(), "The batch is summed.", r"shape \(\), expected \(3,\)"),
    ],
)
def test_mistakes_get_their_sentence(judged, answer, sentence, detail):
    report = judged(answer)
    assert (report.status, report.sentence) == ("wrong", sentence)
    assert re.search(detail, report.detail)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda x: 3 * x.sum(-1), r"Twice the sum: found \S+ in entry \[\d\], expected \S+\.$"),
        (lambda x: 2 * x.sum(-1, keepdim=True), r"found the shape \(3, 1\), expected \(3,\)"),
        (lambda x: 2 * x.sum(-1) * torch.nan, "Twice the sum: found nan"),
        (lambda x: 2 * x.sum(-1) / 0, r"found -?inf"),
        (lambda x: 2 * x.detach().sum(-1), r"Its gradient: found 0 in entry"),
        (lambda x: "2", "a tensor or a number is expected, found str '2'"),
        (lambda x: True, "a tensor or a number is expected, found bool True"),
        (lambda x: [], "a tensor or a number is expected, found list"),
        (lambda x: ["a"], "a tensor or a number is expected, found list"),
        (lambda x: 2j * x.sum(-1), "a tensor or a number is expected"),
        (lambda x: td.Normal(0.0, 1.0), "a tensor or a number is expected, found Normal"),
        (lambda x: print(x), "It returns None. Is the `return` missing?"),
        (lambda: 1.0, r"called with 1 arguments, \(x\), but takes \(\)"),
        (lambda x, y: 1.0, r"but takes \(x, y\)"),
        (3.0, "A function is asked for, found float"),
        (torch.ones(3), "A function is asked for, found Tensor"),
        ("f", "A function is asked for, found str"),
    ],
)
def test_wrong_answers_get_the_property(judged, answer, sentence):
    report = judged(answer)
    assert report.status == "wrong" and re.search(sentence, report.sentence), report


def untouched(x):
    """With a docstring."""
    ...


def half_filled(x):
    total = ...
    return 2 * total


def half_filled_call(x):
    return torch.exp(...)


@pytest.mark.parametrize(
    "answer",
    [..., untouched, lambda x: ..., half_filled, half_filled_call, (1, ...), lambda x: (x, ...)],
)
def test_stubs_are_not_attempts(judged, answer):
    assert judged(answer).status == "untouched"


def test_an_ellipsis_as_index_is_no_stub(judged):
    assert judged(lambda x: 2 * x[..., :].sum(-1)).passed


# What answers may do to a session


def test_raising(judged):
    def answer(x):
        return x.sum(-1) / x.nothing

    report = judged(answer)
    assert report.status == "broken"
    assert report.sentence == (
        "It raised AttributeError: 'Tensor' object has no attribute 'nothing'. "
        "In the line `return x.sum(-1) / x.nothing`."
    )


@pytest.mark.parametrize("error", [SystemExit(3), KeyError("k"), AssertionError(), ValueError()])
def test_raising_other_things(judged, error):
    def answer(x):
        raise error

    report = judged(answer)
    assert report.status == "broken" and type(error).__name__ in report.sentence


def test_recursion(judged):
    def answer(x):
        return answer(x)

    assert "RecursionError" in judged(answer).sentence


def test_an_interrupt_by_the_reader_passes(judged):
    def answer(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(answer)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def stubborn(x):
    while True:
        try:
            time.sleep(1e6)
        except Exception:
            pass


def more_stubborn(x):
    start = time.monotonic()
    while time.monotonic() < start + 1.5:
        try:
            while True:
                pass
        except BaseException:
            pass
    while True:
        pass


@pytest.mark.parametrize("answer", [stubborn, more_stubborn])
def test_looping(judged, answer):
    start = time.monotonic()
    report = judged(answer)
    assert report.status == "broken" and "stopped after 1 seconds" in report.sentence
    assert time.monotonic() - start < 5


def test_looping_in_another_thread(declared):
    def answer(x):
        while True:
            pass

    declared(seconds=0.5)
    found = []
    thread = threading.Thread(target=lambda: found.append(exercises.judge("9.1", answer)))
    thread.start()
    thread.join(10)
    assert found and "stopped after 0.5 seconds" in found[0].sentence


def test_an_outer_alarm_handler_is_kept(judged):
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        assert judged(solution).passed
    finally:
        signal.signal(signal.SIGALRM, before)


def test_printing_a_little(judged, capsys):
    def answer(x):
        print("x is", len(x))
        print("careful", file=sys.stderr)
        warnings.warn("about this", UserWarning, stacklevel=1)
        return 2 * x.sum(-1)

    report = judged(answer)
    assert report.passed
    assert report.printed == "x is 3\ncareful\nUserWarning: about this"
    assert capsys.readouterr() == ("", "")


def test_printing_a_flood(judged):
    def answer(x):
        for _ in range(10_000):
            print("x" * 99)
        return 2 * x.sum(-1)

    report = judged(answer)
    assert report.passed and len(report.printed) < 1100
    assert report.printed.endswith(f"[and {1_000_000 - _guard.PRINT_LIMIT} more characters]")


def test_mutating(judged):
    def in_place(x):
        with torch.no_grad():
            x.mul_(2)
        return x.sum(-1)

    def through_data(x):
        x.data *= 2
        return x.sum(-1)

    for answer in (in_place, through_data):
        assert "changes its argument `x` in place" in judged(answer).sentence


def seed_torch(x):
    torch.manual_seed(0)
    return 2 * x.sum(-1)


def seed_numpy(x):
    np.random.seed(0)  # noqa: NPY002
    return 2 * x.sum(-1)


def seed_python(x):
    random.seed(0)
    return 2 * x.sum(-1)


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("answer", [seed_torch, seed_numpy, seed_python])
def test_seeding(judged, answer, draws):
    assert "It seeds the global random numbers" in judged(answer, draws=draws).sentence


@pytest.mark.parametrize(
    "draw",
    [lambda: torch.randn(2), lambda: np.random.rand(), random.random],  # noqa: NPY002
)
def test_drawing(judged, draw):
    def answer(x):
        draw()
        return 2 * x.sum(-1)

    assert "draws random numbers, but all" in judged(answer).sentence
    assert judged(answer, draws=True).passed


def change_dtype(x):
    torch.set_default_dtype(torch.float16)
    return 2 * x.sum(-1)


def change_grad(x):
    torch.set_grad_enabled(False)
    return 2 * x.sum(-1)


def change_checks(x):
    td.Distribution.set_default_validate_args(not td.Distribution._validate_args)
    return 2 * x.sum(-1)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (change_dtype, "the default dtype from torch.float64 to torch.float16"),
        (change_grad, "whether gradients are recorded from True to False"),
        (change_checks, "whether distributions check their arguments"),
    ],
)
def test_changing_settings(judged, answer, what):
    assert f"It changes {what}" in judged(answer).sentence


def test_gradients_are_recorded_whoever_asks(judged):
    with torch.no_grad():
        assert judged(lambda x: 2 * x.sum(-1)).passed


def test_repeats_exactly(declared):
    declared(draws=True)
    noisy = [exercises.judge("9.1", lambda x: 2 * x.sum(-1) + torch.rand(3)) for _ in range(2)]
    assert noisy[0] == noisy[1] and not noisy[0].passed


# Numbers and choices


def number_exercise(expected, **options):
    def judge(attempt):
        attempt.close(attempt.answer, expected, "the number", rtol=0.01, **options)

    return {
        "kind": "number",
        "judge": judge,
        "solution": lambda: expected,
        "mistakes": tuple(_declare.Mistake(f"It is {v}.", v) for v in (1.0, -2.0, 3.0)),
    }


def test_numbers(judged):
    options = number_exercise(2.0, reveal=False)
    for right in (2, 2.01, torch.tensor(2.0), np.float32(2), np.array(2.0)):
        assert judged(right, **options).passed
    assert judged(-2.0, **options).sentence == "It is -2.0."
    assert judged(5.0, **options).sentence == "The number: 5 is too large."
    assert judged(float("nan"), **options).sentence == "The number: found nan."
    assert "A number is asked for, found a function" in judged(lambda: 2.0, **options).sentence
    assert judged(..., **options).status == "untouched"


def test_infinite_numbers(judged):
    options = number_exercise(float("inf"))
    assert judged(float("inf"), **options).passed
    for wrong in (-float("inf"), 7.0, float("nan"), np.float32(7)):
        assert judged(wrong, **options).status == "wrong"


def test_choices(judged):
    options = {
        "kind": "choice",
        "judge": lambda attempt: attempt.choose("b", ["a", "b", "c", "d"]),
        "solution": lambda: "b",
        "mistakes": tuple(_declare.Mistake(f"Not {v}.", v) for v in "acd"),
    }
    assert judged(" B ", **options).passed
    assert judged("C", **options).sentence == "Not c."
    assert "one of the letters a, b, c, d" in judged("e", **options).sentence
    assert "one of the letters" in judged(2, **options).sentence


def test_distributions(judged):
    options = {
        "kind": "distribution",
        "judge": lambda attempt: attempt.close(attempt.answer.mean, 1.0, "the mean"),
        "solution": lambda: td.Normal(1.0, 1.0),
    }
    assert judged(td.Exponential(1.0), **options).passed
    assert "A distribution is asked for, found float" in judged(1.0, **options).sentence


# The comparison of means


def test_same_mean_has_the_stated_false_alarms():
    """z of many right answers: their tail is the normal one, so ALPHA is what it says."""
    generator = torch.Generator().manual_seed(0)
    largest = []
    for _ in range(4000):
        attempt = Attempt(None)
        samples = torch.randn(1000, 5, generator=generator, dtype=torch.float64).square()
        attempt.same_mean(samples, torch.ones(5), "squares")  # no alarm, not once
        [seen] = attempt.observations
        largest.append(((seen.found - 1) / seen.error).abs().max().item())
    # Largest of five absolute normals, at three levels. Squares are skewed, a hard case.
    for level in (0.1, 0.01, 0.003):
        limit = stats.norm.isf((1 - (1 - level) ** 0.2) / 2)
        alarms = sum(z > limit for z in largest)
        assert alarms < 4000 * level + 5 * (4000 * level) ** 0.5 + 4000 * level, (level, alarms)


def test_same_mean_sees_a_bias():
    samples = torch.randn(4000, 3, dtype=torch.float64) + torch.tensor([0.0, 0.2, 0.0])
    with pytest.raises(Wrong, match=r"mean of it: found 0\.\d+ ± 0\.02 in entry \[1\]"):
        Attempt(None).same_mean(samples, torch.zeros(3), "it")


def test_same_mean_without_spread_is_an_equality():
    Attempt(None).same_mean(torch.ones(1000), 1.0, "it")
    with pytest.raises(Wrong):
        Attempt(None).same_mean(torch.ones(1000), 1.001, "it")


def test_same_mean_wants_many_samples():
    with pytest.raises(Wrong, match="shape"):
        Attempt(None).same_mean(torch.ones(999), 1.0, "it")


def test_means_of_one_exercise_are_limited():
    attempt = Attempt(None)
    with pytest.raises(AssertionError, match="too many"):
        for _ in range(20):
            attempt.same_mean(torch.ones(1000), 1.0, "it")
    assert attempt.means * ALPHA < 1e-4


def compares_means(exercise):
    outcome = _judge._examine(exercise, exercise.right_answer(), 0)
    return exercise.draws or any(each.error is not None for each in outcome.observations)


STATISTICAL = [exercise for exercise in _declare.ordered() if compares_means(exercise)]


@pytest.mark.parametrize("exercise", STATISTICAL, ids=lambda exercise: exercise.id)
def test_right_answers_pass_at_many_seeds(exercise):
    for seed in range(5 if exercise.seconds > 20 else 100):
        report = _judge.report(exercise, exercise.right_answer(), seed)
        assert report.passed, (seed, report)


# The register


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"id": "9"}, "must have an id such as"),
        ({"id": "9.0"}, "must have an id such as"),
        ({"title": " "}, "has no title"),
        ({"lesson": ""}, "has no lesson"),
        ({"kind": "essay"}, "unknown kind, 'essay'"),
        ({"difficulty": "fair"}, "unknown difficulty, 'fair'"),
        ({"minutes": 0}, "must take some time"),
        ({"hints": ("one",)}, "two or three hints"),
        ({"hints": ("one", "")}, "two or three hints"),
        ({"mistakes": SUM.mistakes[:2]}, "at least three mistakes"),
        ({"mistakes": SUM.mistakes[:2] + SUM.mistakes[:2]}, "at least three mistakes"),
        ({"origin": "somewhere"}, "unknown origin"),
    ],
)
def test_an_incomplete_declaration_is_refused(declared, changes, problem):
    with pytest.raises(ValueError, match=problem):
        declared(**changes)


def test_an_id_is_taken_once(declared):
    declared()
    with pytest.raises(ValueError, match=r"exercise 9\.1 exists already"):
        _declare.register(SUM)


def test_the_register_is_complete(declared):
    _declare.complete()
    declared(id="9.2")
    with pytest.raises(ValueError, match=r"chapter 9 are numbered \[2\]"):
        _declare.complete()
    declared()
    _declare.complete()
    declared(id="9.3", origin=exercises.ORIGINS[0])
    with pytest.raises(ValueError, match="each origin must have one exercise"):
        _declare.complete()


@pytest.mark.parametrize("call", [exercises.hint, exercises.solution])
def test_an_unknown_id_is_refused(call):
    with pytest.raises(ValueError, match="id must be the number of an exercise, such as '1.1', f"):
        call("7.7")
    with pytest.raises(ValueError, match=r"there are 1\.1, 1\.2"):
        exercises.check(1.1, ...)


# What is shown


def printed(call, *args):
    with redirect_stdout(io.StringIO()) as out:
        call(*args)
    return out.getvalue()


def test_texts_of_a_terminal(declared):
    declared()
    text = printed(exercises.check, "9.1", lambda x: 2 * x.mean(-1))
    assert text.startswith("✗ Exercise 9.1: not yet. This is the mean.\nTwice the sum: found ")
    text = printed(exercises.check, "9.1", solution)
    assert text.startswith("✓ Exercise 9.1: right. Sums double.\nChecked: ")
    text = printed(exercises.check, "9.1", ...)
    assert text.startswith("… Exercise 9.1: not attempted yet.")
    assert max(map(len, text.splitlines())) <= 78


def test_hints_come_one_by_one(declared):
    declared()
    exercises._hints.pop("9.1", None)
    texts = [printed(exercises.hint, "9.1") for _ in range(3)]
    assert texts[0] == "Exercise 9.1. Hint 1 of 2: Add.\n"
    assert texts[1] == texts[2] == "Exercise 9.1. Hint 2 of 2: Double.\n"


def test_solution_comes_with_its_proof(declared):
    declared()
    text = printed(exercises.solution, "9.1")
    assert "def solution(x):\n    return (2 * x).sum(-1)" in text
    assert "Its check says: right. Checked: twice the sum; its gradient." in text
    declared(solution=lambda x: x)
    with pytest.raises(RuntimeError, match="solution of exercise 9.1 fails its check"):
        exercises.solution("9.1")


def test_progress(declared):
    declared()
    exercises._attempts.clear(), exercises._passed.clear()
    assert exercises.progress().empty
    printed(exercises.check, "9.1", ...)
    assert exercises.progress().empty
    printed(exercises.check, "9.1", lambda x: x)
    assert exercises.progress().loc["9.1"].tolist() == ["Twice the sum", 1, False]
    printed(exercises.check, "9.1", solution)
    printed(exercises.check, "9.1", lambda x: x)
    assert exercises.progress().loc["9.1"].tolist() == ["Twice the sum", 3, True]


def test_boxes_of_a_notebook(declared, monkeypatch):
    shown = []
    monkeypatch.setattr(_show, "show", lambda plain, html: shown.append(html))
    declared()
    exercises.check("9.1", lambda x: print("<b>") or x.a)
    exercises._hints.pop("9.1", None)
    exercises.hint("9.1")
    exercises.solution("9.1")
    box, hints, code = shown
    assert 'role="status"' in box and "Exercise 9.1: it did not run to its end." in box
    assert "<pre>&lt;b&gt;</pre>" in box and '<span aria-hidden="true">✗</span>' in box
    # Further hints are folded inside the first.
    assert hints.count("<details") == hints.count("</details>") == 2
    assert hints.index("Add.") < hints.index("Hint 2 of 2") < hints.index("Double.")
    assert '<div class="highlight">' in code and "<summary><strong>Solution" in code
    assert not any(re.search(r"<script|\bon\w+=|https?:", html) for html in shown)


def test_table_has_all_exercises():
    table = exercises.table()
    assert list(table.index) == [exercise.id for exercise in _declare.ordered()]
    assert table.minutes.gt(0).all()
