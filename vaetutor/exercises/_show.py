"""How verdicts, hints and solutions look: a small box in a notebook, plain text elsewhere."""

from __future__ import annotations

import re
import sys
import textwrap
from html import escape

from vaetutor.exercises._declare import Exercise
from vaetutor.exercises._judge import Report

# Sign, words and colour of each verdict; the colours keep 3 to 1 on white and on near black.
_VERDICTS = {
    "right": ("✓", "right", "#029e73"),
    "wrong": ("✗", "not yet", "#d55e00"),
    "broken": ("✗", "it did not run to its end", "#d55e00"),
    "untouched": ("…", "not attempted yet", "#767676"),
}
_BOX = (
    "border: 1px solid {0}; border-left-width: 0.4em; border-radius: 0.3em; "
    "padding: 0.4em 0.8em; margin: 0.4em 0; max-width: 46em; overflow-x: auto"
)


def _in_notebook() -> bool:
    # Whoever runs inside IPython has it loaded; nobody else needs it installed.
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def show(plain: str, html: str) -> None:
    """Display in a notebook, print elsewhere."""
    if _in_notebook():
        from IPython.display import display

        display({"text/plain": plain, "text/html": html}, raw=True)
    else:
        print(plain)


def _fill(text: str) -> str:
    return "\n".join(textwrap.fill(line, 78) for line in text.splitlines())


def _prose(text: str) -> str:
    """Plain text as HTML, with `code` between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _paragraphs(*texts: str) -> str:
    return "".join(f'<p style="margin: 0.3em 0">{text}</p>' for text in texts if text)


def verdict(report: Report) -> None:
    """Show what a check has found."""
    sign, words, colour = _VERDICTS[report.status]
    head = f"Exercise {report.id}: {words}."
    lines = [f"{sign} {head} {report.sentence}", report.detail]
    if report.printed:
        lines += ["It printed:", report.printed]
    plain = "\n".join(_fill(line) for line in lines if line)
    shown = _paragraphs(
        f'<span aria-hidden="true">{sign}</span> <strong>{head}</strong> '
        + _prose(report.sentence),
        _prose(report.detail),
    )
    if report.printed:
        shown += _paragraphs("It printed:") + f"<pre>{escape(report.printed)}</pre>"
    style = _BOX.format(colour)
    html = f'<div class="vaetutor-exercise" role="status" style="{style}">{shown}</div>'
    show(plain, html)


def hint(exercise: Exercise, stage: int) -> None:
    """Show a hint; in a notebook the ones after it are folded inside."""
    count = len(exercise.hints)
    heads = [f"Hint {i + 1} of {count}" for i in range(count)]
    plain = _fill(f"Exercise {exercise.id}. {heads[stage]}: {exercise.hints[stage]}")
    html = ""
    for head, text in reversed([*zip(heads, exercise.hints, strict=True)][stage:]):
        html = _folded(head, _paragraphs(_prose(text)) + html)
    show(plain, html)


def solution(exercise: Exercise, report: Report) -> None:
    """Show the code of a solution, and what its check says about it."""
    head = f"Solution of exercise {exercise.id}"
    proof = f"Its check says: {_VERDICTS[report.status][1]}. {report.detail}"
    code = exercise.source()
    plain = "\n\n".join([f"{head}:", code, _fill(exercise.lesson), _fill(proof)])
    html = _folded(head, _code(code) + _paragraphs(_prose(exercise.lesson), _prose(proof)))
    show(plain, html)


def _folded(head: str, body: str) -> str:
    return (
        '<details class="vaetutor-exercise" style="margin: 0.3em 0; max-width: 46em">'
        f"<summary><strong>{head}</strong></summary>{body}</details>"
    )


def _code(code: str) -> str:
    """Highlighted by classes that notebooks and the book have colours for, in both themes."""
    from pygments import highlight  # comes with IPython, and this is for notebooks only
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return highlight(code, PythonLexer(), HtmlFormatter(cssclass="highlight"))
