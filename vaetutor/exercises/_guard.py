"""What keeps an answer from hurting the session in which it is checked.

An answer is a reader's code and runs in the reader's own process. It gets a limited time, what it
prints is caught, and the global state of torch, numpy and Python is put back after it.
"""

from __future__ import annotations

import ctypes
import io
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import FrameType

import numpy as np
import torch
import torch.distributions as td

from vaetutor import _run

PRINT_LIMIT = 1000
"""Characters of an answer's output that are kept."""


_OUT_OF_THE_WAY = 7_919_000_000
"""Added to seeds, so that an answer that seeds with a small number is seen to do so."""


class TimeIsUp(BaseException):
    """Raised in the middle of an answer; no ``except Exception`` of that answer stops it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TimeIsUp` in the block after so many seconds.

    It reaches Python code, a sleep included; a single long call into compiled code is interrupted
    when it returns. A block that swallows the exception gets another one a second later.
    """
    done = False

    def stop(number: int, frame: FrameType | None) -> None:
        if not done:
            raise TimeIsUp

    main = threading.current_thread() is threading.main_thread()
    if main and hasattr(signal, "setitimer"):
        handler = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        try:
            yield
        finally:
            done = True
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, handler)
        return
    # Elsewhere (Windows, other threads) another thread raises the exception in this one.
    over, ident = threading.Event(), threading.get_ident()

    def watch() -> None:
        wait = seconds
        while not over.wait(wait):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(ident), ctypes.py_object(TimeIsUp)
            )
            wait = 1.0

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        # An exception that was set but not yet raised must not reach who comes after.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), None)


class Printed(io.TextIOBase):
    """Where an answer's output goes: the first characters are kept, all are counted."""

    def __init__(self) -> None:
        self.text, self.length = "", 0

    def write(self, text: str) -> int:
        self.text += text[: max(0, PRINT_LIMIT - len(self.text))]
        self.length += len(text)
        return len(text)


@contextmanager
def quiet() -> Iterator[Printed]:
    """Catch what the block prints; a warning counts as printed."""
    printed = Printed()
    with (
        redirect_stdout(printed),
        redirect_stderr(printed),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("default")
        try:
            yield printed
        finally:
            for warning in caught:
                printed.write(f"{warning.category.__name__}: {warning.message}\n")


def settings() -> dict[str, object]:
    """The process-wide settings of torch that an answer might change, by what they are called."""
    return {
        "the default dtype": torch.get_default_dtype(),
        "whether gradients are recorded": torch.is_grad_enabled(),
        "whether distributions check their arguments": td.Distribution._validate_args,
    }


def _set(values: dict[str, object]) -> None:
    dtype, grad, validate = values.values()
    assert isinstance(dtype, torch.dtype)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(bool(grad))
    td.Distribution.set_default_validate_args(bool(validate))


@contextmanager
def kept(seed: int) -> Iterator[None]:
    """Seed everything, take float64 as default dtype and record gradients inside the block.

    After it the settings and the random states of torch, numpy and Python are as before.
    """
    seed += _OUT_OF_THE_WAY
    before = settings()
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    device = torch.device("cuda" if torch.cuda.is_initialized() else "cpu")
    try:
        with _run.seeded(seed, device):
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            _set({**before, "the default dtype": torch.float64, list(before)[1]: True})
            yield
    finally:
        _set(before)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def random_states() -> tuple[bytes, bytes, bytes]:
    """Fingerprints of the random states of torch, numpy and Python."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    return (
        torch.get_rng_state().numpy().tobytes(),
        repr(numpy_state).encode() + numpy_state["state"]["key"].tobytes(),
        repr(random.getstate()).encode(),
    )


def shuffle_states(seed: int) -> None:
    """Bring the three random states to others, which no answer is likely to choose."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
