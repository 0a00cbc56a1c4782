"""Checks of what comes in at the doors of the package.

Torch has a process-wide switch for its own argument checks, and importing a flow library or
compiling a model turns it off. So the distributions made here are told explicitly whether to
check, and the answer is :func:`enabled`. Checks read values, and on a GPU every read waits for the
device: :func:`vaetutor.fit` therefore checks the whole data set once and then trains inside
:func:`disabled`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_enabled = True


def enabled() -> bool:
    """Whether values (not only shapes) are checked now."""
    return _enabled


@contextmanager
def disabled() -> Iterator[None]:
    """Trust the values inside the block; shapes and counts are still checked."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def count(name: str, value: int, least: int = 1) -> int:
    """Return `value` if it is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, found {value!r}")
    return value


def positive_number(name: str, value: float) -> float:
    """Return `value` if it is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < torch.inf:
        raise ValueError(f"{name} must be a finite number above 0, found {value!r}")
    return float(value)


def batch(name: str, x: Tensor) -> None:
    """Raise unless `x` is a non-empty batch of finite values."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, found {type(x).__name__}")
    if x.ndim < 1 or x.numel() == 0:
        raise ValueError(
            f"{name} must hold at least one example, found a tensor of shape {tuple(x.shape)}"
        )
    finite(name, x)


def rows(x: Tensor, z: Tensor, shared: bool = False) -> None:
    """Raise unless z (S, B, D) has as many rows as x, or one for all of them if `shared`."""
    if z.shape[1] != len(x) and not (shared and z.shape[1] == 1):
        raise ValueError(
            f"x has {len(x)} rows but the draws z and the distribution q are for {z.shape[1]}: "
            "give one distribution and one row for each example"
        )


def finite(name: str, x: Tensor) -> None:
    """Raise if `x` holds a NaN or an infinity (when values are checked at all)."""
    if _enabled and x.is_floating_point() and not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(
            f"{name} holds {bad} values that are NaN or infinite, expected finite numbers: "
            "find where they enter before the model sees them"
        )
