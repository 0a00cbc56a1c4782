"""Checkpoints: killed anywhere, a run ends where it would have ended, and no file is ever lost."""

import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from vaetutor import (
    VAE,
    Bernoulli,
    Checkpoint,
    DiagonalNormal,
    Divergence,
    Images,
    StandardNormal,
    TrainConfig,
    Warmup,
    elbo,
    elbo_terms,
    fit,
    iwae,
    load_checkpoint,
    mlp,
    save_checkpoint,
    score_function,
)
from vaetutor.checkpoint import fingerprint, previous, spelled


def some_vae(n_hidden=8):
    torch.manual_seed(3)
    encoder = nn.Sequential(mlp(12, n_hidden, 4), DiagonalNormal(2))
    return VAE(encoder, nn.Sequential(mlp(2, n_hidden, 12), Bernoulli(12)), StandardNormal(2))


def grey(n=50, seed=1):
    t = torch.rand(n, 12, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    y = torch.zeros(n, dtype=torch.int64, device="cpu")
    return Images(t, y, "dynamic", "grey", (3, 4))


def config(device="cpu", **options):
    return TrainConfig(**{"epochs": 5, "batch_size": 16, "device": device, **options})


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


class Stopped(Exception):
    pass


def stopping(after):
    """The ELBO, until it has been asked `after` times; a checkpoint knows it by its name."""
    calls = []

    def objective(*args):
        calls.append(None)
        if len(calls) > after:
            raise Stopped
        return elbo_terms(*args)

    return objective


# --- going on -------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"beta": Warmup(3)},
    {"encoder_steps": 2},
    {"keep": "best", "learning_rate": 3e-2},
    {"clip": 0.5, "n_samples": 3},
    {"learning_rate": partial(lambda epoch, start: start / (1 + epoch), start=1e-2)},
    {"free_bits": 0.2},
    {"checkpoint_every": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "plain")
def test_a_stopped_run_goes_on_to_the_same_end(device, tmp_path, options):
    """To the last bit, in parameters, history and what comes after, wherever it was stopped."""
    plain, whole = config(device, **options), some_vae()
    expected = fit(whole, grey(), plain, grey(20, 2))
    if "free_bits" in options:  # it takes the ELBO itself, which cannot be made to stop
        stops = [
            lambda vae, path: fit(
                vae, grey(), replace(plain, epochs=2), grey(20, 2), checkpoint=path
            )
        ]
        own = plain
    else:
        own = replace(plain, objective=stopping(10**9))
        stops = [
            lambda vae, path, k=k: fit(
                vae, grey(), replace(plain, objective=stopping(k)), grey(20, 2), checkpoint=path
            )
            for k in (4, 9, 17, 33)
        ]
    for number, stop in enumerate(stops):
        path = tmp_path / f"{number}.pt"
        try:
            stop(some_vae(), path)
        except Stopped:
            assert load_checkpoint(path).epoch < 5
        vae = some_vae()
        for p in vae.parameters():
            p.data.normal_()  # what it starts from is in the file
        history = fit(vae, grey(), own, grey(20, 2), checkpoint=path)
        assert same(vae, whole)
        assert history.frame.equals(expected.frame)


def test_more_epochs_are_the_run_with_more_epochs(device, tmp_path):
    long, short = some_vae(), some_vae()
    expected = fit(long, grey(), config(device, epochs=6))
    for epochs in (1, 4, 6):
        history = fit(short, grey(), config(device, epochs=epochs), checkpoint=tmp_path / "a.pt")
        assert len(history.rows) == epochs
    assert same(short, long) and history.frame.equals(expected.frame)
    again = some_vae()
    fit(again, grey(), config(device, epochs=6), checkpoint=tmp_path / "a.pt")
    assert same(again, long)
    with pytest.raises(ValueError, match="epochs must be at least 6, which checkpoint"):
        fit(some_vae(), grey(), config(device, epochs=2), checkpoint=tmp_path / "a.pt")


def test_a_checkpoint_changes_nothing(device, tmp_path):
    watched, plain = some_vae(), some_vae()
    fit(watched, grey(), config(device), grey(20, 2), checkpoint=tmp_path / "deep" / "a.pt")
    fit(plain, grey(), config(device), grey(20, 2))
    assert same(watched, plain)
    assert sorted(f.name for f in (tmp_path / "deep").iterdir()) == ["a.pt", "a.pt.previous"]


def test_it_holds_what_it_says(device, tmp_path):
    vae = some_vae()
    history = fit(vae, grey(), config(device, keep="best"), grey(9, 2), checkpoint=tmp_path / "a")
    found = load_checkpoint(tmp_path / "a")
    assert found.epoch == 5 and found.rows == history.rows and found.seconds > 0
    assert found.config["learning_rate"] == "0.001" and "vaetutor" in found.versions
    assert all(torch.equal(found.best[k].to(device), v) for k, v in vae.state_dict().items())
    assert set(found.model) == set(vae.state_dict())
    assert load_checkpoint(previous(tmp_path / "a")).epoch == 4


# --- another run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"seed": 1}, grey(), "seed = 0 there and 1 here"),
        ({"batch_size": 8}, grey(), "batch_size = 16 there and 8 here"),
        ({"objective": elbo}, grey(), "objective = .*elbo_terms there and .*elbo here"),
        ({"beta": Warmup(2)}, grey(), r"beta = 1.0 there and Warmup\(epochs=2"),
        ({"keep": "best"}, grey(), "validation = none there and "),
        ({}, grey(51), r"data = \(50, 12\)"),
        ({}, grey(50, 9), "data = "),
        ({}, grey().present(), "binarize='dynamic' there"),
    ],
)
def test_another_run_is_refused_by_what_differs(device, tmp_path, options, data, message):
    fit(some_vae(), grey(), config(device, epochs=1), checkpoint=tmp_path / "a.pt")
    vae, validation = some_vae(), grey(9, 2) if "keep" in options else None
    with pytest.raises(ValueError, match=f"belongs to another run: .*{message}"):
        own = config(device, epochs=3, **options)
        fit(vae, data, own, validation, checkpoint=tmp_path / "a.pt")
    assert same(vae.cpu(), some_vae().cpu())


def test_another_model_is_refused_and_left_alone(device, tmp_path):
    fit(some_vae(), grey(), config(device), checkpoint=tmp_path / "a.pt")
    other = some_vae(9)
    with pytest.raises(ValueError, match="is of another model"):
        fit(other, grey(), config(device), checkpoint=tmp_path / "a.pt")
    assert same(other.cpu(), some_vae(9).cpu())
    frozen = some_vae()
    frozen.encoder.requires_grad_(False)  # the optimiser's moments belong to other parameters
    with pytest.raises(ValueError, match="frozen parameters = none there and encoder.0.0.weight"):
        fit(frozen, grey(), config(device, epochs=9), checkpoint=tmp_path / "a.pt")


def test_functions_are_spelled_by_name_and_options():
    assert spelled(iwae) == "vaetutor.objectives.iwae"
    shift = partial(score_function, baseline="leave_one_out")
    assert spelled(shift) == "vaetutor.gradients.score_function(baseline='leave_one_out')"
    assert spelled(partial(shift, 3)) != spelled(shift)
    assert spelled(object()) == "object"  # no address in it
    x = torch.arange(6.0)
    assert fingerprint(x) != fingerprint(x.view(2, 3)) != fingerprint(x.view(2, 3).double())
    assert fingerprint(x) == fingerprint(torch.stack([x, x], 1)[:, 0])
    assert fingerprint(x) != fingerprint(x.flip(0))


# --- damaged and foreign files --------------------------------------------------------------


def two_written(tmp_path):
    path = tmp_path / "a.pt"
    fit(some_vae(), grey(), config(epochs=2), checkpoint=path)
    return path


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused_and_the_one_before_it_loads(tmp_path, share):
    path = two_written(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    for read in (load_checkpoint, lambda p: fit(some_vae(), grey(), config(), checkpoint=p)):
        with pytest.raises(ValueError, match=r"damaged.*previous, can be read \(epoch 1\)"):
            read(path)
    os.replace(previous(path), path)
    vae, whole = some_vae(), some_vae()
    fit(vae, grey(), config(), checkpoint=path)
    fit(whole, grey(), config())
    assert same(vae, whole)


def test_a_flipped_byte_anywhere_in_the_tensors_is_found(tmp_path):
    path = two_written(tmp_path)
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 10, len(data), len(data) // 10):
        damaged = data.copy()
        damaged[at] ^= 1
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path)
        except ValueError:
            continue
        path.write_bytes(data)  # a byte of padding: nothing that is read has changed
        good = load_checkpoint(path)
        assert all(torch.equal(good.model[k], v) for k, v in found.model.items())
        assert all(torch.equal(good.random[k], v) for k, v in found.random.items())


class Evil:
    """An object that makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": torch.zeros(3)}, "found another"),
        (torch.zeros(3), "found another"),
        ({"format": "vaetutor checkpoint", "version": 99}, "version 1, found 99"),
        ({"format": "vaetutor checkpoint", "version": 1, "epoch": 3}, "incomplete, without best"),
        ({"format": "vaetutor checkpoint", "version": 1, "model": Evil}, "damaged or not one"),
    ],
)
def test_foreign_files_are_refused_and_run_no_code(tmp_path, content, message):
    made = tmp_path / "made by a checkpoint"
    if isinstance(content, dict) and "model" in content:
        content = {**content, "model": Evil(made)}
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "a.pt")
    assert not made.exists()
    (tmp_path / "b.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="damaged or not one.*no older one"):
        load_checkpoint(tmp_path / "b.pt")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "c.pt")


# --- the disk -------------------------------------------------------------------------------


def checkpoint(epoch, size=10):
    return Checkpoint(epoch, {"w": torch.full((size,), float(epoch))}, [], {}, {}, [])


def test_a_full_disk_loses_nothing(tmp_path):
    """A limit on the size of files is a disk on which no more bytes fit."""
    path = tmp_path / "a.pt"
    for epoch in (1, 2):
        save_checkpoint(checkpoint(epoch), path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(OSError, match="could not be written: .*is as it was"):
            save_checkpoint(checkpoint(3, size=100_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert load_checkpoint(path).epoch == 2 and load_checkpoint(previous(path)).epoch == 1
    assert len(list(tmp_path.iterdir())) == 2
    save_checkpoint(checkpoint(3, size=100_000), path)
    assert load_checkpoint(path).epoch == 3


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("in the way")
    vae = some_vae()
    with pytest.raises(OSError, match="could not be written"):
        fit(vae, grey(), config(), checkpoint=tmp_path / "file" / "a.pt")
    assert same(vae, some_vae())


@pytest.mark.parametrize("dies_in", ["save", "fsync", "replace 1", "replace 2", "sync folder"])
def test_there_is_a_readable_checkpoint_at_every_moment_of_writing(tmp_path, monkeypatch, dies_in):
    """What a process leaves that dies here: the file, or else the one before it."""
    path = tmp_path / "a.pt"
    for epoch in (1, 2):
        save_checkpoint(checkpoint(epoch), path)
    moves, replaced = [], os.replace

    def dying(*args):
        raise KeyboardInterrupt  # nothing is cleaned up after it

    def move(*args):
        moves.append(args)
        if dies_in == f"replace {len(moves)}":
            raise KeyboardInterrupt
        replaced(*args)

    monkeypatch.setattr(os, "replace", move)
    if dies_in == "save":
        monkeypatch.setattr(torch, "save", lambda *args: (args[1].write(b"PK"), dying()))
    if dies_in == "fsync":
        monkeypatch.setattr(os, "fsync", dying)
    if dies_in == "sync folder":
        monkeypatch.setattr("vaetutor.checkpoint._sync_folder", dying)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(checkpoint(3), path)
    monkeypatch.undo()
    assert load_checkpoint(path).epoch == (3 if dies_in == "sync folder" else 2)
    assert load_checkpoint(path).model["w"][0] == load_checkpoint(path).epoch


def test_killed_at_any_step_it_goes_on_to_the_same_bits(tmp_path):
    """SIGKILL at 24 random steps and inside 12 savings, some runs several times over."""
    driver = Path(__file__).parent / "killed_runs.py"
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["36", "runs,", "36", "equal"]


# --- divergence -----------------------------------------------------------------------------


def test_divergence_names_the_step_the_terms_and_the_last_good_checkpoint(device, tmp_path):
    """The KL is NaN in the third epoch's second step: the check, 2 epochs of 4 steps, and 2."""
    calls = []

    def poisoned(*args):
        calls.append(None)
        terms = elbo_terms(*args)
        bad = len(calls) == 1 + 8 + 2
        return terms._replace(kl=terms.kl * torch.nan) if bad else terms

    path, vae, twin = tmp_path / "a.pt", some_vae(), some_vae()
    fit(twin, grey(), config(device, epochs=2))
    with pytest.raises(Divergence, match="a bound is not finite in epoch 3, step 2") as caught:
        fit(vae, grey(), config(device, objective=poisoned), checkpoint=path)
    error = caught.value
    assert (error.epoch, error.step, error.checkpoint) == (3, 2, path)
    assert -9 < error.terms[0] < -7 and error.terms[1] != error.terms[1]  # 12 coins, and a NaN
    assert str(path) in str(error) and "nan nats" in str(error)
    assert load_checkpoint(path).epoch == 2
    assert same(vae, twin)  # no silent NaN: it is where it was before that epoch
    assert isinstance(error, FloatingPointError)


def test_a_validation_bound_that_is_lost_counts_too(device):
    """In the second epoch the decoder is broken after the last step, in evaluation mode only."""
    vae, twin, epochs = some_vae(), some_vae(), []

    def broken(module, _, out):
        if not module.training and module.armed and len(epochs) >= 8:
            return out * torch.nan
        return out

    vae.decoder[0].armed = True
    vae.decoder[0].register_forward_hook(broken)
    vae.encoder[0].register_forward_hook(lambda m, *_: epochs.append(0) if m.training else None)
    fit(twin, grey(), config(device, epochs=1))
    with pytest.raises(Divergence, match="the validation ELBO is not finite in epoch 2, step 4"):
        fit(vae, grey(), config(device), grey(20, 2))
    assert same(vae, twin)


def test_the_message_says_where_the_model_is(device):
    """With the best kept it is not at the end of the epoch before."""
    calls = []

    def poisoned(*args):
        calls.append(None)
        terms = elbo_terms(*args)
        return terms._replace(kl=terms.kl * torch.nan) if len(calls) == 1 + 8 + 2 else terms

    with pytest.raises(Divergence, match="back at its best epoch"):
        own = config(device, objective=poisoned, keep="best")
        fit(some_vae(), grey(), own, grey(20, 2))


def test_a_lost_parameter_never_reaches_a_checkpoint(tmp_path):
    """The last step of an epoch breaks the model after its last bound was finite."""
    path, vae = tmp_path / "a.pt", some_vae()
    rate = lambda epoch: 1e39 if epoch > 1.89 else 1e-3
    options = {"batch_size": 5, "learning_rate": rate}
    with pytest.raises(Divergence, match="a parameter is not finite in epoch 2, step 10"):
        fit(vae, grey(), config(**options), checkpoint=path)
    found = load_checkpoint(path)
    assert found.epoch == 1
    assert all(torch.equal(found.model[k], v) for k, v in vae.state_dict().items())
    assert all(v.isfinite().all() for v in found.model.values())
