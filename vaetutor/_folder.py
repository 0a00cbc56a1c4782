"""The folder of a run: its configuration, its checkpoint, its history.

Whoever has the folder has the model: ``config.json`` says how to build it and what it was trained
on, ``checkpoint.pt`` holds its parameters, and ``history.csv`` what was reported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vaetutor import __version__
from vaetutor._cli import spell, unspell
from vaetutor.checkpoint import Checkpoint, exists, load_checkpoint
from vaetutor.model import VAE
from vaetutor.recipes import ModelConfig, build, load_images
from vaetutor.train import TrainConfig

FREE = {"epochs", "device", "progress", "capture", "checkpoint_every"}
"""Fields of a TrainConfig that may differ when a run goes on."""


class Refused(ValueError):
    """A run folder that is not what it has to be."""


class Run:
    """A folder with ``config.json``, ``checkpoint.pt`` and ``history.csv``."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = self.folder / "config.json"
        self.checkpoint = self.folder / "checkpoint.pt"

    @property
    def started(self) -> bool:
        """Whether there is something to go on from."""
        return exists(self.checkpoint)

    def require(self, model: ModelConfig, train: TrainConfig) -> None:
        """Raise :class:`Refused` if the run that was started here is another one."""
        if not self.started:
            return
        there, here = self._content(), {"model": spell(model), "train": spell(train)}
        differences = [
            f"{name} = {there[part].get(name)} there and {value} here"
            for part, options in here.items()
            for name, value in options.items()
            if name not in FREE and there[part].get(name) != value
        ]
        if differences:
            raise Refused(
                f"{self.folder} holds another run: {'; '.join(differences)}. Name another folder, "
                "or empty this one"
            )
        if train.epochs < (done := self._state().epoch):
            raise Refused(f"epochs must be at least {done}, which are done, found {train.epochs}")

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Where the run was once accepted, what `fit` now objects to is the checkpoint."""
        accepted = self.started
        try:
            yield
        except ValueError as error:
            if accepted and not isinstance(error, Refused):
                raise Refused(str(error)) from error
            raise

    def write_config(self, model: ModelConfig, train: TrainConfig) -> None:
        """Put both configurations, and the versions, beside the checkpoint."""
        content = {"model": spell(model), "train": spell(train), "versions": versions()}
        write_json(self.config, content)

    def write_history(self) -> None:
        """Put the rows of the checkpoint, if there is one, into ``history.csv``."""
        import pandas as pd

        rows = self._state().rows if self.started else []
        if rows:
            pd.DataFrame(rows).to_csv(self.folder / "history.csv", index=False)

    def read(self) -> tuple[ModelConfig, TrainConfig, Checkpoint]:
        """Both configurations, and the state of the run.

        Raises:
            Refused: if something is missing, damaged or of another version.
        """
        try:
            content = self._content()
            model, train = (
                unspell(ModelConfig, content["model"]),
                unspell(TrainConfig, content["train"]),
            )
            return model, train, self._state()
        except FileNotFoundError as error:
            raise Refused(f"{self.folder} is not a run: no {error.filename}") from error
        except ValueError as error:
            raise Refused(f"{self.folder} cannot be read: {error}") from error

    def model(self) -> tuple[VAE, ModelConfig, Checkpoint]:
        """The trained model, on the CPU."""
        config, train, checkpoint = self.read()
        vae = build(config, load_images(config))
        best = checkpoint.best if train.keep == "best" else None
        try:
            vae.load_state_dict(checkpoint.model if best is None else best)
        except RuntimeError as error:
            raise Refused(f"{self.folder} holds another model than it says: {error}") from error
        return vae, config, checkpoint

    def _state(self) -> Checkpoint:
        try:
            return load_checkpoint(self.checkpoint)
        except ValueError as error:
            raise Refused(str(error)) from error

    def _content(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self.config.read_text())
            return {"model": dict(content["model"]), "train": dict(content["train"])}
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(f"{self.config} is damaged: {error}") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(unfinished, path)


def versions() -> dict[str, str]:
    """Of the package and of torch."""
    return {"vaetutor": __version__, "torch": str(torch.__version__)}
