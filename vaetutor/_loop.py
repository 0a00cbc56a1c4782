"""The epochs of a run: batches in order, steps, figures, checkpoints, and what to do in trouble.

It does not know what a step computes. That is the business of :mod:`vaetutor.train`, for one
model, and of :mod:`vaetutor.replicas`, for several at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vaetutor import checkpoint as files
from vaetutor._capture import Step
from vaetutor._processes import Processes
from vaetutor._run import random_state, set_random_state

if TYPE_CHECKING:
    from vaetutor.train import TrainConfig


class Divergence(FloatingPointError):
    """A bound or a parameter stopped being finite, and training with it.

    The model has been put back to where it was before that epoch, or at its best.
    """

    epoch: int
    """The epoch in which it happened, from 1 up."""
    step: int
    """The step of that epoch, from 1 up; the last one where a parameter was lost by it."""
    terms: list[float]
    """What the bound was made of in that step, means over the batch, in nats."""
    checkpoint: Path | None
    """The last good checkpoint, if there is one."""

    def __init__(
        self,
        what: str,
        epoch: int,
        step: int,
        terms: list[float],
        checkpoint: Path | None,
        back: str | None = None,
    ) -> None:
        self.epoch, self.step, self.terms, self.checkpoint = epoch, step, terms, checkpoint
        back = back or f"at the end of epoch {epoch - 1}"
        where = f" The last good checkpoint is {checkpoint}." if checkpoint else ""
        super().__init__(
            f"{what} is not finite in epoch {epoch}, step {step}: the terms of the bound were "
            f"{', '.join(f'{t:.6g}' for t in terms)} nats. The model is back {back}.{where} Try a "
            "smaller learning rate or a gradient clip"
        )


@dataclass
class Loop:
    """All that a run over epochs needs and keeps."""

    model: nn.Module
    """What is trained: its state is saved, restored and checked."""
    n: int
    """Number of examples."""
    config: TrainConfig
    device: torch.device
    processes: Processes
    optimizers: list[torch.optim.Optimizer]
    step: Step
    order: Callable[[], Tensor]
    """Draws the order of an epoch, rows along the last axis."""
    report: Callable[[int, Tensor, Any], Any]
    """Epoch, means of the terms and last beta to a row of the history."""
    is_best: Callable[[list[Any]], bool]
    """Whether the last of the rows is the one to keep."""
    identity: dict[str, str]
    """What a checkpoint has to agree with."""
    path: Path | None = None
    """Where checkpoints go."""
    beta: Callable[[float], float | Tensor] | None = None
    """The weight of the KL at an epoch reached; None for that of the configuration."""
    rows: list[Any] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    seconds: float = 0.0

    def run(self, bar: tqdm, note: Callable[[tqdm, Any], None], steps_each: int) -> None:
        """Train from the checkpoint, if there is one, to the last epoch."""
        started = time.perf_counter() - self._begin()
        # Steps of an earlier session say nothing about how fast this one is.
        bar.n = bar.initial = len(self.rows) * -(-self.n // self.config.batch_size) * steps_each
        bar.last_print_n = bar.n
        try:
            for epoch in range(len(self.rows), self.config.epochs):
                self.model.train()
                good = copied(self.model)
                row = self._epoch(epoch, good, bar, steps_each)
                self.rows.append(row)
                if self.is_best(self.rows):
                    self.best = copied(self.model)
                self.seconds = time.perf_counter() - started
                if (epoch + 1) % self.config.checkpoint_every == 0 or self._done:
                    self._save()
                note(bar, row)
        finally:
            if self.best is not None:
                self.model.load_state_dict(self.best)
        self.seconds = time.perf_counter() - started

    @property
    def _done(self) -> bool:
        return len(self.rows) == self.config.epochs

    def _epoch(self, epoch: int, good: dict[str, Tensor], bar: tqdm, steps_each: int) -> Any:  # noqa: ANN401
        n, size = self.n, self.config.batch_size
        order = self.order()
        self.processes.agree([order])
        record = []
        beta_at = self.beta or self.config.beta_at
        beta: float | Tensor = 0.0
        last_rate = 0.0
        for start in range(0, n, size):
            reached = epoch + start / n
            beta = beta_at(reached)
            if (rate := self.config.learning_rate_at(reached)) != last_rate:
                set_rate(self.optimizers, rate)
                last_rate = rate
            record.append(self.step(order[..., start : start + size], beta))
            bar.update(steps_each)
        sums = torch.stack(record)
        self.processes.sum([sums])
        sums = sums.cpu().double()  # the one read of the epoch
        if self.processes.count > 1:  # the running means of each are those of its share
            self.processes.agree(list(self.model.buffers()))
        try:
            self._require_finite(epoch, sums)
            row = self.report(epoch + 1, sums.sum(0) / n, beta)
            self._require_finite_validation(epoch, len(sums), row)
        except Divergence:
            self.model.load_state_dict(good)
            raise
        return row

    def _require_finite(self, epoch: int, sums: Tensor) -> None:
        bad = ~sums.isfinite().flatten(1).all(1)
        where, what = len(sums) - 1, "a parameter"
        if bad.any():
            where, what = int(bad.nonzero()[0]), "a bound"
        elif all_finite(self.model):  # the last step comes after the last bound
            return
        n_rows = min(self.config.batch_size, self.n - where * self.config.batch_size)
        self._diverge(what, epoch, where + 1, (sums[where] / n_rows).flatten().tolist())

    def _require_finite_validation(self, epoch: int, n_steps: int, row: Any) -> None:  # noqa: ANN401
        value = row.get("validation_elbo", 0.0) if isinstance(row, dict) else 0.0
        if not math.isfinite(value):
            self._diverge("the validation ELBO", epoch, n_steps, [value])

    def _diverge(self, what: str, epoch: int, step: int, terms: list[float]) -> NoReturn:
        good = self.path if self.path is not None and files.exists(self.path) else None
        back = "at its best epoch" if self.best is not None else None
        raise Divergence(what, epoch + 1, step, terms, good, back)

    def _begin(self) -> float:
        """Go on from the checkpoint, or write one of the start; the seconds used so far."""
        if self.path is None:
            return 0.0
        there = torch.tensor([float(files.exists(self.path))], device=self.device)
        self.processes.agree([there])  # before one of them writes it
        if not there.item():
            self._save()  # it shows at once whether it can be written
            return 0.0
        found = files.load_checkpoint(self.path)
        files.require_same(found.config, self.identity, self.path)
        if found.epoch > self.config.epochs:
            raise ValueError(
                f"epochs must be at least {found.epoch}, which checkpoint {self.path} has reached,"
                f" found {self.config.epochs}"
            )
        before = copied(self.model)
        try:
            self.model.load_state_dict(found.model)
            for optimizer, state in zip(self.optimizers, found.optimizers, strict=True):
                ours = optimizer.state_dict()  # its options are those of this run
                optimizer.load_state_dict({**state, "param_groups": ours["param_groups"]})
        except (RuntimeError, ValueError) as error:
            self.model.load_state_dict(before)
            raise ValueError(f"checkpoint {self.path} is of another model: {error}") from error
        # A copy: torch 2.13 crashes when it is given a state that is a view of another tensor.
        mine = {name: s[self.processes.index].clone() for name, s in found.random.items()}
        set_random_state(mine, self.device)
        self.rows, self.best = found.rows, found.best
        return found.seconds

    def _save(self) -> None:
        if self.path is None:
            return
        states = random_state(self.device)
        states = {name: self.processes.gather(state) for name, state in states.items()}
        checkpoint = files.Checkpoint(
            epoch=len(self.rows),
            model=self.model.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
            random=states,
            config=self.identity,
            rows=self.rows,
            best=self.best,
            seconds=self.seconds,
        )
        if self.processes.count == 1:
            files.save_checkpoint(checkpoint, self.path)
            return
        error: OSError | None = None
        if self.processes.is_main:
            try:
                files.save_checkpoint(checkpoint, self.path)
            except OSError as found:
                error = found
        failed = torch.tensor([float(error is not None)], device=self.device)
        self.processes.sum([failed])  # or the others would wait for the main process for ever
        if failed.item():
            raise error or OSError(f"the main process could not write the checkpoint {self.path}")


def copied(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state of a model."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def all_finite(model: nn.Module) -> bool:
    """Whether all parameters are, by one read from the device."""
    parts = [p.detach().isfinite().all() for p in model.parameters()]
    return bool(torch.stack(parts).all())


def set_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """Set the step size; a captured step reads it from a tensor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
