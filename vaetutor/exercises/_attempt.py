"""The examination of one answer: what a judge is handed, and the tools it judges with."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from vaetutor.exercises import _guard

ALPHA = 1e-5
"""Rate of false alarms of one comparison of means, all its entries together."""
MEANS_LIMIT = 9
"""Comparisons of means in one exercise, at most: its rate of false alarms is below 1e-4."""


class Untouched(Exception):
    """The answer still holds the ``...`` of its stub."""


class Wrong(Exception):
    """The answer has failed a property; the text says which."""


@dataclass
class Observation:
    """One comparison: what was found, and whether it was right."""

    what: str
    found: Tensor | None
    """None where there is nothing to compare with that of a mistake."""
    error: Tensor | None = None
    """Standard error of `found`, where it is a mean."""
    right: bool = True
    tolerance: float = 1e-4
    """Relative difference up to which another value counts as the same one."""


@dataclass
class Attempt:
    """One answer under examination.

    A judge calls the answer, ``attempt(x, z)``, and compares what it gives with what it should,
    by :meth:`close` or :meth:`same_mean`. The first comparison that fails ends the examination.
    Inputs should be float64, generic (no two entries alike, no symmetry) and come from
    :attr:`generator`; the right values come from a closed form, an exact model or an independent
    library. Begin with a case that most wrong answers fail, so that they can be told apart.
    """

    answer: Any
    """The answer as it was given."""
    names: Sequence[str] = ()
    """Names of the arguments, where it is a function."""
    draws: bool = False
    seed: int = 0
    generator: torch.Generator = field(init=False)
    """For the inputs of the cases."""
    observations: list[Observation] = field(default_factory=list)
    means: int = 0
    rough: bool = False
    """Whether the answer has given a value with fewer digits than float64."""

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    # Calling it

    def __call__(self, *args: Any) -> Any:  # noqa: ANN401
        """What the answer, a function, returns for `args`.

        An answer that changes its arguments or a global setting, that seeds the global random
        numbers, or that draws some though it is given all it needs, has failed.
        """
        self._bind(args)
        copies = [arg.detach().clone() if isinstance(arg, Tensor) else None for arg in args]
        settings, states = _guard.settings(), _guard.random_states()
        seed = torch.initial_seed()
        value = self.answer(*args)
        for name, arg, copy in zip(self.names, args, copies, strict=False):
            if copy is not None and not torch.equal(arg.detach().nan_to_num(), copy.nan_to_num()):
                self.fail(
                    f"It changes its argument `{name}` in place. Whoever calls it still needs the "
                    "old values: make a new tensor."
                )
        for setting, before in settings.items():
            if (after := _guard.settings()[setting]) != before:
                self.fail(
                    f"It changes {setting} from {before} to {after}, for everything that runs "
                    "after it. The old setting has been put back."
                )
        now = _guard.random_states()
        if now != states:
            suspect = not self.draws or now[1:] != states[1:]  # torch says by itself
            if torch.initial_seed() != seed or (suspect and self._seeds(args)):
                self.fail(
                    "It seeds the global random numbers, so that every call, and all that runs "
                    "after it, draws the same. The state has been put back: leave the seed to the "
                    "caller."
                )
            if not self.draws:
                self.fail("It draws random numbers, but all that it needs is in its arguments.")
        if value is None:
            self.fail("It returns None. Is the `return` missing?")
        if value is ... or (isinstance(value, tuple | list) and any(v is ... for v in value)):
            raise Untouched
        return stacked(value) if isinstance(value, list) else value

    def _bind(self, args: tuple[Any, ...]) -> None:
        try:
            signature = inspect.signature(self.answer)
        except (TypeError, ValueError):  # some builtins have none
            return
        try:
            signature.bind(*args)
        except TypeError:
            names = ", ".join(self.names[: len(args)])
            self.fail(
                f"It is called with {len(args)} arguments, ({names}), but takes {signature}. "
                "Keep the arguments of the prompt, in their order."
            )

    def _seeds(self, args: tuple[Any, ...]) -> bool:
        """Whether the random states after a call are the same from whatever they were before."""
        ends = []
        for start in (1_000_003, 1_000_033):
            _guard.shuffle_states(start)
            before = _guard.random_states()
            self.answer(*args)
            after = _guard.random_states()
            ends.append([a for a, b in zip(after, before, strict=True) if a != b])
        return any(a == b for a, b in zip(*ends, strict=False))

    # Judging it

    def fail(self, sentence: str) -> NoReturn:
        """End the examination: the answer is wrong, and `sentence` says in what."""
        raise Wrong(sentence)

    def require(self, condition: bool, sentence: str) -> None:
        """Fail with `sentence` unless `condition` holds."""
        if not condition:
            self.fail(sentence)

    def close(
        self,
        found: Any,  # noqa: ANN401
        expected: Tensor | float,
        what: str,
        rtol: float = 1e-5,
        atol: float = 1e-8,
        draws_allowed: bool = False,
        reveal: bool = True,
    ) -> None:
        """Compare a value with the right one.

        Args:
            found: tensor, array, number or nested list of numbers.
            expected: the right value; `found` must have its shape.
            what: a noun phrase for what is compared, such as "the gradient for the mean".
            rtol, atol: tolerance; once an answer has given float32 values, it is allowed a
                relative error of 1e-4.
            draws_allowed: `found` may have one axis more in front, over which the mean is taken.
            reveal: show the right value to a wrong answer. False where it is all that is asked.
        """
        right = torch.as_tensor(expected).detach().to("cpu", torch.float64)
        value = self._tensor(found, what)
        if draws_allowed and value.ndim and value.shape[1:] == right.shape:
            value = value.mean(0)
        if not right.ndim and value.numel() == 1:
            value = value.reshape(())
        if value.shape != right.shape:
            self._observe(Observation(what, value, right=False), _shapes(what, value, right))
        tolerance = (max(rtol, 1e-4) if self.rough else rtol) * right.abs()
        tolerance = tolerance + (max(atol, 1e-5) if self.rough else atol)
        near = right.isfinite() & ((value - right).abs() <= tolerance)
        wrong = ~near & ~(value == right)
        good = not bool(wrong.any())
        self._observe(
            Observation(what, value, right=good, tolerance=max(1e-4, rtol)),
            "" if good else _values(what, value, right, wrong, reveal),
        )

    def same_mean(self, samples: Any, expected: Tensor | float, what: str) -> None:  # noqa: ANN401
        """Compare the mean of independent samples, along the first axis, with its expectation.

        At least 1,000 of them. The rate of false alarms is 1e-5, all entries together,
        as far as the mean is normal: no samples with heavy tails.
        """
        right = torch.as_tensor(expected).detach().to("cpu", torch.float64)
        value = self._tensor(samples, what)
        assert self.means < MEANS_LIMIT, "too many comparisons of means for one exercise"
        self.means += 1
        if value.shape[1:] != right.shape or len(value) < 1000:
            shape = right.expand(1000, *right.shape)
            self._observe(Observation(what, value, right=False), _shapes(what, value, shape))
        mean, error = value.mean(0), value.std(0) / math.sqrt(len(value))
        limit = NormalDist().inv_cdf(1 - ALPHA / 2 / max(1, right.numel()))
        # Samples that are all alike have no error but rounding.
        wrong = ~((mean - right).abs() <= limit * error + 1e-9 * (1 + right.abs()))
        good = not bool(wrong.any())
        sentence = "" if good else _values(f"the mean of {what}", mean, right, wrong, True, error)
        self._observe(Observation(what, mean, error, good), sentence)

    def parts(self, value: Any, names: Sequence[str]) -> Sequence[Any]:  # noqa: ANN401
        """`value`, which must have a part for each name: as a tuple, a list, or a first axis."""
        sized = isinstance(value, tuple | list) or (
            isinstance(value, Tensor | np.ndarray) and value.ndim > 0
        )
        if not sized or len(value) != len(names):
            count = {2: "Two", 3: "Three"}[len(names)]
            self.fail(f"{count} values are asked for, in this order: {', '.join(names)}.")
        return value

    def gradient(
        self,
        value: Any,  # noqa: ANN401
        inputs: Sequence[Tensor],
    ) -> list[Tensor]:
        """Gradient of the sum of `value` for each of `inputs`; zero where there is none."""
        if isinstance(value, Tensor) and value.dtype != torch.float64:
            self.rough = True
        if not isinstance(value, Tensor) or not value.requires_grad:
            return [torch.zeros_like(each) for each in inputs]
        found = torch.autograd.grad(value.sum(), inputs, allow_unused=True, retain_graph=True)
        return [
            torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)
        ]

    def arrives(self, gradients: Sequence[Tensor], names: Sequence[str]) -> None:
        """Fail unless there is a gradient for each of `names`: told before values are compared."""
        cut = [name for name, each in zip(names, gradients, strict=True) if not bool(each.any())]
        self.require(
            not cut,
            f"No gradient arrives at {' and '.join(cut)}. Is something detached, or turned into a "
            "plain number, on the way?",
        )

    def choose(self, right: str, options: Sequence[str]) -> None:
        """Judge an answer that is one of some letters."""
        if not isinstance(self.answer, str) or self.answer.strip().lower() not in options:
            self.fail(
                f"The answer is one of the letters {', '.join(options)}, as a string; found "
                f"{self.answer!r}."
            )
        letter = self.answer.strip().lower()
        found = torch.tensor(float(options.index(letter)), dtype=torch.float64)
        good = letter == right
        self._observe(Observation("the choice", found, right=good), "" if good else _NOT_THAT)

    def _observe(self, observation: Observation, sentence: str) -> None:
        self.observations.append(observation)
        if sentence:
            self.fail(sentence)

    def _tensor(self, value: Any, what: str) -> Tensor:  # noqa: ANN401
        """`value` in float64; a reason to fail if it is none."""
        if value is ...:
            raise Untouched
        kinds = (Tensor, np.ndarray, np.generic, int, float, list, tuple)
        good = isinstance(value, kinds) and not isinstance(value, bool)
        try:
            converted = _converted(value) if good else None
        except (TypeError, ValueError, RuntimeError):
            converted = None
        if converted is None or converted.is_complex():
            self.fail(
                f"{_capital(what)}: a tensor or a number is expected, found "
                f"{type(value).__name__} {_short(value)}."
            )
        if converted.is_floating_point() and converted.dtype != torch.float64:
            self.rough = True
        return converted.to("cpu", torch.float64)


_NOT_THAT = "That is not it."


def stacked(value: Any) -> Any:  # noqa: ANN401
    """Lists of tensors of one shape as one tensor, which keeps the gradient; the rest as it is."""
    if not isinstance(value, list):
        return value
    inner = [stacked(each) for each in value]
    tensors = inner and all(isinstance(each, Tensor) for each in inner)
    return torch.stack(inner) if tensors and len({each.shape for each in inner}) == 1 else value


def _converted(value: Any) -> Tensor:  # noqa: ANN401
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("empty")
        return torch.stack([_converted(each).to(torch.float64) for each in value])
    if isinstance(value, bool | str):
        raise TypeError("no number")
    return torch.as_tensor(value, dtype=None if isinstance(value, np.ndarray) else torch.float64)


def _short(value: Any) -> str:  # noqa: ANN401
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] if text[:1].isascii() else text  # φ is not Φ


def _shapes(what: str, value: Tensor, right: Tensor) -> str:
    found, expected = tuple(value.shape), tuple(right.shape)
    text = f"{_capital(what)}: found the shape {found}, expected {expected}."
    if not found and expected:
        text += " A single number has lost an axis: a value for each entry is asked for."
    return text


def _values(
    what: str,
    value: Tensor,
    right: Tensor,
    wrong: Tensor,
    reveal: bool,
    error: Tensor | None = None,
) -> str:
    """One sentence on the entry that is furthest off."""
    distance = (value - right).abs().masked_fill(~wrong, -1.0).nan_to_num(math.inf)
    index = np.unravel_index(int(distance.argmax()), distance.shape or (1,))
    at = tuple(int(i) for i in index) if right.ndim else ()
    place = f" in entry {list(at)}" if at else ""
    found, expected = (f"{each[at].item():.6g}" for each in (value, right))
    if found == expected:
        found, expected = (f"{each[at].item():.12g}" for each in (value, right))
    if error is not None:
        found += f" ± {error[at].item():.1g}"
    if reveal:
        return f"{_capital(what)}: found {found}{place}, expected {expected}."
    difference = (value[at] - right[at]).item()
    if math.isnan(difference):
        return f"{_capital(what)}: found {found}."
    side = "too large" if difference > 0 else "too small"
    return f"{_capital(what)}: {found} is {side}."
