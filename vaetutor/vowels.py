r"""Real sequences of different lengths: nine speakers say two vowels.

Each utterance is cut into short frames, and a linear prediction analysis describes each frame by
12 cepstral coefficients, :math:`x_t \in \mathbb{R}^{12}`. An utterance has between 7 and 29 frames
(chapter: sequences).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from vaetutor.sequences import pad

Split = Literal["train", "test"]

# Of what stands after the header, one line a sequence.
SHA256 = {
    "train": "46876cd24e85076b3ab0ac733506adc3bcffe04e28a851571a4aec9492a2bc10",
    "test": "0109e716915f3b1d4ec8ab3a5a5e152688dda1cd5fdb312868f9876eebed941e",
}


@dataclass(frozen=True, eq=False, repr=False)
class Utterances:
    """Padded sequences and who spoke them."""

    x: Tensor
    """The sequences, float32, shape (N, T, 13): 12 coefficients, and 1 where there is a frame."""
    y: Tensor
    """The speakers 0 to 8, int64, shape (N,)."""
    name: str
    """What they are, for tables."""

    @property
    def lengths(self) -> Tensor:
        """Number of frames of each utterance, int64, shape (N,)."""
        return self.x[..., -1].sum(1).long()

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        low, high = self.lengths.min().item(), self.lengths.max().item()
        return (
            f"Utterances({self.name}: {len(self):,} sequences of {low} to {high} steps, "
            f"{self.x.shape[2] - 1} values each)"
        )


def japanese_vowels(split: Split = "train") -> Utterances:
    """The Japanese vowels, 640 utterances of the vowels /ae/ by nine male speakers.

    The official split: 30 utterances of each speaker to train on, 24 to 88 to test on. The
    coefficients are as in the file, in no unit; they differ in scale by a factor of about five.

    Args:
        split: ``"train"``, 270 utterances, or ``"test"``, 370.

    Returns:
        :class:`Utterances`, on the CPU, padded to the longest of the split.

    Raises:
        ValueError: for an unknown split, and for a file that is not the published one.
        ModuleNotFoundError: without sktime, or without its file.

    Source: Kudo, Toyama and Shimbo (1999), Multidimensional curve classification using
    passing-through regions; UCI Machine Learning Repository, CC BY 4.0. The file ships inside
    sktime, which is not imported.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of 'train', 'test', found {split!r}")
    sequences, speakers = [], []
    for line in _data_lines(split):
        *curves, speaker = line.split(":")  # one curve for each coefficient
        values = [[float(v) for v in curve.split(",")] for curve in curves]
        sequences.append(torch.tensor(values, dtype=torch.float32, device="cpu").T)
        speakers.append(int(speaker) - 1)
    y = torch.tensor(speakers, dtype=torch.int64, device="cpu")
    return Utterances(pad(sequences), y, f"japanese vowels {split}")


def _data_lines(split: Split) -> list[str]:
    """The lines of the file after its header."""
    spec = find_spec("sktime")
    package = Path(spec.origin).parent if spec and spec.origin else Path("sktime")
    path = package / "datasets/data/JapaneseVowels" / f"JapaneseVowels_{split.upper()}.ts"
    if not path.is_file():
        raise ModuleNotFoundError(
            f"japanese_vowels reads the file {path.name} that ships with sktime, not found: "
            "pip install --force-reinstall --no-deps sktime"
        )
    lines = path.read_bytes().partition(b"@data")[2].split()
    found = hashlib.sha256(b"\n".join(lines)).hexdigest()
    if found != SHA256[split]:
        raise ValueError(
            f"{path} is damaged and was not used: the SHA-256 of its data is {found}, expected "
            f"{SHA256[split]}. Restore it: pip install --force-reinstall --no-deps sktime"
        )
    return [line.decode() for line in lines]
