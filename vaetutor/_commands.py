"""What the commands of the command line do, and how they report it."""

from __future__ import annotations

import json
import math
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vaetutor import _checks
from vaetutor._cli import configured, spell
from vaetutor._folder import Run, versions
from vaetutor._run import seeded
from vaetutor.evaluate import summary
from vaetutor.recipes import ModelConfig, build, load_images, rows
from vaetutor.reproduce import CELLS, burda
from vaetutor.train import TrainConfig, fit, pick_device

if TYPE_CHECKING:
    import accelerate


def train(options: Namespace) -> None:
    """Train a VAE, or go on, in a run folder."""
    model_config, config = configured(ModelConfig, options), configured(TrainConfig, options)
    run, accelerator = Run(options.output), _accelerator(_usable(config.device))
    run.require(model_config, config)
    images = load_images(model_config)
    validation = load_images(model_config, "validation") if model_config.validation else None
    vae = build(model_config, images)
    if accelerator is not None:
        accelerator.wait_for_everyone()  # all have looked at the folder before it changes
    if _is_main_process():
        run.write_config(model_config, config)
    path = run.checkpoint
    try:
        with run.going_on():
            history = fit(
                vae, images, config, validation, checkpoint=path, accelerator=accelerator
            )
    finally:
        if _is_main_process():
            run.write_history()
    last = {"run": str(run.folder), "device": history.device, **history.rows[-1]}
    configuration = {"model": spell(model_config), "train": spell(config)}
    _report(options, [last], seconds=history.seconds, config=configuration)


def evaluate(options: Namespace) -> None:
    """The summary of a trained model on a split of its images."""
    vae, config, checkpoint = Run(options.folder).model()
    images = load_images(config, options.split)
    if options.images is not None:
        if _checks.count("images", options.images) > len(images):
            raise ValueError(f"images must be at most {len(images)}, found {options.images}")
        images = rows(images, slice(0, options.images))
    found = summary(vae.to(_usable(options.device)), images, options.n_samples, seed=options.seed)
    where = {"run": options.folder, "images": images.name, "split": options.split}
    figures = {str(name): value for name, value in found.iloc[0].to_dict().items()}
    row = {**where, "epoch": checkpoint.epoch, **figures, "seed": options.seed}
    _report(options, [row])


def sample(options: Namespace) -> None:
    """Images drawn from a trained model, as a picture or as numbers."""
    import numpy as np

    output = Path(options.output)
    if output.suffix not in (".png", ".npy"):
        raise ValueError(f"output must end in .png or .npy, found {options.output!r}")
    vae, config, checkpoint = Run(options.folder).model()
    images, device = load_images(config), _usable(options.device)
    with seeded(options.seed, device):
        drawn = vae.to(device).sample(options.n, mean=options.mean)
    tiles = drawn.unflatten(1, images.image_shape).cpu()
    if output.suffix == ".npy":
        np.save(output, tiles.numpy())
    else:
        _save_picture(output, tiles, black=max(1.0, images.x.max().item()))
    facts = {"run": options.folder, "output": options.output, "epoch": checkpoint.epoch}
    _report(options, [{**facts, "n": options.n, "seed": options.seed, "mean": options.mean}])


def reproduce(options: Namespace) -> None:
    """The one-layer rows of Table 1 of Burda et al. (2016), in slices of time if need be."""
    _usable(options.device)
    found = burda(
        options.output,
        cells=options.cells or tuple(CELLS),
        epochs=options.epochs,
        minutes=options.minutes,
        replicas=options.replicas,
        n_samples=options.n_samples,
        seed=options.seed,
        device=options.device,
    )
    _report(options, found, missing={"measured": "not measured"})
    if any(row["measured_after"] != options.epochs for row in found):
        print("to go on, run the same command again", file=sys.stderr)


def _report(
    options: Namespace,
    found: list[dict[str, Any]],
    missing: Mapping[str, str] = MappingProxyType({}),
    **facts: Any,  # noqa: ANN401
) -> None:
    """Print a table of the rows, and write them as JSON where that is wanted."""
    if not _is_main_process():
        return
    import pandas as pd

    shown = [{key: _shown(value, missing.get(key, "")) for key, value in r.items()} for r in found]
    frame = pd.DataFrame(shown)
    table = frame.T.to_string(header=False) if len(frame) == 1 else frame.to_string(index=False)
    print(table, file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json:
        plain = [{key: _plain(value) for key, value in row.items()} for row in found]
        content = {"command": options.command, "rows": plain, **facts, "versions": versions()}
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        print(text, end="") if options.json == "-" else Path(options.json).write_text(text)


def _shown(value: Any, missing: str) -> Any:  # noqa: ANN401
    """What the table has: six digits of a number, and a word where there is none."""
    value = _plain(value)
    return missing if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _plain(value: Any) -> Any:  # noqa: ANN401
    """What JSON has: null for a number that is not finite, Python's numbers for numpy's."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _save_picture(path: Path, tiles: Tensor, black: float) -> None:
    """A grid without gaps, one pixel for each of an image, dark on white."""
    from matplotlib.image import imsave

    n, height, width = tiles.shape
    columns = math.ceil(math.sqrt(n))
    blanks = tiles.new_zeros(-n % columns, height, width)
    grid = torch.cat([tiles, blanks]).unflatten(0, (-1, columns))  # (rows, columns, h, w)
    mosaic = grid.transpose(1, 2).reshape(-1, columns * width)
    grey = 255 * (1 - mosaic / black).clamp(0, 1)
    imsave(path, grey.round().byte().unsqueeze(-1).expand(-1, -1, 3).numpy())


def _accelerator(device: torch.device) -> accelerate.Accelerator | None:
    """That of the processes that a launcher has started, if they are several."""
    sizes = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    if max(int(os.environ.get(name, "1")) for name in sizes) == 1:
        # Its launcher for the CPU names an address where several processes were asked for.
        if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ:
            raise ValueError(
                "accelerate launch --cpu has started one process where several were asked for: it "
                "leaves that to MPI. Start them by torchrun --nproc_per_node N -m vaetutor train "
                "... --device cpu"
            )
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=device.type == "cpu")


def _is_main_process() -> bool:
    """Whether this process is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def _usable(device: str | torch.device | None) -> torch.device:
    """The device that is meant, after a try."""
    try:
        found = pick_device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"device {device} cannot be used here: {why}") from error
    return found
