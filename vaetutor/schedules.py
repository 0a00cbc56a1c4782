r"""Schedules: numbers that change while a model trains.

A schedule is a function of the epoch reached so far, a real number from 0 up. Training asks it in
every step. It fits wherever :class:`~vaetutor.TrainConfig` takes one: for the weight of the KL,
:math:`\beta(t)`, or for the step size (chapter: rate, distortion and collapse).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vaetutor import _checks

Schedule = Callable[[float], float]
"""A function of the number of epochs done, which is a real number from 0 up."""


@dataclass(frozen=True)
class Warmup:
    r"""A weight of the KL that grows linearly over the first epochs and then stays.

    .. math:: \beta(t) = a + (b - a)\, \min(t / T,\ 1).

    Called with the number of epochs t done, a real number from 0 up; use it as
    ``TrainConfig(beta=Warmup(10))``.

    Raises:
        ValueError: for a length that is not above 0, or a weight below 0 or not finite.

    Source: the idea, with another curve: Bowman et al. (2016), arXiv:1511.06349; linear: Sønderby
    et al. (2016), arXiv:1602.02282.

    >>> [Warmup(10)(t) for t in (0, 2.5, 10, 12)]
    [0.0, 0.25, 1.0, 1.0]
    """

    epochs: float
    """Length T of the ramp."""
    start: float = 0.0
    """Weight a at the beginning."""
    end: float = 1.0
    """Weight b from T on."""

    def __post_init__(self) -> None:
        _checks.positive_number("epochs", self.epochs)
        _checks.weight("start", self.start)
        _checks.weight("end", self.end)

    def __call__(self, epoch: float) -> float:
        return self.start + (self.end - self.start) * min(epoch / self.epochs, 1.0)


@dataclass(frozen=True)
class Cyclic:
    r"""A weight of the KL that climbs from zero several times.

    .. math:: \beta(t) = b\, \min(\tau / r,\ 1), \qquad
              \tau = \operatorname{frac}(t\, C / T) \quad \text{for } t < T,

    and b from then on. Each of the C cycles spends the fraction r on its climb and the rest at b.

    Called with the number of epochs t done, a real number from 0 up; use it as
    ``TrainConfig(beta=Cyclic(20))``.

    Raises:
        ValueError: for a length that is not above 0, fewer than one cycle, a ramp outside (0, 1],
            or a weight below 0 or not finite.

    Source: Fu et al. (2019), arXiv:1903.10145.

    >>> [Cyclic(20)(t) for t in (0, 1.25, 2.5, 4, 5, 20)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]
    """

    epochs: float
    """Length T of all cycles together."""
    cycles: int = 4
    """Their number C."""
    ramp: float = 0.5
    """Fraction r of each cycle in which the weight climbs."""
    end: float = 1.0
    """Weight b at the top."""

    def __post_init__(self) -> None:
        _checks.positive_number("epochs", self.epochs)
        _checks.count("cycles", self.cycles)
        if _checks.positive_number("ramp", self.ramp) > 1:
            raise ValueError(f"ramp must be at most 1, a fraction of a cycle, found {self.ramp}")
        _checks.weight("end", self.end)

    def __call__(self, epoch: float) -> float:
        if epoch >= self.epochs:
            return self.end
        return self.end * min((epoch * self.cycles / self.epochs) % 1 / self.ramp, 1.0)
