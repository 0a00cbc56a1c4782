"""The ledger of claims: what a page measured about a claim, and what follows from it.

The book grew from a text that makes claims. They are numbered in ``book/claims.yml``, and a
chapter that has tested one says so where it has the numbers::

    ledger.record(
        "12",
        "datapoints from which on an encoder is cheaper",
        break_even,
        verdict="holds with a condition",
        condition="there are more datapoints than that",
    )

The line is displayed on the page. The book collects all of them, in the build that computed them,
into the page "What was claimed and what we measured"; a claim that no page has tested fails that
build.
"""

from __future__ import annotations

import math
import sys
import textwrap
from numbers import Real
from typing import Any

from vaetutor import _checks

__all__ = ["MIME", "VERDICTS", "record"]

MIME = "application/vnd.vaetutor.claim+json"
"""Under this type the output of :func:`record` holds its data, beside the readable line."""

VERDICTS = ("holds", "holds with a condition", "fails here")
"""What can follow from a measurement."""


def record(
    claim: str,
    what: str,
    value: float,
    error: float | None = None,
    unit: str = "",
    *,
    verdict: str,
    condition: str = "",
) -> None:
    """Display what was measured about a claim, for the reader and for the book's ledger.

    In a notebook the output is a readable text, with the same as data under :data:`MIME`. Outside
    IPython nothing is displayed. Numbers are shown with two digits of the error, or with four
    digits if there is none.

    Args:
        claim: the number of the claim in ``book/claims.yml``, as a string.
        what: one short phrase that says what was measured.
        value: the measured number.
        error: its standard error, or a tolerance; None if the value is exact or to rounding.
        unit: of value and error, such as ``"nats"``; empty for a count or a ratio.
        verdict: one of :data:`VERDICTS`.
        condition: when the claim holds, or why it fails, in words. Required unless it holds.

    Raises:
        ValueError: if a text is empty, a number is not finite, the error is not above zero, the
            verdict is another, or its condition is missing.
    """
    for name, text in {"claim": claim, "what": what}.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must be a string that is not empty, found {text!r}")
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"value must be a finite number, found {value!r}: of a tensor, .item()")
    if error is not None:
        error = _checks.positive_number("error", error)
    if verdict not in VERDICTS:
        raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}, found {verdict!r}")
    if verdict != "holds" and not condition.strip():
        raise ValueError(
            f"condition must say in words when the claim holds, or why it fails, if the verdict "
            f"is {verdict!r}, found {condition!r}"
        )
    measured = _measured(float(value), error, unit)
    data = {
        "claim": claim,
        "what": what,
        "value": float(value),
        "error": error,
        "unit": unit,
        "measured": measured,
        "verdict": verdict,
        "condition": condition,
    }
    _display(f"Claim {claim}, {what}: {measured}", f"{verdict}: {condition}".strip(": "), data)


def _display(measured: str, verdict: str, data: dict[str, Any]) -> None:
    # Whoever runs inside IPython has it loaded; nobody else needs it installed.
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        from IPython.display import display

        lines = [textwrap.fill(text, 78, subsequent_indent="  ") for text in (measured, verdict)]
        display({"text/plain": "\n".join(lines), MIME: data}, raw=True)


def _measured(value: float, error: float | None, unit: str) -> str:
    """The number as it is shown everywhere.

    >>> _measured(12.3456, 0.0234, "nats")
    '12.346 ± 0.023 nats'
    >>> _measured(12345.6, 337.0, "")
    '12350 ± 340'
    >>> _measured(1.2341e-7, 2.34e-9, "nats")
    '(1.234 ± 0.023)e-07 nats'
    >>> _measured(3.14159, None, ""), _measured(200704.0, None, ""), _measured(2.2e-16, None, "")
    ('3.142', '200704', '2.2e-16')
    """
    size = max(abs(value), error or 0.0)
    if size and not 1e-3 <= size < 1e6:  # common power of ten, two digits for it as Python has
        power = int(f"{size:.3e}".split("e")[1])
        scale, suffix = 10.0**power, f"e{power:+03d}"
    else:
        scale, suffix = 1.0, ""
    if error is None:
        text = _rounded(value / scale, None) + suffix
    else:
        # Rounding first: 0.0996 is 0.10, with two decimals and not three.
        last = 1 - math.floor(math.log10(float(f"{error / scale:.1e}")))
        text = f"{_rounded(value / scale, last)} ± {_rounded(error / scale, last)}"
        text = f"({text}){suffix}" if suffix else text
    return f"{text} {unit}".rstrip()


def _rounded(value: float, decimals: int | None) -> str:
    """`value` with so many decimals, or with four significant digits and no idle zeros."""
    if decimals is None:
        if value.is_integer():
            return f"{value:.0f}"
        decimals = 3 - math.floor(math.log10(abs(value)))
        text = f"{round(value, decimals):.{max(decimals, 0)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{round(value, decimals) + 0.0:.{max(decimals, 0)}f}"  # no minus zero
