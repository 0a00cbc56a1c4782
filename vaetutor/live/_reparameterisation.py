"""Moved noise, and two estimators of one gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributions as td
from matplotlib.axes import Axes
from torch import Tensor

from vaetutor._style import BLUE, INK, ORANGE
from vaetutor.live._base import Live, check, make, numbers


def reparameterisation(
    eps: Tensor, k: float, mu: float = 1.0, s: float = 1.0, *, alt: str, caption: str
) -> Live:
    r"""The same noise moved by two sliders, and the gradients that two estimators make of it.

    With :math:`z = \mu + s\,\varepsilon` and :math:`f(z) = (z - k)^2`, a draw gives the gradients
    in :math:`\mu`

    .. math:: 2 (z - k) \quad \text{(pathwise)}, \qquad
              (z - k)^2\, \frac{z - \mu}{s^2} \quad \text{(score function)},

    and the exact one is :math:`2 (\mu - k)`.

    Args:
        eps: standard normal draws, (S,), at least two.
        k: where f has its minimum, between -8 and 8.
        mu: where the mean starts, between -3 and 3.
        s: where the scale starts, between 0.2 and 2.
        alt: what a reader who does not see it needs to know.
        caption: the sentence below.

    Returns:
        The figure.

    Raises:
        ValueError: if a number is outside its range, there are fewer than two draws, or a text is
            empty.
    """
    draws = torch.as_tensor(numbers("eps", eps), dtype=torch.float64, device="cpu")
    if len(draws) < 2:
        raise ValueError("eps must hold at least two draws")
    for name, value, low, high in [("k", k, -8, 8), ("mu", mu, -3, 3), ("s", s, 0.2, 2)]:
        if not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, found {value}")

    def gradients(mu: float, s: float) -> dict[str, Tensor]:
        # By autograd, one leaf a draw.
        mean = torch.full_like(draws, mu).requires_grad_()
        q = td.Normal(mean, torch.full_like(draws, s))
        moved = mean + s * draws
        [path] = torch.autograd.grad((moved - k).square().sum(), mean)
        z = moved.detach()
        [score] = torch.autograd.grad(((z - k).square() * q.log_prob(z)).sum(), mean)
        return {"path": path, "score": score}

    def terms(mu: float, s: float) -> dict[str, float]:
        found = {"exact": 2 * (mu - k)}
        for name, gradient in gradients(mu, s).items():
            found[f"{name}_mean"] = gradient.mean().item()
            found[f"{name}_variance"] = gradient.var().item()
        return found

    places = [(mu, s), (-1.0, 0.5), (2.5, 1.8)]
    data = {
        "eps": draws.tolist(),
        "k": k,
        "mu": mu,
        "s": s,
        "checks": [check(terms(m, scale), 1e-5, mu=m, s=scale) for m, scale in places],
    }

    def draw(ax: Axes) -> None:
        looks = {"path": ("pathwise", BLUE, ""), "score": ("score function", ORANGE, "//")}
        for name, gradient in gradients(mu, s).items():
            label, colour, hatch = looks[name]
            kind: dict[str, Any] = {"color": colour, "hatch": hatch, "histtype": "step", "lw": 1.6}
            ax.hist(gradient, bins=60, label=label, **kind)
        ax.axvline(2 * (mu - k), color=INK, label="exact")
        ax.set(xlabel=r"gradient in $\mu$, one a draw", ylabel="draws")
        ax.legend(frameon=False)

    return make("reparameterisation", data, draw, alt, caption, 3.0)
