r"""Checkpoints: a run that is killed goes on, and ends where it would have ended.

A checkpoint holds what the rest of a run depends on: the parameters, the state of the optimiser,
the epoch, the random state, the configuration, and what was reported so far. It is written whole
or not at all: to a temporary file in the same folder, which is then renamed. The one before it is
kept under the same name with ``.previous``.

Files are read with ``weights_only=True``, so opening one from elsewhere runs no code of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import zipfile
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT, VERSION = "vaetutor checkpoint", 1


@dataclass
class Checkpoint:
    """The state of a training run at the end of an epoch."""

    epoch: int
    """Epochs done."""
    model: dict[str, Tensor]
    """The state dictionary of the model, or that of the stacked models of several replicas."""
    optimizers: list[dict[str, Any]]
    """The state dictionaries of the optimisers."""
    random: dict[str, Tensor]
    """Random states by device type, one row for each process."""
    config: dict[str, str]
    """What the run was told to do, spelled out."""
    rows: list[Any]
    """The rows of the history."""
    best: dict[str, Tensor] | None = None
    """The parameters of the best epoch, where those are kept."""
    seconds: float = 0.0
    """Wall-clock time so far."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the package and of torch that wrote it."""


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint whole or not at all; the one that was there becomes ``.previous``.

    Args:
        checkpoint: what to write.
        path: the file. Its folder is made if it is missing.

    Raises:
        OSError: if the file cannot be written. The last one that was there is as it was.
    """
    from vaetutor import __version__

    path = Path(path)
    content = {name.name: getattr(checkpoint, name.name) for name in fields(checkpoint)}
    content["versions"] = {"vaetutor": __version__, "torch": str(torch.__version__)}
    temporary = path.with_name(f"{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it takes the name
        if path.exists():
            os.replace(path, previous(path))
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            if not path.exists() and previous(path).exists():
                os.replace(previous(path), path)
        if not isinstance(error, OSError | RuntimeError):  # torch makes one of a full disk
            raise
        raise OSError(
            f"the checkpoint {path} could not be written: {error}. The one before it is as it "
            "was; make room, or name another file"
        ) from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: a file that :func:`save_checkpoint` or :func:`~vaetutor.fit` wrote.

    Returns:
        The :class:`Checkpoint`, its tensors on the CPU.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a file that is damaged, is something else, or has a newer version. The
            message says whether the one before it can be read.
    """
    path = Path(path)
    if not path.exists() and previous(path).exists():
        path = previous(path)  # killed between two renamings
    try:
        content = _read(path)
    except ValueError as error:
        raise ValueError(f"{error}. {_advice(path)}") from error
    content.pop("format")
    content.pop("version")
    return Checkpoint(**content)


def exists(path: str | Path) -> bool:
    """Whether there is a checkpoint, or the one before it, to go on from."""
    return Path(path).exists() or previous(path).exists()


def previous(path: str | Path) -> Path:
    """Where the checkpoint before the last one lies."""
    return Path(path).with_name(f"{Path(path).name}.previous")


def spelled(value: Any) -> str:  # noqa: ANN401
    """A number, a schedule or a function in words that stay the same from run to run."""
    if isinstance(value, partial):
        given = [spelled(a) for a in value.args]
        given += [f"{name}={spelled(a)}" for name, a in sorted(value.keywords.items())]
        return f"{spelled(value.func)}({', '.join(given)})"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text


def fingerprint(x: Tensor) -> str:
    """A short name of the values of a tensor: other data, another name."""
    values = x.detach().cpu().contiguous()
    digest = hashlib.blake2b(values.view(torch.uint8).numpy().data, digest_size=8).hexdigest()
    return f"{tuple(x.shape)} {x.dtype} {digest}"


def require_same(found: dict[str, str], wanted: dict[str, str], path: str | Path) -> None:
    """Raise unless a checkpoint was written by the run that now goes on from it."""
    different = [
        f"{name} = {found.get(name)} there and {wanted.get(name)} here"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    if different:
        raise ValueError(
            f"checkpoint {path} belongs to another run: {'; '.join(different)}. Name another "
            "file, or delete this one to start anew"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # torch reads some damaged files without a word
            broken = archive.testzip()
        if broken is not None:
            raise ValueError(f"checkpoint {path} is damaged: {broken} has another checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise ValueError(f"checkpoint {path} is damaged or not one: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f'checkpoint {path} must be a file of vaetutor.fit, format "{FORMAT}", found another'
        )
    if content.get("version") != VERSION:
        raise ValueError(
            f"checkpoint {path} must have version {VERSION}, found {content.get('version')}: it "
            "was written by another version of vaetutor"
        )
    missing = {f.name for f in fields(Checkpoint)} - set(content)
    if missing:
        raise ValueError(f"checkpoint {path} is incomplete, without {', '.join(sorted(missing))}")
    return content


def _advice(path: Path) -> str:
    older = previous(path)
    try:
        epoch = _read(older)["epoch"]
    except (ValueError, FileNotFoundError):
        return "There is no older one that can be read; delete it to start anew"
    return f"The one before it, {older}, can be read (epoch {epoch}): rename it to go on"


def _sync_folder(folder: Path) -> None:
    """Put the renaming on the disk, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
