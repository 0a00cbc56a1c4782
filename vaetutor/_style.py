"""The one style of all figures: colours that stay apart, and text at reading size."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

import matplotlib.pyplot as plt
import seaborn as sns
from cycler import cycler

# seaborn's "colorblind", its pale colours made darker: contrast of at least 3 to 1 on white.
COLOURS = [
    "#0173b2", "#bf7b04", "#029e73", "#d55e00", "#be70af",
    "#8c5a2b", "#882255", "#767676", "#857d00", "#4692bd",
]  # fmt: skip
BLUE, ORANGE, GREEN = COLOURS[0], COLOURS[3], COLOURS[2]
INK, GREY = "#222222", "#767676"

RC: dict[str, Any] = {
    **sns.axes_style("ticks"),
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.unicode_minus": True,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # the one that comes with matplotlib
    "font.size": 10,
    "legend.fontsize": 10,
    "lines.linewidth": 1.6,
    "mathtext.fontset": "dejavusans",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "vaetutor",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 9,
    "ytick.color": INK,
    "ytick.labelsize": 9,
}

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def style() -> AbstractContextManager[None]:
    """The book's style, whatever matplotlib was set to: ``with plots.style(): ...``."""
    return plt.style.context(["default", RC])


def styled(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a drawing function work in the style, wherever it is called."""

    @functools.wraps(draw)
    def in_style(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with style():
            return draw(*args, **kwargs)

    return in_style
