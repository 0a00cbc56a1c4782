"""A step recorded once and replayed: CUDA graphs.

The step of a small network is a hundred kernels of a few microseconds, and starting each from
Python takes longer than running it. A graph starts all of them at once. It replays the same
kernels on the same memory, so whatever changes from step to step, the rows of the batch and the
weight of the KL, is copied into tensors that the recording reads, and the learning rate is a
tensor too. Random numbers are drawn anew at every replay, from the same stream as without a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

WARM_UP = 3  # steps that are run as they are: libraries choose their kernels in the first ones

Step = Callable[[Tensor, "float | Tensor"], Tensor]
"""Rows of a batch and the weight of the KL to the figures to report."""


class Recorder(Protocol):
    """Runs work on a stream of its own, and records it."""

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Do the work."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Record the work without doing it: where the result will lie, and what does it."""


class CudaGraphs:
    """Recordings as CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        # On the stream of the recording, to which the gradients' accumulators will be bound.
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        torch.cuda.synchronize(self._stream.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._stream.device), torch.cuda.graph(graph, stream=self._stream):
            result = work()
        return result, graph.replay


def recorder_for(device: torch.device) -> Recorder:
    """What records on `device`.

    Raises:
        ValueError: if nothing does.
    """
    if device.type != "cuda":
        raise ValueError(f"capture = True needs a CUDA device, found {device}: use capture=False")
    return CudaGraphs(device)


class Captured:
    """A step with the same results, recorded once for each size of batch."""

    def __init__(self, step: Step, recorder: Recorder) -> None:
        self._step, self._recorder = step, recorder
        self._recordings: dict[tuple[int, ...], _Recording] = {}

    def __call__(self, rows: Tensor, beta: float | Tensor) -> Tensor:
        size = tuple(rows.shape)
        if size not in self._recordings:
            self._recordings[size] = _Recording(self._step, self._recorder, rows, beta)
        return self._recordings[size](rows, beta)


class _Recording:
    def __init__(self, step: Step, recorder: Recorder, rows: Tensor, beta: float | Tensor) -> None:
        self._rows = rows.clone()
        # Without a dimension it does not change the type of the KL that it multiplies.
        exact = beta if isinstance(beta, Tensor) else torch.tensor(beta, dtype=torch.float64)
        self._beta = exact.to(rows.device, copy=True)
        self._last: float | Tensor | None = None
        self._work = lambda: step(self._rows, self._beta)
        self._recorder, self._n_run = recorder, 0
        self._replay: Callable[[], None] | None = None

    def __call__(self, rows: Tensor, beta: float | Tensor) -> Tensor:
        self._rows.copy_(rows)
        if isinstance(beta, Tensor):
            self._beta.copy_(beta)
        elif beta != self._last:
            self._beta.fill_(beta)
        self._last = beta if not isinstance(beta, Tensor) else None
        if self._n_run < WARM_UP:
            self._n_run += 1
            return self._recorder.run(self._work)
        if self._replay is None:
            try:
                self._result, self._replay = self._recorder.record(self._work)
            except RuntimeError as error:
                raise ValueError(
                    "capture = True: this step cannot be recorded. Something in the objective or "
                    "in a family reads a value from the device; use capture=False, in a new "
                    f"process. {error}"
                ) from error
        self._replay()
        return self._result.clone()  # the next replay writes there again
