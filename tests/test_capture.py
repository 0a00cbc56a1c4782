"""A captured step is the eager step: on the CPU by a tape, on a GPU by CUDA graphs.

The tape records the operations of a step, with the very tensors that they read and wrote, and
replays them without running the step's Python again. Like a graph it does not see a number that
changed in Python, only what lies in the tensors. So whatever would be frozen in a CUDA graph, the
rows of a batch, the weight of the KL, the learning rate, the draws, is frozen in it.
"""

from dataclasses import replace

import pytest
import torch
from test_checkpoint import config, grey, some_vae
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from vaetutor import TrainConfig, Warmup, elbo, elbo_terms, fit, iwae, load_checkpoint
from vaetutor._capture import WARM_UP, Captured


class Tape(TorchDispatchMode):
    """A recorder for the CPU."""

    def __init__(self, log=None):
        super().__init__()
        self.log = [] if log is None else log

    def run(self, work):
        self.log.append("run")
        return work()

    def record(self, work):
        self.log.append("record")
        self.calls, self.made, self.before = [], set(), {}
        state = torch.get_rng_state()
        with self:
            result = work()
        for tensor, value in self.before.values():  # a graph is recorded without doing anything
            tensor.detach().copy_(value)
        torch.set_rng_state(state)
        calls = self.calls

        @torch.no_grad()
        def replay():
            self.log.append("replay")
            for func, args, kwargs, out in calls:
                fresh = tree_flatten(func(*args, **kwargs))[0]
                for old, new in zip(tree_flatten(out)[0], fresh, strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)  # the same memory at every replay

        return result, replay

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for t in tree_flatten((args, kwargs))[0]:
            if isinstance(t, torch.Tensor) and id(t) not in self.made:
                self.before.setdefault(id(t), (t, t.detach().clone()))
        out = func(*args, **kwargs)
        self.made.update(id(t) for t in tree_flatten(out)[0])
        self.calls.append((func, args, kwargs, out))
        return out


@pytest.fixture
def capture(device, monkeypatch):
    """Options that capture, on the CPU by a tape, and the log of the tape."""
    log = []
    if device.type != "cuda":
        for module in ("vaetutor.train",):
            monkeypatch.setattr(f"{module}.recorder_for", lambda device: Tape(log))
    return log


def both(device, x=None, **options):
    """The same run, eager and captured."""
    found = []
    for captured in (False, True):
        vae = some_vae()
        options_now = {"epochs": 7, "capture": captured, **options}
        history = fit(vae, grey() if x is None else x, config(device, **options_now), grey(20, 2))
        found.append((vae, history))
    return found


def assert_same(pair):
    (vae, history), (captured, recorded) = pair
    for a, b in zip(vae.parameters(), captured.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.tensor(history.frame.to_numpy()),
        torch.tensor(recorded.frame.to_numpy()),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 25},  # all batches of one size
        {"batch_size": 16},  # 16, 16, 16 and 2
        {"beta": Warmup(6), "batch_size": 10},
        {"beta": lambda epoch: 1.0 if epoch < 5 else 4.0},
        {"learning_rate": lambda epoch: 1e-2 / (1 + epoch)},
        {"learning_rate": lambda epoch: 1e-2 if epoch < 5 else 1e-4},
        {"clip": 0.5},
        {"encoder_steps": 2},
        {"free_bits": 0.3},
        {"objective": iwae, "n_samples": 4},
        {"adam_eps": 1e-4},
        {"keep": "best"},
    ],
    ids=lambda options: ", ".join(options) or "plain",
)
def test_captured_training_is_eager_training(device, capture, options):
    assert_same(both(device, **options))


def test_it_was_replayed(device, capture):
    if device.type == "cuda":
        pytest.skip("the log is the tape's")
    both(device, batch_size=16, epochs=7)
    n_full, n_last = 7 * 3, 7
    assert capture.count("run") == 2 * WARM_UP and capture.count("record") == 2
    assert capture.count("replay") == n_full + n_last - 2 * WARM_UP
    assert capture[: WARM_UP + 1] == ["run"] * WARM_UP + ["run"]  # 3 full batches, then the last


def test_a_tape_freezes_what_python_alone_knows(device):
    """The recorder has to be able to fail: a factor that is a Python number is not replayed."""
    if device.type == "cuda":
        pytest.skip("this is about the tape")
    factor = [1.0]

    def step(rows, beta):
        return rows * factor[0] + beta

    captured = Captured(step, Tape())
    rows = torch.arange(3.0)
    for _ in range(WARM_UP + 1):
        captured(rows, 0.0)
    factor[0] = 100.0
    assert torch.equal(captured(rows + 1, 2.0), rows + 3)  # new rows, new beta, the old factor


def test_draws_are_anew_at_every_replay(device, capture):
    seen = []

    def watch(model, q, x, n_samples):
        terms = elbo_terms(model, q, x, n_samples)
        return terms._replace(kl=x.sum(-1))  # how many pixels were drawn

    vae = some_vae()
    options = {"objective": watch, "batch_size": 50, "epochs": 9, "learning_rate": 1e-30}
    frame = fit(vae, grey(), config(device, capture=True, **options)).frame
    seen = frame.kl.tolist()
    assert len(set(seen)) == 9
    assert frame.reconstruction.nunique() == 9


def test_a_captured_run_that_was_stopped_goes_on(device, capture, tmp_path):
    whole, stopped = some_vae(), some_vae()
    fit(whole, grey(), config(device, capture=True, epochs=9))
    for epochs in (4, 6, 9):
        last = fit(
            stopped,
            grey(),
            config(device, capture=True, epochs=epochs),
            checkpoint=tmp_path / "a.pt",
        )
    assert len(last.rows) == 9 and load_checkpoint(tmp_path / "a.pt").epoch == 9
    for a, b in zip(whole.parameters(), stopped.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_that_cannot_be_recorded_says_so(device, monkeypatch):
    """As a family whose Cholesky factor is looked at by the host, on a GPU."""

    class Refusing(Tape):
        def record(self, work):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("vaetutor.train.recorder_for", lambda device: Refusing())
    with pytest.raises(ValueError, match="capture = True: this step cannot be recorded.*stream"):
        fit(some_vae(), grey(), config(device, capture=True, epochs=9))


def test_capture_needs_cuda():
    with pytest.raises(ValueError, match="capture = True needs a CUDA device, found cpu"):
        fit(some_vae(), grey(), TrainConfig(device="cpu", capture=True))
    with pytest.raises(ValueError, match="capture must be True or False"):
        replace(TrainConfig(), capture=1)


def test_other_bounds_are_captured(device, capture):
    assert_same(both(device, objective=elbo, n_samples=2, x=grey().present()))
