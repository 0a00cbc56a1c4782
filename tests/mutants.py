"""Break the package on purpose and see the tests go red: ``python tests/mutants.py``.

Each mutant is one edit of one line that public VAE code is known to contain. The edit is made in a
copy of the package, the tests named with it run against the copy, and they must fail. A mutant
that survives means a test is missing; the script then exits with 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    name: str
    module: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant(
        "the KL sums over the batch",
        "objectives",
        "return td.kl_divergence(q, p)\n    except",
        "return td.kl_divergence(q, p).sum().expand(q.batch_shape)\n    except",
        "objectives",
    ),
    Mutant(
        "mean over event dimensions (Bernoulli)",
        "families",
        "return td.Independent(base, len(self.event_shape))\n\n    def extra_repr(self) -> str:\n"
        '        return f"{self.event_shape}"\n\n\nclass Normal',
        "d = td.Independent(base, len(self.event_shape))\n"
        "        total = d.log_prob\n"
        "        d.log_prob = lambda v: total(v) / self.n_parameters\n"
        "        return d\n\n    def extra_repr(self) -> str:\n"
        '        return f"{self.event_shape}"\n\n\nclass Normal',
        "families",
    ),
    Mutant(
        "mean over event dimensions (Gaussian likelihood)",
        "exact",
        "td.Normal(mean, self.noise_scale, validate_args=False).log_prob(x).sum(-1)",
        "td.Normal(mean, self.noise_scale, validate_args=False).log_prob(x).mean(-1)",
        "exact",
    ),
    Mutant(
        "batch leaks into the bound",
        "objectives",
        "n_samples).logsumexp(0) - math.log(n_samples)",
        "n_samples).logsumexp((0, 1)) - math.log(n_samples)",
        "objectives",
    ),
    Mutant(
        "mean of the batch inside the ELBO",
        "objectives",
        "return log_weights(model, q, x, n_samples).mean(0)",
        "return log_weights(model, q, x, n_samples).mean().expand(len(x))",
        "objectives",
    ),
    Mutant(
        "beta is ignored",
        "train",
        "bound.reconstruction - beta * bound.kl",
        "bound.reconstruction - bound.kl",
        "train",
    ),
    Mutant(
        "the weighted ELBO is reported",
        "train",
        "torch.stack([bound.reconstruction.detach(), bound.kl.detach()])",
        "torch.stack([bound.reconstruction.detach(), beta * bound.kl.detach()])",
        "train",
    ),
    Mutant(
        "N / M factor on the reconstruction",
        "objectives",
        "ElboTerms(log_likelihood.mean(0), ",
        "ElboTerms(log_likelihood.mean(0) * len(x), ",
        "objectives",
    ),
    Mutant(
        "IWAE without log K",
        "objectives",
        ".logsumexp(0) - math.log(n_samples)",
        ".logsumexp(0)",
        "objectives",
    ),
    Mutant(
        "IWAE with the wrong sign of log K",
        "objectives",
        ".logsumexp(0) - math.log(n_samples)",
        ".logsumexp(0) + math.log(n_samples)",
        "objectives",
    ),
    Mutant(
        "log of the mean and mean of the log swapped",
        "objectives",
        ".logsumexp(0) - math.log(n_samples)",
        ".mean(0)",
        "objectives",
    ),
    Mutant(
        "log weight with log q added",
        "objectives",
        "return log_joint - log_q",
        "return log_joint + log_q",
        "objectives",
    ),
    Mutant(
        "KL with its arguments swapped",
        "objectives",
        "return td.kl_divergence(q, p)\n    try",
        "return td.kl_divergence(p, q)\n    try",
        "objectives",
    ),
    Mutant(
        "KL added to the reconstruction",
        "objectives",
        "self.reconstruction - self.kl",
        "self.reconstruction + self.kl",
        "objectives",
    ),
    Mutant(
        "estimated KL with the wrong sign",
        "objectives",
        "(draws.log_q - p.log_prob(draws.z))",
        "(p.log_prob(draws.z) - draws.log_q)",
        "objectives",
    ),
    Mutant(
        "draws without gradient, silently",
        "objectives",
        "q.rsample(shape) if q.has_rsample else",
        "q.sample(shape) if True else",
        "objectives",
    ),
    Mutant(
        "no look at whether draws carry a gradient",
        "objectives",
        "if other.requires_grad and not z.requires_grad:",
        "if False:",
        "objectives",
    ),
    Mutant(
        "scale by a bare exponential",
        "families",
        "torch.exp(_LOG_RANGE * torch.sin(torch.atan(raw / _LOG_RANGE)))",
        "torch.exp(raw)",
        "families",
    ),
    Mutant(
        "scale by a clamped exponential",
        "families",
        "torch.exp(_LOG_RANGE * torch.sin(torch.atan(raw / _LOG_RANGE)))",
        "torch.exp(raw.clamp(-_LOG_RANGE, _LOG_RANGE))",
        "families",
    ),
    Mutant(
        "scale by softplus",
        "families",
        "torch.exp(_LOG_RANGE * torch.sin(torch.atan(raw / _LOG_RANGE)))",
        "torch.nn.functional.softplus(raw) + SCALE_FLOOR",
        "families",
    ),
    Mutant(
        "log-variance read as scale",
        "families",
        "td.Normal(mean, positive(raw), v",
        "td.Normal(mean, positive(raw).sqrt(), v",
        "families",
    ),
    Mutant(
        "Bernoulli from probabilities",
        "families",
        "_Bernoulli(logits=logits, v",
        "_Bernoulli(probs=logits.sigmoid(), v",
        "families",
    ),
    Mutant(
        "grey pixels under a Bernoulli",
        "families",
        "if not binary.all():",
        "if False:",
        "families",
    ),
    Mutant(
        "checks left to torch's process-wide switch",
        "families",
        "_Bernoulli(logits=logits, validate_args=_checks.enabled())",
        "_Bernoulli(logits=logits)",
        "families",
    ),
    Mutant(
        "full covariance without its off-diagonal",
        "families",
        "unit[..., row, column] = below",
        "unit[..., row, column] = 0 * below",
        "families",
    ),
    Mutant(
        "densities in half precision",
        "families",
        "return lam if torch.finfo(lam.dtype).bits >= 32 else lam.float()",
        "return lam",
        "families",
    ),
    Mutant(
        "observation scale fixed at 1",
        "families",
        "base = td.Normal(mean, self.scale.to(mean.dtype), v",
        "base = td.Normal(mean, torch.ones_like(self.scale).to(mean.dtype), v",
        "families",
    ),
    Mutant(
        "a dropped constant in the Gaussian likelihood",
        "model",
        "return p.log_prob(x)\n",
        "return p.log_prob(x) + 0.9189385\n",
        "model",
    ),
    Mutant(
        "no prior in the joint",
        "model",
        "self.log_likelihood(x, z) + prior.log_prob(z)",
        "self.log_likelihood(x, z)",
        "model",
    ),
    Mutant(
        "reconstruction at the posterior mean",
        "model",
        "self.encoder(x).sample().unsqueeze(0)",
        "self.encoder(x).mean.unsqueeze(0)",
        "model",
    ),
    Mutant(
        "the loop forgets the minus sign",
        "train",
        "(-mean).backward(",
        "mean.backward(",
        "train",
    ),
    Mutant(
        "mean of batch means",
        "train",
        "values = (sums / n).tolist()",
        "values = (sums / (-(-n // config.batch_size) * config.batch_size)).tolist()",
        "train",
    ),
    Mutant(
        "the last batch is dropped",
        "train",
        "for start in range(0, n, config.batch_size):",
        "for start in range(0, n - config.batch_size + 1, config.batch_size):",
        "train",
    ),
    Mutant(
        "the seed is ignored",
        "_run",
        "torch.default_generator.manual_seed(seed)",
        "torch.seed()",
        "train",
    ),
    Mutant(
        "a read of the device in every step",
        "train",
        "sums = sums + sums_of_batch",
        "sums = sums + sums_of_batch; sums_of_batch.sum().item()",
        "train",
    ),
    Mutant(
        "evaluation in training mode",
        "_run",
        "        model.eval()\n",
        "        pass\n",
        "evaluate",
    ),
    Mutant(
        "eval mode left on",
        "_run",
        "part.training = training",
        "pass",
        "evaluate",
    ),
    Mutant(
        "evidence summed in float32",
        "evaluate",
        "else log_w).double()",
        "else log_w)",
        "evaluate",
    ),
    Mutant(
        "whole chunks only",
        "evaluate",
        "min(chunk, n_samples - start)",
        "chunk",
        "evaluate",
    ),
    Mutant(
        "standard error of w, not of log w",
        "evaluate",
        "error = (relative.clamp(min=0) / (n_samples - 1)).sqrt()",
        "error = relative.clamp(min=0) / (n_samples - 1)",
        "evaluate",
    ),
    Mutant(
        "evidence without log S",
        "evaluate",
        "log_sum - math.log(n_samples)",
        "log_sum",
        "evaluate",
    ),
    Mutant(
        "covariance normalised by n - 1",
        "exact",
        "(wide - mean) / n)",
        "(wide - mean) / (n - 1))",
        "exact",
    ),
    Mutant(
        "posterior covariance without the noise",
        "exact",
        "cholesky(variance * torch.linalg.inv(m))",
        "cholesky(torch.linalg.inv(m))",
        "exact",
    ),
    Mutant(
        "validation on the training data",
        "train",
        "mean_terms(model, validation)",
        "mean_terms(model, data)",
        "train",
    ),
    Mutant(
        "reconstructions are samples",
        "model",
        ".unsqueeze(0)).mean[0]",
        ".unsqueeze(0)).sample()[0]",
        "model",
    ),
    Mutant(
        "a joint density of any shape",
        "objectives",
        '_checks.shape("log_joint(x, z)", log_joint, log_q.shape)',
        "pass",
        "objectives",
    ),
    Mutant(
        "error of the mean divided by sqrt(N)",
        "evaluate",
        "self.standard_error.square().sum().sqrt().item() / n",
        "self.standard_error.square().sum().sqrt().item() / n**0.5",
        "evaluate",
    ),
    Mutant(
        "half-precision draws of a normal with a matrix",
        "families",
        "            return super().rsample(sample_shape)",
        "            pass\n        return super().rsample(sample_shape)",
        "families",
    ),
    Mutant(
        "a full normal without the guard of its products",
        "families",
        "class _MultivariateNormal(_FullPrecision, td.MultivariateNormal):",
        "class _MultivariateNormal(td.MultivariateNormal):",
        "families",
    ),
    Mutant(
        "a low-rank normal without the guard of its products",
        "families",
        "class _LowRankMultivariateNormal(_FullPrecision, td.LowRankMultivariateNormal):",
        "class _LowRankMultivariateNormal(td.LowRankMultivariateNormal):",
        "families",
    ),
    Mutant(
        "the surrogate is reported as the bound",
        "gradients",
        "return _with_gradient(f, surrogate).mean(0)",
        "return surrogate.mean(0)",
        "gradients",
    ),
    Mutant(
        "sticking the landing with the draw left attached",
        "gradients",
        "log_w + q.log_prob(z.detach())",
        "log_w + q.log_prob(z)",
        "gradients",
    ),
    Mutant(
        "sticking the landing with the wrong sign",
        "gradients",
        "log_w + q.log_prob(z.detach())",
        "log_w - q.log_prob(z.detach())",
        "gradients",
    ),
    Mutant(
        "sticking the landing adds log q to the value",
        "gradients",
        "return _with_gradient(log_w, log_w + q.log_prob(z.detach())).mean(0)",
        "return (log_w + q.log_prob(z.detach())).mean(0)",
        "gradients",
    ),
    Mutant(
        "score function with a reward that is not detached",
        "gradients",
        "surrogate = f + (f - b).detach() * log_q",
        "surrogate = f + (f - b) * log_q",
        "gradients",
    ),
    Mutant(
        "score function with log q in the gradient of its reward",
        "gradients",
        "f = _integrand(target, x, z, log_q.detach())",
        "f = _integrand(target, x, z, log_q)",
        "gradients",
    ),
    Mutant(
        "score function differentiates the draw too",
        "gradients",
        "    with torch.no_grad():\n        z = _draw_z(q, n_samples).detach()",
        "    if True:\n        z = _draw_z(q, n_samples)",
        "gradients",
    ),
    Mutant(
        "the cached inverse of a draw",
        "gradients",
        "_draw_z(q, n_samples).detach()",
        "_draw_z(q, n_samples)",
        "gradients",
    ),
    Mutant(
        "a baseline that uses its own draw",
        "gradients",
        "return (f.sum(0) - f) / (len(f) - 1)",
        "return f.mean(0)",
        "gradients",
    ),
    Mutant(
        "leave-one-out over the batch",
        "gradients",
        "return (f.sum(0) - f) / (len(f) - 1)",
        "return (f.sum() - f) / (f.numel() - 1)",
        "gradients",
    ),
    Mutant(
        "the learned baseline is not trained",
        "gradients",
        "- 0.5 * (f.detach() - b).square()",
        "- 0.0",
        "gradients",
    ),
    Mutant(
        "the loss of the learned baseline reaches the model",
        "gradients",
        "0.5 * (f.detach() - b)",
        "0.5 * (f - b)",
        "gradients",
    ),
    Mutant(
        "standard error of a variance as if it were normal",
        "gradients",
        "(fourth - variance.square() * (n - 3) / (n - 1))",
        "(2 * variance.square())",
        "gradients",
    ),
    Mutant(
        "low-rank factor in the unit of z",
        "families",
        "factor = scale.unsqueeze(-1) * entries",
        "factor = entries",
        "families",
    ),
    Mutant(
        "low-rank diagonal by scale, not variance",
        "families",
        "mean, factor, scale.square(), v",
        "mean, factor, scale, v",
        "families",
    ),
    Mutant(
        "half-precision divergence of a low-rank normal",
        "objectives",
        "_WITH_MATRIX = (td.MultivariateNormal, td.LowRankMultivariateNormal)",
        "_WITH_MATRIX = (td.MultivariateNormal,)",
        "objectives",
    ),
    Mutant(
        "diagonal normal by scale, not variance, against a low-rank one",
        "objectives",
        "(d.mean, factor, d.variance, v",
        "(d.mean, factor, d.stddev, v",
        "objectives",
    ),
    Mutant(
        "regression posterior with the prior scale for its variance",
        "exact",
        "+ unit / wide.prior_scale.square()",
        "+ unit / wide.prior_scale",
        "exact",
    ),
    Mutant(
        "mean-field takes the marginal variances",
        "exact",
        "scale = _precision_diagonal(p).rsqrt()",
        "scale = p.stddev",
        "exact",
    ),
    Mutant(
        "mean-field gap without its half",
        "exact",
        "half_sum = 0.5 * _precision_diagonal(p)",
        "half_sum = _precision_diagonal(p)",
        "exact",
    ),
    Mutant(
        "no Jacobian from tau to log tau",
        "quadrature",
        "math.log(2 / math.pi) + u - nn",
        "math.log(2 / math.pi) - nn",
        "quadrature",
    ),
    Mutant(
        "forward and reverse KL swapped",
        "quadrature",
        "(self.log_density - self._log_prob(q)).flatten(1)",
        "(self._log_prob(q) - self.log_density).flatten(1)",
        "quadrature",
    ),
    Mutant(
        "the ends of the grid count in full",
        "quadrature",
        "cells[0] = cells[-1] = cells[0] / 2",
        "pass",
        "targets",
    ),
    Mutant(
        "the stated error forgets the mass beyond the grid",
        "quadrature",
        "error = error + mass_beyond(log_density, axes, axis)",
        "pass",
        "quadrature",
    ),
    Mutant(
        "the stated error looks at one half of the points only",
        "quadrature",
        "itertools.product((0, 1), repeat=len(axes))",
        "itertools.product((0,), repeat=len(axes))",
        "quadrature",
    ),
    Mutant(
        "a school's effect is not shrunk by tau",
        "quadrature",
        "eta = tau * (x - mu) / total",
        "eta = (x - mu) / total",
        "quadrature",
    ),
    Mutant(
        "both bands of U4 of one width",
        "targets",
        "_gauss(upper + step, 0.35)",
        "_gauss(upper + step, 0.4)",
        "targets",
    ),
    Mutant(
        "mass beyond the strip held against it",
        "targets",
        "for axis in range(self.is_strip, 2):",
        "for axis in range(2):",
        "targets",
    ),
    Mutant(
        "the tail of the inverse weights",
        "evaluate",
        "array_stats.psislw(-relative[:, fitted].numpy(), axis=0)",
        "array_stats.psislw(relative[:, fitted].numpy(), axis=0)",
        "pareto",
    ),
    Mutant(
        "refinement goes down",
        "inference",
        "moved = lam + rate * mean",
        "moved = lam - rate * mean",
        "inference",
    ),
    Mutant(
        "rows that have converged go on",
        "inference",
        "torch.where(stage < STAGES, learning_rate / DECAY**stage, 0)",
        "(learning_rate / DECAY**stage)",
        "inference",
    ),
    Mutant(
        "the whole batch stops with its slowest row",
        "inference",
        "(trace[-1] - trace[-2] < tolerance)",
        "(trace[-1] - trace[-2] < tolerance).all()",
        "inference",
    ),
    Mutant(
        "a refined row that ends below its start",
        "inference",
        "lam = torch.where((trace[-1] > trace[0]).unsqueeze(-1), lam, start)",
        "pass",
        "inference",
    ),
    Mutant(
        "refinement reaches the model's gradients",
        "inference",
        "(gradient,) = torch.autograd.grad(self(free).sum(), free)",
        "self(free).sum().backward(); gradient = free.grad",
        "inference",
    ),
    Mutant(
        "approximation gap without the error of the reference",
        "inference",
        '"approximation": torch.hypot(evidence_error, error[0])',
        '"approximation": error[0]',
        "inference",
    ),
    Mutant(
        "gaps from unpaired draws",
        "inference",
        "with seeded(seed, x.device):  # the same noise for both",
        "with seeded(seed + len(rows), x.device):",
        "inference",
    ),
    Mutant(
        "by turns, but everything moves in every step",
        "train",
        "return [adam(ours)] * config.encoder_steps + [adam(rest)]",
        "return [adam(_trainable(model))] * config.encoder_steps + [adam(rest)]",
        "train",
    ),
    Mutant(
        "one encoder step whatever was asked",
        "train",
        "[adam(ours)] * config.encoder_steps +",
        "[adam(ours)] +",
        "train",
    ),
    Mutant(
        "clipping to another norm",
        "train",
        "clip_grad_norm_(parameters, clip)",
        "clip_grad_norm_(parameters, clip / 2)",
        "train",
    ),
    Mutant(
        "draws of mu with the variance for the scale",
        "quadrature",
        "mu = mean + variance.sqrt() * eps",
        "mu = mean + variance * eps",
        "quadrature",
    ),
    Mutant(
        "draws of log tau half a cell too high",
        "quadrature",
        "device=x.device) - 0.5",
        "device=x.device)",
        "quadrature",
    ),
    Mutant(
        "draws of log tau on the grid only",
        "quadrature",
        "+ within * (axis[1] - axis[0])",
        "+ 0 * within",
        "quadrature",
    ),
    Mutant(
        "a grid mass of 0.99 will do",
        "quadrature",
        "MASS_TOLERANCE = 1e-6",
        "MASS_TOLERANCE = 1e-2",
        "quadrature",
    ),
    Mutant(
        "the marginal at the border without its cells",
        "quadrature",
        "(log_density.movedim(axis + 1, 1) + cells)",
        "(log_density.movedim(axis + 1, 1) + 0 * cells)",
        "quadrature",
    ),
    Mutant(
        "the grid keeps the gradient",
        "quadrature",
        "@torch.no_grad()\n",
        "",
        "quadrature",
    ),
    Mutant(
        "ends of the grid through float32",
        "quadrature",
        "torch.as_tensor(value, dtype=torch.float64, device",
        "torch.as_tensor(value, device",
        "quadrature",
    ),
    Mutant(
        "no mass times infinity has a gradient",
        "quadrature",
        "(mass * torch.where(mass > 0, value, 0.0)).sum(1)",
        "torch.where(mass > 0, mass * value, 0.0).sum(1)",
        "quadrature",
    ),
    Mutant(
        "an infinite error at the end of a support",
        "quadrature",
        "torch.where(log_end == -torch.inf, 0.0, tail).sum(1)",
        "tail.sum(1)",
        "quadrature",
    ),
    Mutant(
        "log Z without the mass beyond its domain",
        "targets",
        "error = error + mass_beyond(grid.log_density, grid.axes, axis)",
        "pass",
        "targets",
    ),
    Mutant(
        "the worst weights are fitted",
        "evaluate",
        "k = torch.where(tied & (spread > 1), torch.inf, -torch.inf)",
        "k = torch.where(tied & (spread > 1e9), torch.inf, -torch.inf)",
        "pareto",
    ),
    Mutant(
        "weights near one with no rounding",
        "evaluate",
        ".eps * highest.abs().clamp(min=1)",
        ".eps * highest.abs()",
        "pareto",
    ),
    Mutant(
        "rounding as wide as a tail",
        "evaluate",
        "rounding = 10 * torch",
        "rounding = 100 * torch",
        "pareto",
    ),
    Mutant(
        "evidence in float32",
        "exact",
        '.to("cpu" if on_mps else None, torch.float64)',
        '.to("cpu" if on_mps else None)',
        "exact",
    ),
    Mutant(
        "data of another dtype",
        "exact",
        "if x.dtype != dtype:",
        "if False:",
        "exact",
    ),
    Mutant(
        "half-precision likelihood of a regression",
        "exact",
        "with torch.autocast(x.device.type, enabled=False):\n            mean = z @ self.design.T",
        "if True:\n            mean = z @ self.design.T",
        "exact",
    ),
    Mutant(
        "half-precision covariance of a low-rank normal",
        "families",
        "with torch.autocast(lam.device.type, enabled=False):  # it",
        "if True:  # it",
        "families",
    ),
    Mutant(
        "low-rank normal left to torch's process-wide switch",
        "families",
        "factor, scale.square(), validate_args=_checks.enabled()",
        "factor, scale.square()",
        "families",
    ),
    Mutant(
        "the bar forgets the turns of the encoder",
        "train",
        "n_steps = n_batches * (config.encoder_steps + 1)",
        "n_steps = n_batches",
        "train",
    ),
]


def turns_red(tests: str, mutant: Mutant | None = None) -> bool:
    """Apply a mutant, or none, to a copy of the package and say whether the tests fail."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "vaetutor", Path(folder, "vaetutor"))
        if mutant is not None:
            path = Path(folder, "vaetutor", f"{mutant.module}.py")
            text = path.read_text()
            if text.count(mutant.old) != 1:
                raise SystemExit(f"{mutant.name}: {path.name} must hold {mutant.old!r} once")
            path.write_text(text.replace(mutant.old, mutant.new))
        options = ["-x", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"]
        tested = ROOT / "tests" / f"test_{tests}.py"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, f"--rootdir={ROOT}", tested],
            cwd=folder,  # python -m looks here first, so the broken copy is what gets imported
            env={**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout + done.stderr)
    return done.returncode == 1


def main() -> None:
    wanted = sys.argv[1:]
    survivors = []
    chosen = [m for m in MUTANTS if not wanted or any(word in m.name for word in wanted)]
    for tests in sorted({m.tests for m in chosen}):  # the control: an unbroken copy passes
        if turns_red(tests):
            raise SystemExit(f"test_{tests}.py fails without any mutant")
    for mutant in chosen:
        dead = turns_red(mutant.tests, mutant)
        verdict = "killed" if dead else "SURVIVED"
        print(f"{verdict:8s}  {mutant.module:10s}  {mutant.name}", flush=True)
        if not dead:
            survivors.append(mutant)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants killed")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
