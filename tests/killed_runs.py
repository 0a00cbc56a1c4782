"""Runs that are killed: started by the test of checkpoints, in a process of its own.

Each child trains with a checkpoint and sends itself SIGKILL, at a random step or inside the
writing of a checkpoint. Another one goes on, and may be killed as well, until one comes to the
end. Its parameters have to be those of a run that nobody disturbed.
"""

import os
import random
import signal
import sys
from pathlib import Path

import torch
from test_checkpoint import config, grey, same, some_vae

from vaetutor import elbo_terms, fit

EPOCHS = 5  # of four steps each


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class Until:
    """The ELBO, until a number of steps is done."""

    def __init__(self, steps):
        self.left = steps + 1  # the first call is a check

    def __call__(self, *args):
        if self.left == 0:
            kill()
        self.left -= 1
        return elbo_terms(*args)

    def __repr__(self):
        return "until"


def dying_in(name, call):
    """Make a function of ``os`` the last that the process calls, at its `call`-th time."""
    original, calls = getattr(os, name), []

    def wrapped(*args):
        calls.append(None)
        if len(calls) == call:
            kill()
        return original(*args)

    setattr(os, name, wrapped)


def child(path, steps=10**6, save=None):
    """Train in a process of its own; whether it came to the end."""
    pid = os.fork()
    if pid == 0:
        if save is not None:
            dying_in(*save)
        vae = some_vae()
        fit(vae, grey(), config(epochs=EPOCHS, objective=Until(steps)), checkpoint=path)
        torch.save(vae.state_dict(), path.with_suffix(".done"))
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def main():
    torch.set_num_threads(1)
    folder, chance = Path(sys.argv[1]), random.Random(0)
    whole = some_vae()
    fit(whole, grey(), config(epochs=EPOCHS, objective=Until(10**6)))
    plans = [
        [{"steps": chance.randrange(20)} for _ in range(chance.choice([1, 1, 3]))]
        for _ in range(24)
    ]
    plans += [[{"save": (name, k)}] for name in ("replace", "fsync") for k in range(1, 7)]
    equal = 0
    for number, plan in enumerate(plans):
        path = folder / f"{number}.pt"
        ended = [child(path, **kills) for kills in plan]
        if not any(ended):
            assert child(path), f"run {number} does not go on"
        vae = some_vae()
        vae.load_state_dict(torch.load(path.with_suffix(".done"), weights_only=True))
        equal += same(vae, whole)
    print(f"{len(plans)} runs, {equal} equal")


if __name__ == "__main__":
    main()
