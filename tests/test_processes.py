"""Several processes: the step of one process with the joint batch, and one voice.

Two real processes, started by ``torchrun`` on the CPU, run ``tests/in_processes.py`` with an
accelerator and write down what they found. (``accelerate launch --cpu`` leaves the starting of
several processes to MPI, and starts a single one without.)
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from in_processes import CASES, run_case
from test_checkpoint import config, grey, some_vae

from vaetutor import fit
from vaetutor._processes import Processes


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes reported, by number of process, and the folder they wrote to."""
    folder = tmp_path_factory.mktemp("processes")
    launch(str(Path(__file__).parent / "in_processes.py"), str(folder))
    texts = [(folder / f"{index}.json").read_text() for index in (0, 1)]
    return [json.loads(text) for text in texts], folder


def launch(*command, cwd=None):
    """Run a script or ``-m module`` in two processes on the CPU."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        timeout=240,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def forget():
    """Accelerate keeps one state for the process, and these tests want several."""
    from accelerate.state import AcceleratorState, PartialState

    def reset():
        AcceleratorState._reset_state()
        PartialState._reset_state()

    reset()
    yield reset
    reset()


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_steps_of_one(found, name):
    """No draws, so that the joint batch is the same: parameters and figures agree to rounding."""
    reports, _ = found
    vae, history = run_case(name, None)
    flat = torch.cat([p.detach().flatten() for p in vae.parameters()])
    for report in reports:
        assert report["count"] == 2
        ours = torch.tensor(report[name]["parameters"])
        torch.testing.assert_close(ours, flat, rtol=1e-5, atol=1e-6)
        expected = torch.tensor([list(row.values()) for row in history.rows])
        rows = torch.tensor(report[name]["rows"])
        torch.testing.assert_close(rows[:, :-1], expected[:, :-1], rtol=1e-5, atol=1e-5)
        # The last column, validation, has draws, of which each process makes its own.
        torch.testing.assert_close(rows[:, -1], expected[:, -1], rtol=0, atol=0.5)
    assert reports[0][name]["rows"] == reports[1][name]["rows"]
    assert reports[0][name]["parameters"] == reports[1][name]["parameters"]  # to the last bit


def test_every_example_is_seen_once_an_epoch_by_one_of_them(found):
    reports, _ = found
    for epoch in range(2):
        seen = [report["seen"][epoch] for report in reports]
        assert sorted(seen[0] + seen[1]) == list(range(50))
        assert abs(len(seen[0]) - len(seen[1])) <= 4  # at most one a batch
    assert reports[0]["seen"][0] != reports[0]["seen"][1]


def test_processes_draw_differently_and_start_alike(found):
    reports, _ = found
    assert reports[0]["first draws"] != reports[1]["first draws"]
    assert reports[0]["start"] == reports[1]["start"]  # though each made another model
    alone = reports[0]["start"]
    torch.manual_seed(100)  # the start of the first process
    assert alone == some_start()


def some_start():
    from in_processes import start_of

    return start_of(100)


def test_only_the_main_process_writes_and_shows(found):
    reports, folder = found
    assert reports[0]["bar"] and "8/8 steps" in reports[0]["bar"]
    assert reports[1]["bar"] == ""
    assert [report["saved"] for report in reports] == [5, 0]  # the start, and four epochs
    assert len(list(folder.glob("run.pt*"))) == 2


def test_a_stopped_run_goes_on_in_both(found):
    reports, _ = found
    for report in reports:
        assert report["resumed"] == report["whole"]
    assert reports[0]["resumed"] == reports[1]["resumed"]


def test_another_number_of_processes_is_another_run(found):
    _, folder = found
    with pytest.raises(ValueError, match="processes = 2 there and 1 here"):
        fit(some_vae(), grey(), config(epochs=9), checkpoint=folder / "run.pt")


def test_all_of_them_hear_of_a_divergence(found):
    reports, _ = found
    for report in reports:  # only the second saw the NaN
        assert "not finite in epoch 1, step 2" in report["divergence"]


def test_all_of_them_hear_of_a_file_that_cannot_be_written(found):
    reports, _ = found
    assert "could not be written" in reports[0]["unwritten"]
    assert "the main process could not write the checkpoint" in reports[1]["unwritten"]


def test_bad_input_is_refused_with_processes_too(found):
    reports, _ = found
    for report in reports:
        assert "validation must have an example for each process, 2, found 1" in report["refused"]


# --- one process, with an accelerator or without ----------------------------------------------


def test_an_accelerator_of_one_process_changes_nothing(device, forget):
    from accelerate import Accelerator

    plain, accelerated = some_vae(), some_vae()
    fit(plain, grey(), config(device))
    fit(accelerated, grey(), config(device), accelerator=Accelerator(cpu=device.type == "cpu"))
    for p, q in zip(plain.parameters(), accelerated.parameters(), strict=True):
        assert torch.equal(p, q)


def test_mixed_precision_wraps_the_networks_only(device, forget):
    """In bfloat16 the run follows float32 within a percent, and the parameters stay float32."""
    from accelerate import Accelerator

    found = []
    for precision in ("no", "bf16"):
        forget()
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
        vae, dtypes = some_vae(), set()
        for module in vae.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda m, i, out, seen=dtypes: seen.add(out.dtype))
        frame = fit(vae, grey(), config(device, epochs=20), accelerator=accelerator).frame
        found.append(frame.elbo.iloc[-1])
        wanted = {"no": torch.float32, "bf16": torch.bfloat16}[precision]
        assert wanted in dtypes
        assert all(p.dtype == torch.float32 for p in vae.parameters())
    assert found[1] != found[0]
    assert found[1] == pytest.approx(found[0], rel=0.01)


class Pretended:
    """An accelerator with a property that fit cannot use."""

    num_processes, process_index, device = 2, 0, torch.device("cpu")
    mixed_precision, gradient_accumulation_steps = "no", 1

    def __init__(self, **properties):
        for name, value in properties.items():
            setattr(self, name, value)

    def reduce(self, *args, **kwargs):
        raise AssertionError

    gather = reduce


@pytest.mark.parametrize(
    ("accelerator", "options", "message"),
    [
        (object(), {}, "accelerator must be an accelerate.Accelerator, found object"),
        (Pretended(mixed_precision="fp16"), {}, 'mixed_precision "no" or "bf16", found .fp16'),
        (Pretended(gradient_accumulation_steps=4), {}, "gradient_accumulation_steps = 1, found 4"),
        (Pretended(), {"device": "cuda"}, "device must be None with an accelerator"),
        (Pretended(), {"capture": True}, "capture = True records one process, found several"),
    ],
)
def test_accelerators_that_cannot_be_used_are_refused(device, accelerator, options, message):
    if device.type == "cuda":
        pytest.skip("the pretended accelerator is on the CPU")
    with pytest.raises(ValueError, match=message):
        fit(some_vae(), grey(), config(**{"device": None, **options}), accelerator=accelerator)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shares_are_a_partition(n):
    rows = torch.arange(n)
    shares = []
    for index in range(3):
        processes = Processes()
        processes.count, processes.index = 3, index
        mine, weight = processes.share(rows)
        assert len(mine) >= 1 and weight in (0.0, 1.0)
        shares += mine.tolist() if weight else []
    assert sorted(shares) == list(range(n))
