"""What every run over a data set needs, be it training, evaluation or refinement.

Rows of data are presented as the model sees them and checked against it once; draws follow a seed
and leave the global random state as it was; modules come out in the modes in which they went in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vaetutor import _checks
from vaetutor.data import Images
from vaetutor.model import Posterior, SequenceModel

CHECK_ROWS = 1000


def present(x: Tensor | Images, rows: Tensor | None = None) -> Tensor:
    """All or some rows of a data set as a model sees them: `Images` may binarise them anew."""
    if isinstance(x, Images):
        return x.present(rows)
    return x if rows is None else x[rows]


def device_of(model: Any) -> torch.device:  # noqa: ANN401
    """The device of the model's first parameter or buffer; the CPU if it has neither."""
    tensors = _tensors(model)
    return tensors[0].device if tensors else torch.device("cpu")


def _tensors(model: Any) -> list[Tensor]:  # noqa: ANN401
    return [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []


@torch.no_grad()
def check_data(model: Any, x: Tensor | Images, name: str = "x") -> None:  # noqa: ANN401
    """Raise a ValueError that names what is wrong unless every row of `x` fits the model.

    A model that offers its two factors is asked for the likelihood of all of x at a single z, so
    that the check decodes one row, however many there are.
    """
    if not _checks.enabled():
        return
    data = x.x if isinstance(x, Images) else x
    with _checks.disabled():  # type and size; the values are looked at below
        _checks.batch(name, data)
    _checks.held(name, data)
    dtypes = {t.dtype for t in _tensors(model) if t.is_floating_point()}
    if dtypes and data.dtype not in dtypes:
        expected = min(map(str, dtypes))
        raise ValueError(
            f"{name} must have the dtype of the model, {expected}, found {data.dtype}: "
            "convert the one with .to(...) or the other"
        )
    look = _look(model, data.dtype)
    if look is None:
        return
    for rows in data.split(CHECK_ROWS):
        shown = (rows > 0).to(rows.dtype) if _is_dynamic(x) else rows
        try:
            with evaluating(model):
                look(shown.to(device_of(model)))
        except ValueError as error:
            raise ValueError(f"{name} does not fit the model: {error}") from error


def _look(model: Any, dtype: torch.dtype) -> Callable[[Tensor], object] | None:  # noqa: ANN401
    """What raises where x does not fit: the likelihood at a single z, or the model's own check."""
    if isinstance(model, SequenceModel):
        return model.check
    if not (hasattr(model, "prior") and hasattr(model, "log_likelihood")):
        return None
    shape = model.prior().event_shape
    origin = torch.zeros((1, 1, *shape), dtype=dtype, device=device_of(model))
    return lambda x: model.log_likelihood(x, origin)


def ready(
    model: Any,  # noqa: ANN401
    x: Tensor | Images,
    posterior: Posterior | None,
) -> tuple[Posterior, Tensor]:
    """The encoder, and the data as it sees them, checked and on the device of the model."""
    check_data(model, x)
    encoder = getattr(model, "encoder", None) if posterior is None else posterior
    if encoder is None:
        raise ValueError(
            f"{type(model).__name__} has no encoder: pass posterior=, a function from x to a "
            "distribution"
        )
    return encoder, present(x).to(device_of(model))


def _is_dynamic(x: Tensor | Images) -> bool:
    return isinstance(x, Images) and x.binarize == "dynamic"


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the CPU and `device` inside the block, and put their random states back after it.

    ``torch.manual_seed`` would also seed every other device, and leave those changed.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        before = torch.mps.get_rng_state() if device.type == "mps" else None
        if before is not None:
            torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            if before is not None:
                torch.mps.set_rng_state(before)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Put a module in eval mode inside the block, and each part back as it was after it."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    before = [part.training for part in parts]
    if parts:
        model.eval()
    try:
        yield
    finally:
        for part, training in zip(parts, before, strict=True):
            part.training = training


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that draws on `device` come from, by type of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Go on with the draws where :func:`random_state` was taken."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
