"""One process or several: what the loop of training has to know of it.

Several processes, on one machine or on many, each hold the model and the data and see a share of
every batch. Three things have to be common: where they start, the order of the data, and the sum
of their gradients. Everything that is said between them is said by Hugging Face ``accelerate``.

The shares of a batch may differ in size, so that gradients are summed and divided by the size of
the joint batch, never averaged over processes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator


class Processes:
    """The processes of an ``accelerate.Accelerator``; without one, this process alone."""

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        if accelerator is not None:
            _check(accelerator)
        self.accelerator = accelerator
        self.count = accelerator.num_processes if accelerator is not None else 1
        self.index = accelerator.process_index if accelerator is not None else 0

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and shows progress."""
        return self.index == 0

    def seed(self, seed: int) -> int:
        """A stream of draws for each process, the usual one for the first."""
        return (seed + 2_654_435_769 * self.index) % 2**63

    def share(self, rows: Tensor) -> tuple[Tensor, float]:
        """This process's rows of a joint batch, and what they weigh.

        Where there are fewer rows than processes the others see one, too, which weighs nothing:
        all of them have to take part in the sums.
        """
        if self.count == 1:
            return rows, 1.0
        mine = rows[self.index :: self.count]
        return (mine, 1.0) if len(mine) else (rows[:1], 0.0)

    def sum(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.accelerator is not None and self.count > 1 and tensors:
            flat = torch.cat([t.detach().flatten() for t in tensors])
            _spread(self.accelerator.reduce(flat, reduction="sum"), tensors)

    def agree(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by that of the first process."""
        if self.accelerator is not None and self.count > 1:
            from accelerate.utils import broadcast

            for tensor in tensors:
                tensor.detach().copy_(broadcast(tensor.detach().clone(), from_process=0))

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, (count, ...), on each of them."""
        if self.accelerator is None or self.count == 1:
            return tensor.unsqueeze(0)
        on_device = tensor.unsqueeze(0).to(self.accelerator.device)
        return self.accelerator.gather(on_device).to(tensor.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision where the accelerator has it: the families go back to float32."""
        if self.accelerator is None or self.accelerator.mixed_precision == "no":
            return nullcontext()
        return self.accelerator.autocast()


def gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradients, a zero where a parameter got none: every process sums the same list."""
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    return [p.grad for p in parameters if p.grad is not None]


def _spread(flat: Tensor, tensors: list[Tensor]) -> None:
    sizes = [t.numel() for t in tensors]
    for tensor, part in zip(tensors, flat.split(sizes), strict=True):
        tensor.detach().copy_(part.view_as(tensor))


def _check(accelerator: Accelerator) -> None:
    needed = ("num_processes", "process_index", "reduce", "gather", "device")
    if not all(hasattr(accelerator, name) for name in needed):
        raise ValueError(
            f"accelerator must be an accelerate.Accelerator, found {type(accelerator).__name__}"
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(
            'accelerator must have mixed_precision "no" or "bf16", found '
            f"{accelerator.mixed_precision!r}: the gradient of a bound overflows in half precision"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            "accelerator must have gradient_accumulation_steps = 1, found "
            f"{accelerator.gradient_accumulation_steps}: choose a larger batch_size"
        )
