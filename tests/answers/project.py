"""The project that ends chapter 5."""

import math

import torch
import torch.distributions as td
from torch import nn

from vaetutor import DiagonalNormal, FullNormal, LowRankNormal, MixtureNormal, PlanarFlow


def scale_of(raw):
    return 1e-3 + nn.functional.softplus(raw)


def plain(lam, scale=scale_of):
    return td.Normal(lam[:, :2], scale(lam[:, 2:4]))


class Free(nn.Module):
    """A family by hand: how to draw, and its density."""

    def __init__(self, n_parameters, draw, log_prob):
        super().__init__()
        self.n_parameters, self.draw, self.log_prob = n_parameters, draw, log_prob

    def forward(self, lam):
        return ByHand(lam, self.draw, self.log_prob)


class ByHand(td.Distribution):
    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, lam, draw, log_prob):
        super().__init__(lam.shape[:1], torch.Size([2]), validate_args=False)
        self.lam, self.draw, self.density = lam, draw, log_prob

    def rsample(self, sample_shape=()):
        eps = torch.randn(*sample_shape, *self.batch_shape, 2)
        return self.draw(self.lam, eps)

    def log_prob(self, z):
        return self.density(self.lam, z)


def unit(u):
    return -0.5 * (u**2).sum(-1) - math.log(2 * math.pi)


# A Gaussian that is stretched in the middle of z2, z2 = m + s asinh(k u): two modes where k > 1.


def stretch(lam, u):
    s, k = scale_of(lam[:, 2:4]), scale_of(lam[:, 4])
    bent = torch.stack([u[..., 0], torch.asinh(k * u[..., 1])], -1)
    return lam[:, :2] + s * bent


def unstretch(lam, z):
    """The noise, and the log-determinant of `stretch`."""
    s, k = scale_of(lam[:, 2:4]), scale_of(lam[:, 4])
    v = (z - lam[:, :2]) / s
    u = torch.stack([v[..., 0], v[..., 1].sinh() / k], -1)
    return u, s.log().sum(-1) + k.log() - v[..., 1].cosh().log()


def unbent(lam, u):
    """As `stretch`, but divided by k."""
    s, k = scale_of(lam[:, 2:4]), scale_of(lam[:, 4])
    return lam[:, :2] + s * torch.stack([u[..., 0], torch.asinh(u[..., 1] / k)], -1)


def stretched_density(sign):
    def log_prob(lam, z):
        u, log_determinant = unstretch(lam, z)
        return unit(u) - sign * log_determinant

    return log_prob


class Mirrored(nn.Module):
    """A full Gaussian and its mirror image below the line of the microphones."""

    def __init__(self):
        super().__init__()
        self.bell = FullNormal(2)
        self.n_parameters = self.bell.n_parameters
        self.register_buffer("flip", torch.tensor([1.0, -1.0]))

    def forward(self, lam):
        return Twice(self.bell(lam), self.flip)


class Twice(td.Distribution):
    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, half, flip):
        super().__init__(half.batch_shape, half.event_shape, validate_args=False)
        self.half, self.flip = half, flip

    def rsample(self, sample_shape=()):
        z = self.half.rsample(sample_shape)
        heads = torch.rand(z.shape[:-1]).unsqueeze(-1) < 0.5
        return torch.where(heads, z, z * self.flip)

    def log_prob(self, z):
        images = torch.stack([self.half.log_prob(z), self.half.log_prob(z * self.flip)])
        return images.logsumexp(0) - math.log(2)


class Same(nn.Module):
    """Its own parameters and none of λ."""

    n_parameters = 4

    def __init__(self):
        super().__init__()
        self.free = nn.Parameter(torch.tensor([0.3, -0.2, 0.1, 0.4]))

    def forward(self, lam):
        return td.Independent(plain(self.free.expand(len(lam), 4)), 1)


class Built(nn.Module):
    def __init__(self, n_parameters, build):
        super().__init__()
        self.n_parameters, self.build = n_parameters, build

    def forward(self, lam):
        return self.build(lam)


def pair_density(constant):
    def log_prob(lam, z):
        scale = scale_of(lam[:, 4:6])
        parts = [
            unit((z - lam[:, :2] - side * lam[:, 2:4]) / scale) - scale.log().sum(-1)
            for side in (-1, 1)
        ]
        return torch.stack(parts).logsumexp(0) - constant

    return log_prob


def pair_draw(lam, eps):
    side = torch.randint(2, eps.shape[:-1]).unsqueeze(-1) * 2 - 1
    return lam[:, :2] + side * lam[:, 2:4] + scale_of(lam[:, 4:6]) * eps


def one_side(lam, eps):
    return lam[:, :2] + lam[:, 2:4] + scale_of(lam[:, 4:6]) * eps


def gauss_density(lam, z):
    return plain(lam).log_prob(z).sum(-1)


def gauss_draw(lam, eps):
    return lam[:, :2] + scale_of(lam[:, 2:4]) * eps


class Weighted(td.MixtureSameFamily):
    """Chooses a component, and lets the gradient flow through that one."""

    has_rsample = True

    def rsample(self, sample_shape=()):
        normal = self.component_distribution.base_dist
        chosen = nn.functional.one_hot(self.mixture_distribution.sample(sample_shape), 3)
        z = normal.loc + normal.scale * torch.randn(*chosen.shape, 2)
        return (chosen.unsqueeze(-1) * z).sum(-2)


def three(lam):
    logits, mean, raw = lam.split([3, 6, 6], -1)
    places = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    normal = td.Normal(mean.unflatten(-1, (3, 2)) + places, scale_of(raw.unflatten(-1, (3, 2))))
    return Weighted(td.Categorical(logits=logits), td.Independent(normal, 1))


class WithHole(Free):
    """Right near λ = 0, where it will be tested, and too large elsewhere."""

    def __init__(self):
        def log_prob(lam, z):
            far = (lam.abs().amax(-1) - 2.6).clamp(min=0)
            return pair_density(math.log(2))(lam, z) - far

        super().__init__(6, pair_draw, log_prob)


def seeded(lam, eps):
    torch.manual_seed(0)
    return gauss_draw(lam, torch.randn(eps.shape))


def in_place(lam):
    lam.data.clamp_(-0.05, 0.05)
    return td.Independent(plain(lam), 1)


def banana_draw(lam, u):
    bend = lam[:, 4] * (u[..., 0] ** 2 - 1)
    return gauss_draw(lam, torch.stack([u[..., 0], u[..., 1] + bend], -1))


def banana_density(lam, z):
    scale = scale_of(lam[:, 2:4])
    v = (z - lam[:, :2]) / scale
    u = torch.stack([v[..., 0], v[..., 1] - lam[:, 4] * (v[..., 0] ** 2 - 1)], -1)
    return unit(u) - scale.log().sum(-1)


RIGHT = {
    "5.10": [
        Mirrored,
        MixtureNormal(2, 2),
        PlanarFlow(2, 4),
        Free(5, stretch, stretched_density(1)),
        Free(6, pair_draw, pair_density(math.log(2))),
    ],
}

WRONG = {
    "5.10": [
        (
            Built(4, lambda lam: td.Laplace(lam[:, :2], scale_of(lam[:, 2:]))),
            "dimension is not",
        ),
        (Free(5, lambda lam, u: stretch(lam, u).detach(), stretched_density(1)), "no gradient to"),
        (Built(4, lambda lam: td.Independent(plain(lam, lambda r: r**2), 1)), "0 or ±30"),
        (Built(4, lambda lam: td.Independent(plain(lam, torch.sqrt), 1)), "0 or ±30"),
        (Same, "the same for every row"),
        (Free(7, pair_draw, pair_density(math.log(2))), "Some entries of λ get no gradient"),
        (Free(5, stretch, stretched_density(0)), "does not integrate to one"),
        (Free(5, stretch, stretched_density(-1)), "does not integrate to one"),
        (Free(6, pair_draw, pair_density(0.0)), "does not integrate to one"),
        (Free(6, one_side, pair_density(math.log(2))), "draws do not follow the density"),
        (Free(5, unbent, stretched_density(1)), "do not follow"),
        (
            Free(4, lambda lam, eps: gauss_draw(lam, eps[..., :1, :1]), gauss_density),
            "do not follow the density",
        ),
        (Built(15, three), "gradient is not that of the expectation"),
        (DiagonalNormal(2), "gains too little"),
        (LowRankNormal(2, 1), "gains too little"),
        (Free(5, banana_draw, banana_density), "gains too little"),
        # Not among the mistakes of the declaration:
        (WithHole, "where the density does not integrate to one"),
        (Free(4, seeded, gauss_density), "is a seed set"),
        (Built(4, in_place), "changes its argument `lam`"),
        (
            Built(4, lambda lam: td.Independent(plain(lam - lam.mean(0)), 1)),
            "must give what it gives in a batch",
        ),
        (Built(4, lambda lam: td.Independent(td.Normal(lam, 1.0), 1)), "(5,) and (4,)"),
        (Built(4, lambda lam: plain(lam).rsample()), "found Tensor"),
        (Built("four", plain), "`n_parameters` must say"),
        (nn.Linear(4, 2), "`n_parameters` must say"),
        (lambda lam: td.Independent(plain(lam), 1), "an `nn.Module`"),
    ],
}
