"""What each of two processes does: started by the test of processes through accelerate."""

import contextlib
import io
import json
import sys
from pathlib import Path

import torch
from test_checkpoint import config, grey, some_vae

from vaetutor import Divergence, ElboTerms, Warmup, elbo_terms, fit, kl


def without_draws(model, q, x, n_samples):
    z = q.mean.unsqueeze(0)
    return ElboTerms(model.log_likelihood(x, z).mean(0), kl(q, model.prior()), True)


def bits(n=50):
    return grey(n).present(generator=torch.Generator("cpu").manual_seed(4))


# Sizes of batches: 16, 16, 16, 2; one of 50; and 7 times 7 with a single example left over, of
# which the second process has no share.
CASES = {
    "uneven": {"batch_size": 16},
    "one batch": {"batch_size": 50},
    "a last batch of one": {"batch_size": 7},
    "schedules": {"beta": Warmup(2), "learning_rate": lambda epoch: 1e-2 / (1 + epoch)},
    "clip": {"clip": 0.1},
    "turns": {"encoder_steps": 2},
}


def run_case(name, accelerator):
    vae = some_vae()
    options = {"epochs": 3, "device": None, "objective": without_draws, **CASES[name]}
    if accelerator is None:
        options["device"] = "cpu"
    torch.manual_seed(3)
    return vae, fit(vae, bits(), config(**options), bits(21), accelerator=accelerator)


def start_of(seed):
    vae = some_vae()
    torch.manual_seed(seed)
    for p in vae.parameters():
        p.data.normal_()
    return torch.cat([p.detach().flatten() for p in vae.parameters()])[:5].tolist()


def flat(vae):
    return torch.cat([p.detach().flatten() for p in vae.parameters()]).tolist()


def main():
    from accelerate import Accelerator

    import vaetutor.checkpoint

    torch.set_num_threads(1)
    accelerator, folder = Accelerator(cpu=True), Path(sys.argv[1])
    index = accelerator.process_index
    report = {"count": accelerator.num_processes}
    for name in CASES:
        vae, history = run_case(name, accelerator)
        rows = [list(row.values()) for row in history.rows]
        report[name] = {"parameters": flat(vae), "rows": rows}

    # What each of them sees: examples that carry their number in binary.
    seen, numbers = [], 2 ** torch.arange(12)
    x = ((torch.arange(50)[:, None] & numbers) > 0).float()

    def watch(model, q, batch, n_samples):
        seen.append((batch.long() * numbers).sum(1).tolist())
        return elbo_terms(model, q, batch, n_samples)

    options = {"device": None, "objective": watch, "epochs": 2}
    fit(some_vae(), x, config(**options), accelerator=accelerator)
    batches = seen[1:]  # the first call is a check
    report["seen"] = [[n for b in batches[e : e + 4] for n in b] for e in (0, 4)]

    # Other starts in each process, and their first draws.
    values = []

    def note(model, q, batch, n_samples):
        if not values:
            first = torch.cat([p.detach().flatten() for p in model.parameters()])
            report["start"] = first[:5].tolist()
        values.append(q.rsample((1,)).sum().item() - q.mean.sum().item())
        return elbo_terms(model, q, batch, n_samples)

    vae = some_vae()
    torch.manual_seed(100 + index)
    for p in vae.parameters():
        p.data.normal_()
    options = {"device": None, "objective": note, "epochs": 1, "batch_size": 50}
    fit(vae, bits(1).expand(50, 12), config(**options), accelerator=accelerator)
    report["first draws"] = values[1]

    # Who writes and who shows.
    saved, original = [], vaetutor.checkpoint.save_checkpoint
    vaetutor.checkpoint.save_checkpoint = lambda *a: (saved.append(None), original(*a))
    resumed, whole = some_vae(), some_vae()
    for epochs in (2, 4):
        options = {"device": None, "epochs": epochs}
        fit(
            resumed,
            grey(),
            config(**options),
            checkpoint=folder / "run.pt",
            accelerator=accelerator,
        )
    report["saved"] = len(saved)
    fit(whole, grey(), config(device=None, epochs=4), accelerator=accelerator)
    report["resumed"], report["whole"] = flat(resumed), flat(whole)
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        fit(
            some_vae(),
            grey(),
            config(device=None, epochs=2, progress=True),
            accelerator=accelerator,
        )
    report["bar"] = shown.getvalue()

    # Trouble in one of them, and in what they were given.
    calls = []

    def poisoned(*args):
        calls.append(None)
        terms = elbo_terms(*args)
        return terms._replace(kl=terms.kl * torch.nan) if index and len(calls) == 3 else terms

    try:
        fit(some_vae(), grey(), config(device=None, objective=poisoned), accelerator=accelerator)
    except Divergence as error:
        report["divergence"] = str(error)
    try:
        fit(some_vae(), grey(), config(device=None), bits(1), accelerator=accelerator)
    except ValueError as error:
        report["refused"] = str(error)
    try:  # the main process cannot write where a file is in the way
        (folder / "in the way").write_text("")
        where = folder / "in the way" / "run.pt"
        fit(some_vae(), grey(), config(device=None), checkpoint=where, accelerator=accelerator)
    except OSError as error:
        report["unwritten"] = str(error)
    (folder / f"{index}.json").write_text(json.dumps(report))
    accelerator.end_training()


if __name__ == "__main__":
    main()
