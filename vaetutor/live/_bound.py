"""One latent number, its posterior and a Gaussian q."""

from __future__ import annotations

import torch
import torch.distributions as td
from matplotlib.axes import Axes
from torch import Tensor

from vaetutor._style import BLUE, GREY, INK
from vaetutor.live._base import Live, check, make, numbers

TAIL = 6.5  # standard deviations of q that have to lie on the grid


def bound(
    z: Tensor,
    log_joint: Tensor,
    mu: float = 0.0,
    sd: float = 1.0,
    *,
    view: tuple[float, float],
    alt: str,
    caption: str,
) -> Live:
    r"""One latent number: the posterior, a Gaussian q to drag, and the two parts of log p(x).

    .. math:: \log p(x) = \mathrm{ELBO}(q) + \mathrm{KL}(q \,\|\, p(z \mid x)),
              \qquad q = \mathcal{N}(\mu, \sigma^2).

    Both terms are sums over the grid, which must reach so far that q has its mass on it for every
    position of the sliders: the sliders stop where 6.5 standard deviations would leave it.

    Args:
        z: an evenly spaced, increasing grid, (n,).
        log_joint: log p(x, z) on it, (n,), nats, for one x.
        mu: where the mean of q starts.
        sd: where its standard deviation starts.
        view: the interval of z that is drawn; the mean stays inside.
        alt: what a reader who does not see it needs to know.
        caption: the sentence below.

    Returns:
        The figure.

    Raises:
        ValueError: if the grid is not even, shapes disagree, values are not finite, the view
            leaves no room for q on the grid, or a text is empty.
    """
    z, log_joint = (torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in (z, log_joint))
    step = z.diff()
    if z.dim() != 1 or len(z) < 5 or not torch.allclose(step, step[:1], rtol=1e-4) or step[0] <= 0:
        raise ValueError("z must be an evenly spaced, increasing grid of at least 5 numbers")
    if log_joint.shape != z.shape:
        raise ValueError(
            f"log_joint must have one value for each z, found shapes {tuple(log_joint.shape)} "
            f"and {tuple(z.shape)}"
        )
    low, high = view
    room = min(low - z[0].item(), z[-1].item() - high)
    # Below 1.5 spacings a sum over the grid is no longer the integral.
    limits = {"mu": [low, high], "sd": [1.5 * step[0].item(), min(room / TAIL, high - low)]}
    if not limits["sd"][0] < sd <= limits["sd"][1] or not low <= mu <= high:
        raise ValueError(
            f"q must start with its mean in the view {view} and its scale within "
            f"{limits['sd']}, found mu = {mu} and sd = {sd}: widen the grid of z"
        )
    log_evidence = (log_joint.logsumexp(0) + step[0].log()).item()

    def terms(mu: float, sd: float) -> dict[str, float]:
        log_q = td.Normal(mu, sd).log_prob(z)
        mass = log_q.exp() * step[0]
        elbo = (mass * (log_joint - log_q)).sum()
        kl = (mass * (log_q - log_joint + log_evidence)).sum()
        return {"elbo": elbo.item(), "kl": kl.item(), "total": log_evidence}

    places = [(mu, sd), (mu, 0.7 * sd), (0.75 * low + 0.25 * high, 0.8 * sd)]
    data = {
        "z": numbers("z", z),
        "log_joint": numbers("log_joint", log_joint, 10),
        "view": [low, high],
        "mu": mu,
        "sd": sd,
        "limits": limits,
        "checks": [check(terms(m, s), mu=m, sd=s) for m, s in places],
    }
    posterior = (log_joint - log_evidence).exp()
    q = td.Normal(mu, sd).log_prob(z).exp()

    def draw(ax: Axes) -> None:
        ax.fill_between(z, posterior, color=GREY, alpha=0.3, lw=0)
        ax.plot(z, posterior, color=INK, label="posterior")
        ax.plot(z, q, "--", color=BLUE, label="q")
        ax.set(xlim=view, ylim=(0, None), xlabel="z", ylabel="density")
        found = terms(mu, sd)
        ax.set_title(
            f"ELBO {found['elbo']:.3f} + KL {found['kl']:.3f} = log p(x) {found['total']:.3f}"
        )
        ax.legend(frameon=False)

    return make("bound", data, draw, alt, caption, 3.0)
