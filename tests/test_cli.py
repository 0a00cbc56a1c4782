"""The command line: what is typed is what is done, and what goes wrong has a code and a line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from functools import partial

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from test_processes import launch

from vaetutor import (
    Cyclic,
    TrainConfig,
    Warmup,
    digits,
    doubly_reparameterised,
    elbo_terms,
    fit,
    iwae,
    mnist,
    sticking_the_landing,
    summary,
)
from vaetutor.__main__ import EPILOG, main
from vaetutor._cli import add_options, configured, field_docs, spell, unspell
from vaetutor._folder import Run
from vaetutor._run import seeded
from vaetutor.checkpoint import load_checkpoint, save_checkpoint
from vaetutor.evaluate import mean_terms
from vaetutor.recipes import ModelConfig, build, load_images
from vaetutor.reproduce import burda_rate

SIZES = {"images": 60, "validation": 20, "latent": 2, "hidden": (8,)}
PACE = {"batch_size": 16, "epochs": 2}
SMALL = "--images 60 --validation 20 --latent 2 --hidden 8 --batch-size 16"


@pytest.fixture
def command(device, capsys):
    """Run a command in this process: exit code, standard output and standard error."""

    def run(text, *more):
        arguments = [*text.split(), *map(str, more), "--device", device.type]
        code = main(arguments)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """A run folder of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    device = torch.device(request.config.getoption("--device", "cpu")).type
    with torch.device("cpu"):
        options = f"train {SMALL} --epochs 2 --keep best --device {device} --output"
        assert main([*options.split(), str(folder)]) == 0
    return folder


# --- options ------------------------------------------------------------------------------------

# For each field: what is typed, and what is meant by it.
MODEL_OPTIONS = {
    "data": ("--data rotated", {"data": "rotated"}),
    "binarize": ("--binarize none", {"binarize": "none"}),
    "images": ("--images 100", {"images": 100}),
    "validation": ("--validation 10", {"validation": 10}),
    "posterior": ("--posterior full", {"posterior": "full"}),
    "prior": ("--prior flow", {"prior": "flow"}),
    "latent": ("--latent 3", {"latent": 3}),
    "hidden": ("--hidden 20 10", {"hidden": (20, 10)}),
    "activation": ("--activation tanh", {"activation": "tanh"}),
    "init": ("--init glorot", {"init": "glorot"}),
    "init_seed": ("--init-seed 7", {"init_seed": 7}),
    "components": (
        "--posterior mixture --components 5",
        {"posterior": "mixture", "components": 5},
    ),
    "rank": ("--posterior lowrank --rank 1", {"posterior": "lowrank", "rank": 1}),
    "transforms": (
        "--posterior planar --transforms 4",
        {"posterior": "planar", "transforms": 4},
    ),
    "prior_components": (
        "--prior vamp --prior-components 9",
        {"prior": "vamp", "prior_components": 9},
    ),
    "prior_transforms": (
        "--prior flow --prior-transforms 1",
        {"prior": "flow", "prior_transforms": 1},
    ),
}
TRAIN_OPTIONS = {
    "epochs": ("--epochs 3", {"epochs": 3}),
    "batch_size": ("--batch-size 5", {"batch_size": 5}),
    "learning_rate": ("--learning-rate burda", {"learning_rate": burda_rate}),
    "adam_eps": ("--adam-eps 1e-4", {"adam_eps": 1e-4}),
    "n_samples": ("--n-samples 6", {"n_samples": 6}),
    "encoder_steps": ("--encoder-steps 1", {"encoder_steps": 1}),
    "objective": ("--objective dreg", {"objective": doubly_reparameterised}),
    "beta": ("--beta warmup:10", {"beta": Warmup(10)}),
    "free_bits": ("--free-bits 0.5", {"free_bits": 0.5}),
    "keep": ("--keep best", {"keep": "best"}),
    "device": ("--device cuda:1", {"device": "cuda:1"}),
    "seed": ("--seed 8", {"seed": 8}),
    "clip": ("--clip 2.5", {"clip": 2.5}),
    "progress": ("--no-progress", {"progress": False}),
    "capture": ("--capture", {"capture": True}),
    "checkpoint_every": ("--checkpoint-every 4", {"checkpoint_every": 4}),
}
ALL_OPTIONS = [(ModelConfig, name) for name in MODEL_OPTIONS]
ALL_OPTIONS += [(TrainConfig, name) for name in TRAIN_OPTIONS]


def read(kind, text):
    from argparse import ArgumentParser

    parser = ArgumentParser()
    add_options(parser, kind)
    return configured(kind, parser.parse_args(text.split()))


@pytest.mark.parametrize(
    ("kind", "options"), [(ModelConfig, MODEL_OPTIONS), (TrainConfig, TRAIN_OPTIONS)]
)
def test_every_field_is_an_option_with_its_text_and_default(kind, options, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")  # no line is broken
    assert set(options) == {f.name for f in fields(kind)}, "a field without a test of its option"
    assert main(["train", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for field in fields(kind):
        option = f"--{field.name.replace('_', '-')}"
        assert re.search(rf"{option}[ ,]", shown)
        default = {(400,): "400", elbo_terms: "elbo_terms"}.get(field.default, field.default)
        end = "" if default is None else f" [{default}]"
        assert field_docs(kind)[field.name] + end in shown
    assert read(kind, "") == kind()


@pytest.mark.parametrize(("kind", "name"), ALL_OPTIONS)
def test_an_option_means_its_field_and_survives_its_spelling(kind, name):
    typed, meant = {ModelConfig: MODEL_OPTIONS, TrainConfig: TRAIN_OPTIONS}[kind][name]
    assert meant[name] != getattr(kind(), name), "the default shows nothing"
    config = kind(**meant)
    assert read(kind, typed) == config
    assert unspell(kind, json.loads(json.dumps(spell(config)))) == config


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--beta 0.5", {"beta": 0.5}),
        ("--beta warmup:10:0.5:2", {"beta": Warmup(10, 0.5, 2.0)}),
        ("--beta cyclic:20", {"beta": Cyclic(20)}),
        ("--beta cyclic:8:2:0.25", {"beta": Cyclic(8, 2, 0.25)}),
        ("--learning-rate 0.01", {"learning_rate": 0.01}),
        ("--objective iwae", {"objective": iwae}),
        ("--objective stl", {"objective": sticking_the_landing}),
    ],
)
def test_spellings(typed, meant):
    config = TrainConfig(**meant)
    assert read(TrainConfig, typed) == config
    assert unspell(TrainConfig, json.loads(json.dumps(spell(config)))) == config


def test_one_schedule_has_one_spelling():
    spellings = {spell(TrainConfig(beta=b))["beta"] for b in (Warmup(10), Warmup(10.0, 0.0, 1.0))}
    assert spellings == {"warmup:10"}


@pytest.mark.parametrize("name", ["learning_rate", "beta", "objective"])
def test_a_function_of_ones_own_has_no_spelling(name):
    own = partial(iwae) if name == "objective" else lambda epoch: 0.5
    with pytest.raises(ValueError, match=f"{name} must have a spelling"):
        spell(TrainConfig(**{name: own}))


def test_an_unknown_name_is_not_passed_over():
    with pytest.raises(ValueError, match="TrainConfig has no momentum"):
        unspell(TrainConfig, {"epochs": 2, "momentum": 0.9})


# --- recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"data": "cifar"},
        {"posterior": "laplace"},
        {"data": "digits", "binarize": "static"},
        {"latent": 0},
        {"hidden": (8, 0)},
        {"hidden": [8]},
        {"images": 0},
        {"validation": -1},
        {"rank": 3},
        {"prior": "normal", "prior_components": 7},
        {"posterior": "mixture", "components": 0},
    ],
)
def test_a_model_that_is_none_is_refused_by_name(options):
    with pytest.raises(ValueError, match=f"{list(options)[-1]}.*found|found.*{list(options)[-1]}"):
        ModelConfig(**options)


def test_training_images_are_the_first_and_validation_images_the_last_of_them():
    config, whole = ModelConfig(images=60, validation=20), mnist("train")
    train, validation = load_images(config), load_images(config, "validation")
    assert torch.equal(train.x, whole.x[:40]) and torch.equal(validation.x, whole.x[40:60])
    assert torch.equal(validation.y, whole.y[40:60])
    assert torch.equal(load_images(config, "test").x, mnist("test").x)


def test_every_digit_is_in_one_split():
    config = ModelConfig(data="digits")
    train, test = load_images(config), load_images(config, "test")
    whole = digits().x
    assert (len(train), len(test), train.binarize) == (1438, 359, None)
    assert torch.equal(test.x, whole[4::5])
    assert torch.equal(torch.cat([train.x, test.x]).sum(0), whole.sum(0))


def test_angles_stay_with_their_images():
    whole = load_images(ModelConfig(data="rotated", init_seed=3))
    some = load_images(ModelConfig(data="rotated", init_seed=3, images=30, validation=10))
    assert torch.equal(some.angle, whole.angle[:20]) and torch.equal(some.x, whole.x[:20])
    assert not torch.equal(whole.angle, load_images(ModelConfig(data="rotated")).angle)


@pytest.mark.parametrize(
    ("options", "split", "complaint"),
    [
        ({"images": 5000}, "train", "images = 5000"),
        ({"images": 20, "validation": 20}, "train", "validation = 20"),
        ({}, "validation", "validation must be at least 1"),
        ({}, "all", "split must be one of"),
    ],
)
def test_a_split_that_is_not_there(options, split, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_images(ModelConfig(**options), split)


@pytest.mark.parametrize(
    ("options", "part", "expected"),
    [
        ({}, "encoder.1", "DiagonalNormal(2)"),
        ({"posterior": "full"}, "encoder.1", "FullNormal(2)"),
        ({"posterior": "lowrank", "rank": 1}, "encoder.1", "LowRankNormal(2, 1)"),
        ({"posterior": "mixture", "components": 4}, "encoder.1", "MixtureNormal(2, 4,"),
        ({"posterior": "planar", "transforms": 5}, "encoder.1", "PlanarFlow"),
        ({"posterior": "flow"}, "encoder.1", "FlowPosterior"),
        ({}, "prior", "StandardNormal(2)"),
        ({"prior": "mixture", "prior_components": 6}, "prior", "MixturePrior"),
        ({"prior": "flow"}, "prior", "FlowPrior"),
        ({"prior": "vamp", "prior_components": 6}, "prior", "VampPrior"),
        ({}, "decoder.1", "Bernoulli"),
        ({"binarize": "none"}, "decoder.1", "Normal("),
        ({"data": "digits"}, "decoder.1", "Normal("),
        ({"data": "digits", "prior": "vamp", "prior_components": 6}, "prior", "VampPrior"),
    ],
)
def test_the_parts_are_those_that_were_named(options, part, expected):
    config = ModelConfig(**{**SIZES, **options})
    images = load_images(config)
    vae = build(config, images)
    with torch.device("cpu"):
        found = vae.get_submodule(part)
        assert repr(found).startswith(expected)
        for name in ("transforms", "components"):  # sizes that a repr may break over lines
            size = options.get(name, options.get(f"prior_{name}"))
            assert size is None or getattr(found, name, size) == size
        assert np.isfinite(mean_terms(vae, images)["elbo"])


def test_a_vamp_prior_starts_at_images_and_has_enough_of_them():
    config = ModelConfig(**SIZES, prior="vamp", prior_components=6)
    images = load_images(config)
    u = build(config, images).prior.pseudo_inputs
    torch.testing.assert_close(u.detach(), 0.05 + 0.9 * images.x[:6])
    with pytest.raises(ValueError, match="prior_components must be at most"):
        build(replace(config, prior_components=41), images)


def test_a_model_follows_its_seed_alone():
    config = ModelConfig(**SIZES, posterior="flow", prior="mixture")
    images = load_images(config)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(config, images).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = build(config, images).state_dict()
    other = build(replace(config, init_seed=1), images).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.0.0.weight"], other["encoder.0.0.weight"])


def test_glorot_weights_and_the_mean_of_the_pixels():
    config = ModelConfig(images=500, hidden=(200, 100), latent=50, init="glorot")
    images = load_images(config)
    vae = build(config, images)
    for layer in (vae.encoder[0][0], vae.encoder[0][2], vae.decoder[0][0], vae.decoder[0][-1]):
        bound = (6 / sum(layer.weight.shape)) ** 0.5  # uniform on +-bound: 2 / (in + out)
        assert 0.99 * bound < layer.weight.abs().max() <= bound
    shapes = [tuple(m.weight.shape) for m in vae.decoder[0] if hasattr(m, "weight")]
    assert shapes == [(100, 50), (200, 100), (784, 200)]  # the encoder's widths, backwards
    assert vae.encoder[0][-1].bias.abs().max() == 0
    start = vae.decoder[0][-1].bias.detach().sigmoid()
    torch.testing.assert_close(start, images.x.mean(0).clamp(0.001, 0.999))


def test_no_hidden_layer_makes_a_linear_model():
    config = replace(read(ModelConfig, "--hidden"), images=60)
    assert [type(m).__name__ for m in build(config, load_images(config)).decoder[0]] == ["Linear"]


# --- training -----------------------------------------------------------------------------------


def test_the_command_does_what_the_function_does(command, device, tmp_path):
    code, out, _ = command(
        f"train {SMALL} --epochs 2 --objective iwae --n-samples 3 --output", tmp_path
    )
    assert code == 0
    config = ModelConfig(**SIZES)
    vae = build(config, load_images(config))
    options = TrainConfig(**PACE, objective=iwae, n_samples=3, device=device.type)
    history = fit(vae, load_images(config), options, load_images(config, "validation"))
    found = load_checkpoint(tmp_path / "checkpoint.pt")
    assert all(torch.equal(v.cpu(), found.model[k]) for k, v in vae.state_dict().items())
    assert found.rows == history.rows
    frame = pd.read_csv(tmp_path / "history.csv")
    pd.testing.assert_frame_equal(frame, history.frame, check_exact=True)
    assert f"{history.rows[-1]['validation_elbo']:.6g}" in out
    content = json.loads((tmp_path / "config.json").read_text())
    assert unspell(ModelConfig, content["model"]) == config
    assert unspell(TrainConfig, content["train"]) == options
    assert content["versions"]["torch"] == torch.__version__


def test_the_same_command_goes_on_and_ends_where_one_run_ends(command, tmp_path):
    options = f"train {SMALL} --beta warmup:1 --epochs"
    for epochs, folder in ((1, "slices"), (3, "slices"), (3, "whole")):
        assert command(f"{options} {epochs} --output", tmp_path / folder)[0] == 0
    slices, whole = (
        load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("slices", "whole")
    )
    assert slices.epoch == whole.epoch == 3 and slices.rows == whole.rows
    assert all(torch.equal(slices.model[name], whole.model[name]) for name in whole.model)
    texts = [(tmp_path / name / "history.csv").read_text() for name in ("slices", "whole")]
    assert texts[0] == texts[1] and texts[0].count("\n") == 4


def test_another_configuration_is_refused_and_the_difference_named(command, trained):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    code, out, err = command(f"train {SMALL} --keep best --latent 3 --seed 4 --output", trained)
    assert (code, out) == (5, "")
    assert "latent = 2 there and 3 here" in err and "seed = 0 there and 4 here" in err
    assert "epochs" not in err and len(err.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_fewer_epochs_than_are_done_are_refused(command, trained):
    before = (trained / "config.json").read_bytes()
    code, _, err = command(f"train {SMALL} --keep best --epochs 1 --output", trained)
    assert code == 5 and "epochs must be at least 2" in err
    assert (trained / "config.json").read_bytes() == before


# --- exit codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("train", "--output"),
        ("train --output {} --posterior laplace", "invalid choice"),
        ("train --output {} --epochs many", "invalid int value"),
        ("train --output {} --beta warmup", "warmup:epochs:start:end"),
        ("train --output {} --beta warmup:0", "finite number above 0"),
        ("train --output {} --objective elbow", "objective must be one of"),
        ("train --output {} --epochs 0", "epochs must be an integer of at least 1, found 0"),
        ("train --output {} --data digits --binarize static", "binarize must be none for digits"),
        ("train --output {} --keep best --images 30", "validation data"),
        ("train --output {} --device warp", "device must be"),
        ("train --output {} --device cuda:77", "cannot be used here"),
        ("sample {} --output a.pdf", "output must end in .png or .npy, found 'a.pdf'"),
        ("reproduce burda --output {} --cells vae-2", "cells must be some of"),
        ("reproduce burda --output {} --minutes 0", "minutes must be"),
        ("reproduce kingma --output {}", "invalid choice"),
        ("dance", "invalid choice"),
    ],
)
def test_a_bad_value_is_code_2_with_one_line_that_says_why(options, complaint, tmp_path, capsys):
    assert main(options.format(tmp_path / "run").split()) == 2
    _, err = capsys.readouterr()
    assert complaint in err.splitlines()[-1] and "Traceback" not in err
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_damaged_images_are_code_3(command, tmp_path, monkeypatch):
    monkeypatch.setenv("VAETUTOR_DATA", str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no image")
    code, _, err = command("train --data mnist-full --output", tmp_path / "run")
    assert code == 3 and "is damaged and was not used" in err and "Traceback" not in err


def test_images_out_of_reach_are_code_3(command, tmp_path, monkeypatch):
    def refuse(*_):
        raise ConnectionError("no network")

    monkeypatch.setattr("vaetutor.recipes.mnist", refuse)
    code, _, err = command("train --data mnist-full --output", tmp_path / "run")
    assert code == 3 and "no network" in err


def test_divergence_is_code_4_and_keeps_what_was_good(command, tmp_path):
    code, _, err = command(f"train {SMALL} --epochs 5 --learning-rate 1e20 --output", tmp_path)
    assert code == 4 and "not finite in epoch" in err and str(tmp_path / "checkpoint.pt") in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["checkpoint.pt", "config.json"])
def test_a_damaged_run_is_code_5(name, command, trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:200])
    for options in (f"train {SMALL} --keep best --epochs 3 --output", "evaluate"):
        code, _, err = command(options, folder)
        assert code == 5 and "damaged" in err and "Traceback" not in err


def test_a_folder_that_cannot_be_written_is_code_5(command, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    code, _, err = command(f"train {SMALL} --output", tmp_path / "file")
    assert code == 5 and "file" in err and "Traceback" not in err


def test_a_run_that_is_not_there_is_code_5(command, tmp_path):
    code, _, err = command("evaluate", tmp_path / "nowhere")
    assert code == 5 and "nowhere is not a run" in err


def test_a_model_that_is_not_the_one_of_its_configuration_is_code_5(command, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    content = json.loads((tmp_path / "copy" / "config.json").read_text())
    content["model"]["latent"] = 3
    (tmp_path / "copy" / "config.json").write_text(json.dumps(content))
    code, _, err = command("evaluate", tmp_path / "copy")
    assert code == 5 and "holds another model than it says" in err


def test_a_checkpoint_of_another_run_is_code_5(command, trained, tmp_path):
    options = f"train {SMALL} --keep best --epochs 3 --output"
    assert command(f"{options} {tmp_path / 'a'} --seed 1")[0] == 0
    shutil.copytree(trained, tmp_path / "b")
    shutil.copy(tmp_path / "a" / "checkpoint.pt", tmp_path / "b")
    code, _, err = command(options, tmp_path / "b")
    assert code == 5 and "belongs to another run: seed = 1 there and 0 here" in err


def test_debug_shows_where_an_error_comes_from(command, tmp_path):
    _, _, err = command("evaluate --debug", tmp_path / "nowhere")
    assert "Traceback" in err and err.splitlines()[-1].startswith("vaetutor evaluate: ")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a child")
def test_an_interrupted_run_is_code_130_and_goes_on(tmp_path):
    """A real process, a real signal, and another process that goes on."""
    options = [*f"train {SMALL} --device cpu --no-progress --output".split(), str(tmp_path)]
    start = [sys.executable, "-m", "vaetutor", *options]
    running = subprocess.Popen([*start, "--epochs", "1000000"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint.pt.previous").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert err == "vaetutor train: interrupted; to go on, run the same command again\n"
    done = load_checkpoint(tmp_path / "checkpoint.pt").epoch
    assert done >= 1 and len(pd.read_csv(tmp_path / "history.csv")) == done
    again = subprocess.run([*start, "--epochs", str(done + 1)], capture_output=True, text=True)
    assert again.returncode == 0 and "Traceback" not in again.stderr
    assert load_checkpoint(tmp_path / "checkpoint.pt").epoch == done + 1


def test_help_in_a_process_of_its_own_documents_the_codes():
    found = subprocess.run(
        [sys.executable, "-W", "error", "-m", "vaetutor", "--help"], capture_output=True, text=True
    )
    assert found.returncode == 0 and EPILOG in found.stdout
    assert all(name in found.stdout for name in ("train", "evaluate", "sample", "reproduce"))
    for code in (0, 2, 3, 4, 5, 130):
        assert f"\n  {code} " in EPILOG


# --- reports ------------------------------------------------------------------------------------


def test_json_on_the_standard_output_is_alone_there(command, trained):
    code, out, err = command("evaluate --n-samples 30 --images 20 --json -", trained)
    found = json.loads(out)
    assert code == 0 and "log_evidence" in err
    assert set(found) == {"command", "rows", "versions"} and found["command"] == "evaluate"
    (row,) = found["rows"]
    numbers = {"elbo", "reconstruction", "kl", "log_evidence", "standard_error"}
    numbers |= {"effective_draws", "pareto_k"}
    words = {"run", "images", "split", "binarisation"}
    assert set(row) == {*numbers, *words, "epoch", "draws", "examples", "seed"}
    assert all(isinstance(row[name], float) for name in numbers)
    assert all(isinstance(row[name], str) for name in words)
    assert (row["draws"], row["examples"], row["epoch"], row["seed"]) == (30, 20, 2, 0)


def test_json_in_a_file_leaves_the_table_where_it_is(command, tmp_path):
    options = f"train {SMALL} --epochs 1 --output {tmp_path / 'run'} --json"
    code, out, err = command(options, tmp_path / "result.json")
    found = json.loads((tmp_path / "result.json").read_text())
    assert code == 0 and "validation_elbo" in out and not err
    assert set(found) == {"command", "rows", "seconds", "config", "versions"}
    assert unspell(ModelConfig, found["config"]["model"]) == ModelConfig(**SIZES)
    assert set(found["rows"][0]) >= {"run", "device", "epoch", "elbo", "validation_elbo"}


def test_a_number_that_is_none_is_null(command, trained):
    out = command("evaluate --n-samples 3 --images 5 --json -", trained)[1]
    assert json.loads(out)["rows"][0]["pareto_k"] is None  # NaN for fewer than 25 draws


@pytest.mark.parametrize("split", ["test", "train", "validation"])
def test_evaluate_is_the_summary_of_the_best_model(split, command, device, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")  # a run is its folder, wherever it lies
    options = f"evaluate --n-samples 30 --images 10 --seed 3 --json - --split {split}"
    code, out, _ = command(options, tmp_path / "copy")
    config = ModelConfig(**SIZES)
    vae = build(config, load_images(config))
    vae.load_state_dict(load_checkpoint(trained / "checkpoint.pt").best)
    whole = {"test": mnist("test"), "train": mnist("train")}.get(split, None)
    x = load_images(config, "validation") if whole is None else whole
    x = replace(x, x=x.x[:10], y=x.y[:10])
    expected = summary(vae.to(device), x, 30, seed=3).iloc[0]
    (row,) = json.loads(out)["rows"]
    assert code == 0
    for name in ("elbo", "reconstruction", "kl", "log_evidence", "standard_error", "pareto_k"):
        assert row[name] == expected[name]


def test_the_model_of_a_run_is_its_best_where_that_is_kept(command, tmp_path):
    for keep in ("best", "last"):
        folder = tmp_path / keep
        assert command(f"train {SMALL} --epochs 1 --keep {keep} --output", folder)[0] == 0
        found = load_checkpoint(folder / "checkpoint.pt")
        found.best = {name: value + 1 for name, value in found.model.items()}  # another epoch's
        save_checkpoint(found, folder / "checkpoint.pt")
        expected = found.best if keep == "best" else found.model
        state = Run(folder).model()[0].state_dict()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("more", ["", "--mean"])
def test_samples_are_those_of_the_model(more, command, device, trained, tmp_path):
    command(f"sample --n 5 --seed 4 {more} --output {tmp_path / 'x.npy'}", trained)
    command(f"sample --n 5 --seed 4 {more} --output {tmp_path / 'x.png'}", trained)
    vae = Run(trained).model()[0].to(device)
    with seeded(4, device):
        expected = vae.sample(5, mean=bool(more)).cpu().numpy().reshape(5, 28, 28)
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected)
    picture = matplotlib.image.imread(tmp_path / "x.png")[..., 0]
    assert picture.shape == (2 * 28, 3 * 28)
    for i in range(6):  # in rows of three, black for 1, and white where there is no image
        row, column = divmod(i, 3)
        tile = picture[28 * row : 28 * (row + 1), 28 * column : 28 * (column + 1)]
        shown = 1 - expected[i] if i < 5 else np.ones((28, 28))
        assert np.abs(tile - shown).max() < 0.501 / 255


# --- several processes --------------------------------------------------------------------------


def test_two_processes_speak_with_one_voice(tmp_path):
    """They train one run, print one report, and go on together."""
    options = ["-m", "vaetutor", "train", *SMALL.split(), "--output", str(tmp_path / "run")]
    for epochs in (1, 2):
        found = launch(*options, "--epochs", str(epochs), "--json", "-")
        report = json.loads(found.stdout)
        assert report["rows"][0]["epoch"] == epochs and found.stderr.count("validation_elbo") == 1
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert checkpoint.config["processes"] == "2" and checkpoint.epoch == 2
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 2
    assert os.listdir(tmp_path) == ["run"]


def accelerate_launch(*options, **environment):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", *options]
    quiet = ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", "2"]
    return subprocess.run(
        [*command[:3], *quiet, *command[3:]],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=240,
    )


def test_accelerate_launch_starts_two_processes(tmp_path):
    """Its launcher for several GPUs, told that there is none."""
    command = ["-m", "vaetutor", "train", *SMALL.split(), "--output", str(tmp_path / "run")]
    port = ["--main_process_port", "0"]
    done = accelerate_launch("--multi_gpu", *port, *command, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt").config["processes"] == "2"


def test_a_launcher_that_starts_one_process_for_two_is_noticed(tmp_path):
    """``accelerate launch --cpu`` leaves the starting to MPI, and says nothing without it."""
    command = ["-m", "vaetutor", "train", *SMALL.split(), "--output", str(tmp_path / "run")]
    done = accelerate_launch("--cpu", *command)
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    assert "has started one process where several were asked for" in done.stderr
    assert "torchrun --nproc_per_node" in done.stderr
