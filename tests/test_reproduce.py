"""Published figures: the protocol is the one that was published, and slices change nothing."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from vaetutor import elbo, iwae, log_evidence, mnist, reproduce, summary
from vaetutor.__main__ import main
from vaetutor._folder import Run
from vaetutor._run import seeded
from vaetutor.checkpoint import load_checkpoint
from vaetutor.recipes import build, rows
from vaetutor.reproduce import MODEL, burda, burda_config, burda_rate

N_TRAIN, N_TEST = 50, 12


@pytest.fixture
def images(monkeypatch):
    """A few of the embedded digits in place of the official ones."""

    def load(config, split="train"):
        assert config == MODEL
        which = {"train": slice(0, N_TRAIN), "validation": slice(N_TRAIN, N_TRAIN + 10)}
        if split == "test":
            return rows(mnist("test"), slice(0, N_TEST))
        return rows(mnist("train"), which[split])

    monkeypatch.setattr(reproduce, "load_images", load)
    monkeypatch.setattr("vaetutor._folder.load_images", load)
    return load


def parameters(path):
    return load_checkpoint(path).model


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# --- the protocol -------------------------------------------------------------------------------


def test_the_rate_holds_for_3_to_the_i_epochs():
    found = Counter(burda_rate(epoch) for epoch in range(3280))
    expected = {1e-3 * 10 ** (-i / 7): 3**i for i in range(8)}
    assert sum(found.values()) == sum(expected.values()) == 3280
    for (rate, count), (wanted, epochs) in zip(
        sorted(found.items(), reverse=True), expected.items(), strict=True
    ):
        assert math.isclose(rate, wanted, rel_tol=1e-12) and count == epochs


@pytest.mark.parametrize("i", range(1, 8))
def test_the_rate_falls_between_two_steps(i):
    """It is a function of the real epoch reached, and falls exactly at the end of one."""
    start = sum(3**j for j in range(i))
    before = burda_rate(math.nextafter(start, 0))
    assert math.isclose(burda_rate(start) / before, 10 ** (-1 / 7), rel_tol=1e-12)


def test_the_rate_stays_after_the_last_epoch():
    assert burda_rate(1e9) == burda_rate(3279) == pytest.approx(1e-4, rel=1e-12)


def test_the_network_is_that_of_the_paper(images):
    vae = build(MODEL, images(MODEL))
    shapes = [tuple(p.shape) for p in vae.encoder.parameters() if p.ndim == 2]
    assert shapes == [(200, 784), (200, 200), (2 * 50, 200)]
    shapes = [tuple(p.shape) for p in vae.decoder.parameters() if p.ndim == 2]
    assert shapes == [(200, 50), (200, 200), (784, 200)]
    names = [type(layer).__name__ for layer in (*vae.encoder[0], *vae.decoder[0])]
    assert names == 2 * ["Linear", "Tanh", "Linear", "Tanh", "Linear"]


def test_the_images_are_those_of_the_paper(images):
    assert MODEL.data == "mnist-full" and MODEL.binarization == "dynamic"
    assert 60_000 - MODEL.validation == 59_600 and MODEL.images is None


@pytest.mark.parametrize(
    ("cell", "objective", "n_samples"),
    [
        ("vae-1", elbo, 1),
        ("vae-5", elbo, 5),
        ("vae-50", elbo, 50),
        ("iwae-5", iwae, 5),
        ("iwae-50", iwae, 50),
    ],
)
def test_a_cell_is_trained_as_in_the_paper(cell, objective, n_samples):
    config = burda_config(cell, device="cpu")
    assert (config.objective, config.n_samples) == (objective, n_samples)
    assert (config.epochs, config.batch_size, config.adam_eps) == (3280, 20, 1e-4)
    assert config.learning_rate is burda_rate and config.beta == 1.0 and config.clip is None
    assert config.keep == "last" and not config.capture
    assert burda_config(cell, device="cuda").capture


# --- slices -------------------------------------------------------------------------------------


def test_slices_end_where_one_run_ends(images, tmp_path, device):
    cells, options = ["vae-1", "iwae-5"], {"epochs": 3, "n_samples": 30, "device": device.type}
    whole = burda(tmp_path / "whole", cells, **options)
    for done in (1, 2, 3):  # so short a slice is one epoch of each cell
        found = burda(tmp_path / "slices", cells, minutes=1e-9, **options)
        assert [row["epochs"] for row in found] == [done, done]
        assert [row["measured"] for row in found] == [None, None]  # there was no time
    assert burda(tmp_path / "slices", cells, **options) == whole
    for cell in cells:
        first, second = (tmp_path / name / cell for name in ("slices", "whole"))
        assert equal(parameters(first / "checkpoint.pt"), parameters(second / "checkpoint.pt"))
        assert (first / "history.csv").read_text() == (second / "history.csv").read_text()


def test_a_slice_takes_the_epochs_for_which_there_is_time(images, monkeypatch, tmp_path):
    """A clock by which an epoch takes a minute, and a call half of one before it; two cells."""
    now, asked = [0.0], []

    class Clock:
        monotonic = staticmethod(lambda: now[0])

    def train(self, epochs):
        now[0] += 30.0 + 60.0 * (epochs - epochs_done[self])
        epochs_done[self] = epochs
        asked.append(epochs)

    epochs_done = {}
    monkeypatch.setattr(reproduce, "time", Clock)
    monkeypatch.setattr(reproduce._Training, "train", train)
    monkeypatch.setattr(
        reproduce._Training, "epoch", property(lambda self: epochs_done.setdefault(self, 0))
    )
    found = burda(tmp_path, ["vae-1", "vae-5"], minutes=23.5, device="cpu")
    assert [row["epochs"] for row in found] == [10, 10]
    assert asked == [1, 7, 10, 1, 8, 10]
    assert not (tmp_path / "figures.json").exists()  # half a minute is left, but not for a figure


def test_replicas_in_slices_end_where_one_run_ends(images, tmp_path, device):
    cells, options = ["vae-1", "iwae-5"], {"epochs": 2, "n_samples": 30, "device": device.type}
    whole = burda(tmp_path / "whole", cells, replicas=True, **options)
    for _ in range(2):
        burda(tmp_path / "slices", cells, replicas=True, minutes=1e-9, **options)
    assert burda(tmp_path / "slices", cells, replicas=True, **options) == whole
    first, second = (tmp_path / name / "checkpoint.pt" for name in ("slices", "whole"))
    assert equal(parameters(first), parameters(second))
    assert whole[0]["measured"] != whole[1]["measured"]
    assert [row["epochs"] for row in whole] == [2, 2]


# --- figures ------------------------------------------------------------------------------------


def test_a_figure_is_the_negative_log_likelihood_of_the_trained_model(images, tmp_path, device):
    (row,) = burda(tmp_path, ["vae-5"], epochs=1, n_samples=30, seed=2, device=device.type)
    vae = Run(tmp_path / "vae-5").model()[0].to(device)
    test = images(MODEL, "test").to(device)
    expected = summary(vae, test, 30, seed=2).iloc[0]
    assert row["measured"] == -expected["log_evidence"]
    assert row["standard_error"] == expected["standard_error"]
    generator = torch.Generator("cpu").manual_seed(9)
    shown = test.x.gt(torch.rand(test.x.shape, generator=generator, device="cpu").to(device))
    with seeded(9, device):
        found = log_evidence(vae, shown.float(), 2000)
    other, error = found.mean()  # the test images are binarised by other draws: 12 of them
    spread = found.value.std().item() / N_TEST**0.5
    assert abs(row["measured"] + other) < 5 * spread and error < spread
    assert row["measured"] > 0 and 0 < row["standard_error"] < 2
    assert (row["measured_after"], row["epochs"], row["of"], row["draws"]) == (1, 1, 3280, 30)


def test_a_figure_short_of_the_protocol_has_no_difference(images, tmp_path, monkeypatch, device):
    options = {"n_samples": 30, "device": device.type}
    (row,) = burda(tmp_path, ["vae-1"], epochs=1, **options)
    assert row["published"] == 86.76 and row["difference"] is None
    for epochs, draws in ((1, 5000), (3280, 30), (1, 30)):  # what the protocol would ask for
        monkeypatch.setattr(reproduce, "EPOCHS", epochs)
        monkeypatch.setattr(reproduce, "DRAWS", draws)
        (row,) = burda(tmp_path, ["vae-1"], epochs=1, **options)
        whole = (epochs, draws) == (1, 30)
        assert row["difference"] == (row["measured"] - 86.76 if whole else None)


def test_a_figure_is_taken_once_and_stays_with_its_epoch(images, tmp_path, monkeypatch, device):
    options = {"n_samples": 30, "device": device.type}
    (first,) = burda(tmp_path, ["vae-1"], epochs=1, **options)
    (later,) = burda(tmp_path, ["vae-1"], epochs=3, minutes=1e-9, **options)
    assert (later["measured"], later["measured_after"]) == (first["measured"], 1)
    assert later["epochs"] == 2
    calls = []
    monkeypatch.setattr(reproduce, "summary", lambda *a, **k: calls.append(a) or summary(*a, **k))
    for n_samples in (30, 30, 40):
        burda(tmp_path, ["vae-1"], epochs=2, **{**options, "n_samples": n_samples})
    assert len(calls) == 2


def test_another_run_in_the_folder_is_refused(images, tmp_path, device):
    burda(tmp_path, ["vae-1"], epochs=1, n_samples=30, device=device.type)
    with pytest.raises(ValueError, match="seed = 0 there and 1 here"):
        burda(tmp_path, ["vae-1"], epochs=1, n_samples=30, seed=1, device=device.type)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cells": ["vae-2"]}, "cells must be some of vae-1"),
        ({"cells": []}, "cells must name at least one"),
        ({"epochs": 0}, "epochs must be"),
        ({"n_samples": 0}, "n_samples must be"),
        ({"minutes": -1}, "minutes must be"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(options, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        burda(tmp_path, **{"cells": ["vae-1"], **options})
    assert not list(tmp_path.iterdir())


def test_the_command_prints_each_figure_beside_the_published_one(images, tmp_path, capsys, device):
    options = ["reproduce", "burda", "--output", str(tmp_path), "--cells", "vae-1", "iwae-5"]
    options += ["--epochs", "1", "--n-samples", "30", "--device", device.type]
    assert main([*options, "--minutes", "1e-9"]) == 0
    out, err = capsys.readouterr()
    assert out.count("not measured") == 2 and "86.76" in out and "85.54" in out
    assert "to go on, run the same command again" in err
    assert main(options) == 0
    out, err = capsys.readouterr()
    (row, _) = burda(tmp_path, ["vae-1", "iwae-5"], epochs=1, n_samples=30, device=device.type)
    assert "not measured" not in out and not err
    line = next(text.split() for text in out.splitlines() if "vae-1" in text)
    assert line[:3] == ["vae-1", "86.76", f"{row['measured']:.6g}"] and line[-2:] == ["1", "3280"]


def test_a_cell_is_a_run_that_the_train_command_takes_further(images, tmp_path, device):
    """What a cell is can be said on the command line, option by option."""
    cell = "iwae-5"
    burda(tmp_path, [cell], epochs=1, n_samples=30, device=device.type)
    run = Run(tmp_path / cell)
    model, config, _ = run.read()
    assert model == MODEL
    assert config == replace(burda_config(cell, device=device.type), epochs=1)
    run.require(model, replace(config, epochs=2))
