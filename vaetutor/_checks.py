"""Checks of what comes in at the doors of the package.

Torch has a process-wide switch for its own argument checks, and importing a flow library or
compiling a model turns it off. So the distributions made here are told explicitly whether to
check, and the answer is :func:`enabled`. Checks read values, and on a GPU every read waits for the
device: :func:`vaetutor.fit` therefore checks the whole data set once and then trains inside
:func:`disabled`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from typing import SupportsIndex

import torch
import torch.distributions as td
from torch import Tensor

_enabled = ContextVar("enabled", default=True)  # of this thread, not of the whole process


def enabled() -> bool:
    """Whether values (not only shapes) are checked now."""
    return _enabled.get()


@contextmanager
def disabled() -> Iterator[None]:
    """Trust the values inside the block; shapes and counts are still checked."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


def count(name: str, value: SupportsIndex, least: int = 1) -> int:
    """Return `value` if it is an integer of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, found {value!r}")
    return int(value)


def seed(value: int) -> int:
    """Return `value` if it is a seed that torch takes: an integer from 0 to 2^63 - 1."""
    if count("seed", value, least=0) >= 2**63:
        raise ValueError(f"seed must be an integer below 2^63, found {value!r}")
    return int(value)


def positive_number(name: str, value: float) -> float:
    """Return `value` if it is a finite number above zero."""
    number = real_number(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, found {value!r}")
    return number


def weight(name: str, value: float) -> float:
    """Return `value` if it is a finite number of at least zero."""
    number = real_number(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, found {value!r}")
    return number


def real_number(value: object) -> float:
    """A real number as a float, NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floats
        return math.inf


def batch(name: str, x: Tensor) -> None:
    """Raise unless `x` is a non-empty batch of finite real values."""
    if not isinstance(x, Tensor):
        raise ValueError(
            f"{name} must be a torch.Tensor, found {type(x).__name__}: use torch.as_tensor"
        )
    if not x.is_floating_point():
        raise ValueError(f"{name} must hold floating-point values, found {x.dtype}: use x.float()")
    if x.ndim < 1 or x.numel() == 0:
        raise ValueError(
            f"{name} must hold at least one example, found a tensor of shape {tuple(x.shape)}: "
            "look at how it was selected"
        )
    finite(name, x)


def shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    """Raise unless `value` has exactly the expected shape."""
    if tuple(value.shape) != tuple(expected):
        raise ValueError(
            f"{name} must have shape {tuple(expected)}, found {tuple(value.shape)}: give one "
            "value for each draw and example, summed over the event"
        )


def event(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    """Raise unless `value` holds events of the expected shape; others would broadcast."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, found {type(value).__name__}")
    batch = value.ndim - len(expected)
    if batch < 0 or value.shape[batch:] != expected or value.numel() == 0:
        raise ValueError(
            f"{name} must have shape (..., {', '.join(map(str, expected))}) for this distribution "
            f"and hold at least one event, found {tuple(value.shape)}"
        )


def draws(x: Tensor, z: Tensor, shared: bool = False) -> None:
    """Raise unless z is (S, B, D) with as many rows as x, or one for all of them if `shared`."""
    if z.ndim != 3:
        raise ValueError(
            f"z must have shape (S, B, D), draws by examples by latent dimensions, found "
            f"{tuple(z.shape)}: add the missing axis with z.unsqueeze(0)"
        )
    if z.shape[1] != len(x) and not (shared and z.shape[1] == 1):
        raise ValueError(
            f"x has {len(x)} rows but the draws z and the distribution q are for {z.shape[1]}: "
            "give one distribution and one row for each example"
        )
    if x.device != z.device:
        raise ValueError(
            f"x and the draws z must be on one device, found {x.device} and {z.device}: move the "
            "data or the model with .to(...)"
        )


def one_for_each(name: str, q: object, n: int) -> None:
    """Raise unless `q` is a distribution with batch shape (n,), one row for each of n examples."""
    if not isinstance(q, td.Distribution) or q.batch_shape != (n,):
        found = tuple(q.batch_shape) if isinstance(q, td.Distribution) else type(q).__name__
        raise ValueError(
            f"{name} must give a distribution with batch shape ({n},), one for each example, "
            f"found {found}"
        )


def held(name: str, x: Tensor) -> None:
    """Raise if `x` has a shape and no values, as tensors on the meta device."""
    if x.is_meta:
        raise ValueError(f"{name} must hold values, found a tensor without any, on device meta")


def finite(name: str, x: Tensor) -> None:
    """Raise if `x` holds a NaN or an infinity (when values are checked at all)."""
    if not enabled() or not x.is_floating_point():
        return
    held(name, x)
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(
            f"{name} holds {bad} values that are NaN or infinite, expected finite numbers: "
            "find where they enter before the model sees them"
        )
