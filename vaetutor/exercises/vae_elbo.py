"""Exercises of chapter 4, the VAE and its ELBO."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributions as td
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from vaetutor.exercises._attempt import Attempt
from vaetutor.exercises._declare import Exercise, Mistake, register

PAGE = "04_vae_elbo"


# 4.1


def bernoulli_elbo(x: Tensor, logits: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    # ln(1 + e^l) without an overflow: it is max(l, 0) + ln(1 + e^-|l|).
    log_normaliser = logits.clamp(min=0) + (-logits.abs()).exp().log1p()
    reconstruction = (x * logits - log_normaliser).sum(-1)  # (S, B)
    kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(-1)  # (B,)
    return reconstruction.mean(0) - kl


def _elbo_by_torch(x: Tensor, logits: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    pixels = td.Bernoulli(logits=logits).log_prob(x.expand_as(logits))
    q = td.Independent(td.Normal(mean, (0.5 * log_var).exp()), 1)
    prior = td.Independent(td.Normal(torch.zeros_like(mean), 1.0), 1)
    return pixels.sum(-1).mean(0) - td.kl_divergence(q, prior)


def _judge_bernoulli_elbo(attempt: Attempt) -> None:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=attempt.generator)

    for draws, batch, pixels, dim in ((3, 4, 9, 2), (1, 1, 5, 3), (2, 5, 1, 4)):
        x = (normal(batch, pixels) > 0).double()
        logits = (2 * normal(draws, batch, pixels)).requires_grad_()
        mean, log_var = normal(batch, dim).requires_grad_(), normal(batch, dim).requires_grad_()
        found = attempt(x, logits, mean, log_var)
        expected = _elbo_by_torch(x, logits, mean, log_var)
        sizes = f"S, B, Dₓ, D = {draws}, {batch}, {pixels}, {dim}"
        attempt.close(found, expected, f"the ELBO for {sizes}")
        for name, gradient, right in zip(
            ("logits", "mean", "log-variance"),
            attempt.gradient(found, [logits, mean, log_var]),
            ((x - logits.sigmoid()) / draws, -mean, (1 - log_var.exp()) / 2),
            strict=True,
        ):
            attempt.close(gradient, right, f"its gradient for the {name}")

    # Right and wrong pixels of either sign, each picture with another number of wrong ones.
    sign = torch.tensor([[1.0, -1, -1, 1, 1], [-1, 1, -1, -1, 1], [1, 1, -1, 1, -1]])
    x = torch.tensor([[0.0, 1, 0, 1, 1], [1, 0, 1, 1, 0], [1, 1, 0, 0, 0]])
    mean, log_var = normal(3, 2), normal(3, 2)
    for size in (200, 10_000):
        logits = (size * sign.expand(2, 3, 5)).clone().requires_grad_()
        found = attempt(x, logits, mean, log_var)
        wrong_pixels = (x != (sign > 0)).sum(-1)
        expected = -size * wrong_pixels + _elbo_by_torch(x, 0 * logits, mean, log_var)
        expected = (expected + 5 * math.log(2)).detach()
        _refuse_clipping(attempt, found, expected, size)
        attempt.close(found, expected, f"the ELBO for logits of ±{size:,}")
        (gradient,) = attempt.gradient(found, [logits])
        right = (x - (sign > 0).double()).expand(2, 3, 5) / 2
        attempt.close(gradient, right, f"its gradient for logits of ±{size:,}")


def _refuse_clipping(attempt: Attempt, found: Any, expected: Tensor, size: int) -> None:  # noqa: ANN401
    """Fail if a finite value does not fall as far as it should."""
    values = found.detach() if isinstance(found, Tensor) else found
    for value, right in zip(values, expected.tolist(), strict=False):
        attempt.require(
            not right + 1 < float(value) < math.inf,
            f"A wrong pixel with a logit of ±{size:,} costs {size:,} nats: the ELBO should be "
            f"{right:.1f}, found {float(value):.1f}. Are probabilities clipped on the way? They "
            "hide how wrong the decoder is, and their gradient vanishes. Work with the logits.",
        )


def _probabilities(x: Tensor, logits: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    p = logits.sigmoid()
    pixels = x * p.log() + (1 - x) * (1 - p).log()
    return pixels.sum(-1).mean(0) - 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(-1)


register(
    Exercise(
        "4.1",
        title="The ELBO from logits",
        page=PAGE,
        kind="function",
        difficulty="easy",
        minutes=15,
        solution=bernoulli_elbo,
        judge=_judge_bernoulli_elbo,
        mistakes=(
            Mistake(
                "The pixels are averaged. Their log-probabilities add: the mean divides the "
                "reconstruction by Dₓ and leaves the KL as it is.",
                lambda x, logits, mean, log_var: (
                    bernoulli_elbo(x, logits, 0 * mean, 0 * log_var) / x.shape[-1]
                    + bernoulli_elbo(x, 0 * logits, mean, log_var)
                    + x.shape[-1] * math.log(2)
                ),
            ),
            Mistake(
                "The KL is added. It is a price, and is subtracted from the reconstruction.",
                lambda x, logits, mean, log_var: (
                    2 * bernoulli_elbo(x, logits, 0 * mean, 0 * log_var)
                    - bernoulli_elbo(x, logits, mean, log_var)
                ),
            ),
            Mistake(
                "The log-variance is used as if it were ln σ: σ² is `log_var.exp()`, not the "
                "square of it.",
                lambda x, logits, mean, log_var: bernoulli_elbo(x, logits, mean, 2 * log_var),
            ),
            Mistake(
                "The draws are summed. The reconstruction is an expectation, so it is their mean.",
                lambda x, logits, mean, log_var: (
                    len(logits) * bernoulli_elbo(x, logits, 0 * mean, 0 * log_var)
                    + bernoulli_elbo(x, 0 * logits, mean, log_var)
                    + x.shape[-1] * math.log(2)
                ),
            ),
            Mistake(
                "The mean runs over the batch as well. Each picture keeps an ELBO of its own; "
                "whoever trains takes the mean at the end.",
                lambda x, logits, mean, log_var: bernoulli_elbo(x, logits, mean, log_var).mean(),
            ),
            Mistake(
                "Probabilities are used on the way. The sigmoid of 200 is 1 to rounding, and the "
                "logarithm of one minus that is -∞; times zero it is not a number. The formula in "
                "the logits needs no probability.",
                _probabilities,
            ),
        ),
        hints=(
            "Take the two terms one by one. The reconstruction is a sum over pixels for each draw "
            "and picture, and then a mean over draws. The KL has no draws in it.",
            "log p(x | z) is linear in the logits but for ln(1 + e^ℓ). That term is close to ℓ "
            "for a large ℓ and close to 0 for a very negative one. Which function of torch "
            "computes it without an overflow? And what are σ² and ln σ² when the log-variance is "
            "given?",
            "`softplus` is ln(1 + e^ℓ). Sum x ℓ - ln(1 + e^ℓ) over the last axis, average over "
            "the first, and subtract half the sum of μ² + σ² - 1 - ln σ², of which the last is "
            "an argument.",
        ),
        lesson="A pixel that the decoder gets badly wrong costs as many nats as its logit is "
        "large, and its gradient does not vanish: that is what pulls a bad start back. A "
        "probability in float64 cannot tell 1 - e⁻²⁰⁰ from 1; the logit can.",
    )
)


# 4.2


def log_evidence(draw_log_w: Callable[[int], Tensor], n_samples: int, chunk: int) -> Tensor:
    log_sum = torch.tensor(-math.inf)
    for start in range(0, n_samples, chunk):
        log_w = draw_log_w(min(chunk, n_samples - start))
        log_sum = torch.logaddexp(log_sum, log_w.logsumexp(0))
    return log_sum - math.log(n_samples)


class _Deck:
    """Hands out prepared log-weights, and keeps count."""

    def __init__(self, attempt: Attempt, log_w: Tensor, n_samples: int) -> None:
        self.attempt, self.log_w, self.n_samples = attempt, log_w, n_samples
        self.taken = self.largest = self.kept = 0
        self.handed: list[weakref.ref[Tensor]] = []

    def __call__(self, k: int) -> Tensor:
        self.kept = max(self.kept, sum(each() is not None for each in self.handed))
        start, self.taken = self.taken, self.taken + k
        self.largest = max(self.largest, k)
        if self.taken > len(self.log_w):
            self.attempt.fail(
                f"It goes on drawing: {self.taken} draws so far, where {self.n_samples} are "
                "ordered."
            )
        part = self.log_w[start : self.taken].clone()
        self.handed.append(weakref.ref(part))
        return part


def _judge_log_evidence(attempt: Attempt) -> None:
    cases = ((7, 3, 4, 0.0), (6, 3, 2, 0.0), (2, 5, 3, 0.0), (7, 3, 1, -1000.0), (90, 4, 2, 5.0))
    for n_samples, chunk, batch, level in cases:
        log_w = 3 * torch.randn(n_samples + 2 * chunk, batch, generator=attempt.generator)
        deck = _Deck(attempt, log_w + level, n_samples)
        found = attempt(deck, n_samples, chunk)
        order = f"{n_samples} draws in chunks of {chunk}"
        attempt.close(deck.taken, n_samples, f"the number of draws, with {order}")
        attempt.require(
            deck.largest <= chunk,
            f"It asks for {deck.largest} draws at once, where a chunk is {chunk}: then the memory "
            "is that of all the draws, which the chunks are there to save.",
        )
        expected = np.logaddexp.reduce((log_w + level)[:n_samples].numpy(), axis=0)
        what = f"the log evidence by {order}"
        if level < -100:
            what += f", of log-weights near {level:.0f}"
        attempt.close(found, torch.from_numpy(expected) - math.log(n_samples), what)
    attempt.require(
        deck.kept <= 3,
        f"It still holds {deck.kept} chunks of weights when it asks for the next. The memory "
        "should not grow with the number of draws: keep what a chunk adds, not its weights.",
    )


def _chunks(draw_log_w: Callable[[int], Tensor], n_samples: int, chunk: int) -> Tensor:
    """The log-mean-exp of each chunk: (chunks, B)."""
    sizes = [min(chunk, n_samples - start) for start in range(0, n_samples, chunk)]
    return torch.stack([draw_log_w(k).logsumexp(0) - math.log(k) for k in sizes])


register(
    Exercise(
        "4.2",
        title="The likelihood, in small pieces",
        page=PAGE,
        kind="function",
        difficulty="hard",
        minutes=20,
        solution=log_evidence,
        judge=_judge_log_evidence,
        mistakes=(
            Mistake(
                "Not as many draws as are ordered: only full chunks are drawn, and the rest is "
                "dropped. Here 7 draws are a chunk of 3, another of 3, and one of 1.",
                lambda draw, n, chunk: log_evidence(draw, n - n % chunk, chunk),
            ),
            Mistake(
                "The number of draws is missing: this is the logarithm of the sum of the weights. "
                "Their mean is smaller by ln K.",
                lambda draw, n, chunk: log_evidence(draw, n, chunk) + math.log(n),
            ),
            Mistake(
                "The estimates of the chunks are averaged as logarithms. That estimates the bound "
                "for as few draws as a chunk has, which is looser: average the weights, then take "
                "the logarithm once.",
                lambda draw, n, chunk: _chunks(draw, n, chunk).mean(0),
            ),
            Mistake(
                "Every chunk counts alike, the short last one too. Then its draws weigh more than "
                "the others: add the sums of the weights, and divide by the number of draws.",
                lambda draw, n, chunk: (
                    _chunks(draw, n, chunk).logsumexp(0) - math.log(math.ceil(n / chunk))
                ),
            ),
            Mistake(
                "This is the mean of the log-weights, an estimate of the ELBO. The logarithm goes "
                "outside the mean.",
                lambda draw, n, chunk: torch.stack([draw(1)[0] for _ in range(n)]).mean(0),
            ),
            Mistake(
                "The weights underflow: e⁻¹⁰⁰⁰ is zero in floating point, and its logarithm -∞. "
                "Stay with logarithms: `logsumexp` and `logaddexp` add what they stand for.",
                lambda draw, n, chunk: (
                    torch.stack([draw(1)[0].exp() for _ in range(n)]).mean(0).log()
                ),
            ),
        ),
        hints=(
            "What has to be carried from chunk to chunk is one number for each example. Which, so "
            "that its last value is all that is needed? And how many draws does the last chunk "
            "have?",
            "The sum of all weights is enough: Σ over the chunks of the sums within them. But it "
            "is too small for a floating-point number, so carry its logarithm. You then have "
            "log a and log b, and need log(a + b).",
            "`torch.logaddexp` adds two numbers that are given as logarithms, and `logsumexp` "
            "does it along an axis. A sum of nothing has the logarithm -∞. After the last chunk, "
            "turn the sum into a mean.",
        ),
        lesson="The size of a chunk is a matter of memory and speed alone: the estimate is that "
        "of `n_samples` draws whatever it is. `vt.log_evidence` works this way. Averaging the "
        "estimates of chunks would lower the noise, but its expectation would stay at the bound "
        "for `chunk` draws, however many there are.",
    )
)


# 4.3


def kl_weights(batch: int, pixels: int, latent_dim: int) -> tuple[float, float, float]:
    # The right loss sums over the pixels or latent dimensions, and averages over the batch.
    # Write each term as a constant times its right version; the weight is the ratio.
    loss_a = (1 / latent_dim) / (1 / pixels)
    loss_b = (1 / latent_dim) / 1
    loss_c = 1 / batch
    return loss_a, loss_b, loss_c


def _kl_terms(mean: Tensor, log_var: Tensor) -> Tensor:
    return 0.5 * (mean**2 + log_var.exp() - 1 - log_var)


def _loss_a(x: Tensor, logits: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, x) + _kl_terms(mean, log_var).mean()


def _loss_b(x: Tensor, logits: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    total = binary_cross_entropy_with_logits(logits, x, reduction="sum")
    return total / len(x) + _kl_terms(mean, log_var).mean()


def _loss_c(x: Tensor, logits: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    total = binary_cross_entropy_with_logits(logits, x, reduction="sum")
    return total + _kl_terms(mean, log_var).sum(1).mean()


def _measured_weights(batch: int, pixels: int, latent_dim: int) -> Tensor:
    """From the gradients of the losses, in units of those of the right loss."""
    weights = []
    for loss in (_loss_a, _loss_b, _loss_c):
        x = torch.ones(batch, pixels)
        logits = torch.zeros(batch, pixels, requires_grad=True)
        mean = torch.ones(batch, latent_dim, requires_grad=True)
        value = loss(x, logits, mean, torch.zeros(batch, latent_dim))
        of_pixel, of_mean = torch.autograd.grad(value, [logits, mean])
        weights.append((of_mean[0, 0] / 1.0) / (of_pixel[0, 0] / -0.5))
    return torch.stack(weights)


def _judge_kl_weights(attempt: Attempt) -> None:
    for batch, pixels, latent_dim in ((128, 784, 20), (6, 35, 4), (50, 3, 10)):
        found = attempt(batch, pixels, latent_dim)
        sizes = f"B, Dₓ, D = {batch}, {pixels}, {latent_dim}"
        expected = _measured_weights(batch, pixels, latent_dim)
        attempt.close(found, expected, f"the three weights for {sizes}")


register(
    Exercise(
        "4.3",
        title="Find the bug: three losses",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=15,
        solution=kl_weights,
        judge=_judge_kl_weights,
        mistakes=(
            Mistake(
                "Turned round: these are the weights on the reconstruction, with the KL at "
                "weight one.",
                lambda batch, pixels, dim: (dim / pixels, dim, batch),
            ),
            Mistake(
                "In the first loss both terms are means, but of different numbers of entries: one "
                "is too small by Dₓ, the other by D. They do not cancel.",
                lambda batch, pixels, dim: (1, 1 / dim, 1 / batch),
            ),
            Mistake(
                "In the first loss the mean over pixels has been seen, and the one over latent "
                "dimensions not: `.mean()` without an axis runs over both axes of (B, D).",
                lambda batch, pixels, dim: (pixels, 1 / dim, 1 / batch),
            ),
            Mistake(
                "In the third loss the pixels are summed, as they should be, but so are the "
                "pictures. The KL is a mean over the pictures.",
                lambda batch, pixels, dim: (pixels / dim, 1 / dim, 1),
            ),
            Mistake(
                "In the third loss it is the reconstruction that is B times too large. That makes "
                "the KL lighter, not heavier.",
                lambda batch, pixels, dim: (pixels / dim, 1 / dim, batch),
            ),
            Mistake(
                "In the second loss the mean over latent dimensions makes the KL smaller, so its "
                "weight is below one.",
                lambda batch, pixels, dim: (pixels / dim, dim, 1 / batch),
            ),
        ),
        hints=(
            "The right loss sums each term over its event and averages both over the batch. By "
            "which factor is each term of each loss off?",
            "A factor in front of the whole loss moves no optimum. So divide the loss by the "
            "factor of its reconstruction; what then stands before the KL is the weight.",
            "The reconstruction is too small by Dₓ in the first loss, right in the second, and "
            "too large by B in the third. The KL is too small by D in the first two, and right in "
            "the third.",
        ),
        lesson="Each weight hangs on a size that should not matter, so each loss has another "
        "optimum when that size changes: with the third, a larger batch makes the code cheaper. "
        "The first charges too much for the code wherever Dₓ > D, which lowers its KL; the other "
        "two charge too little.",
    )
)
