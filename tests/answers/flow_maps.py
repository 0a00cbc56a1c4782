"""Chapter 5, flows."""

import torch


def bend(eps, u, w, b):
    return torch.tanh(torch.einsum("sbd,bd->sb", eps, w) + b)


def by_cosh(eps, u, w, b):
    s = torch.einsum("sbd,bd->sb", eps, w) + b
    return (1 + torch.einsum("bd,bd->b", u, w) / torch.cosh(s) ** 2).abs().log()


def by_matrix(eps, u, w, b):
    """The whole Jacobian, and its determinant."""
    slope = 1 - bend(eps, u, w, b) ** 2
    outer = u.unsqueeze(-1) * w.unsqueeze(-2)
    matrix = torch.eye(u.shape[-1]) + slope[..., None, None] * outer
    return torch.logdet(matrix)


def looped(eps, u, w, b):
    rows = []
    for draw in eps:
        row = []
        for e, uu, ww, bb in zip(draw, u, w, b, strict=True):
            h = torch.tanh(e @ ww + bb)
            row.append(torch.log(1 + (1 - h * h) * (uu @ ww)))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def diagonal_of_the_matrix(eps, u, w, b):
    slope = 1 - bend(eps, u, w, b) ** 2
    matrix = torch.eye(u.shape[-1]) + slope[..., None, None] * (u[:, :, None] * w[:, None, :])
    return matrix.diagonal(dim1=-2, dim2=-1).prod(-1).abs().log()


RIGHT = {"5.4": [by_cosh, by_matrix, looped]}

WRONG = {
    "5.4": [
        (lambda e, u, w, b: torch.log(1 + bend(e, u, w, b) * (w * u).sum(1)), "its slope belongs"),
        (lambda e, u, w, b: 1 + (1 - bend(e, u, w, b) ** 2) * (w * u).sum(1), "the determinant."),
        (lambda e, u, w, b: -by_cosh(e, u, w, b), "sign is turned round"),
        (lambda e, u, w, b: torch.log(1 + 1 - bend(e, u, w, b) ** 2), "factor w · u is missing"),
        (
            lambda e, u, w, b: torch.log(1 + (1 - bend(e, u, w, b)) * (w * u).sum(1)),
            "with the square",
        ),
        (diagonal_of_the_matrix, "diagonal of the Jacobian"),
        (lambda e, u, w, b: by_cosh(e, u, w, torch.zeros_like(b)), "offset b is missing"),
        (lambda e, u, w, b: by_cosh(e, u, w, b).sum(1), "sum runs over the batch"),
        # Further ones, without a sentence of their own
        (lambda e, u, w, b: by_cosh(e, u, w, b).detach(), "No gradient arrives at `eps`"),
        (lambda e, u, w, b: by_cosh(e, u.detach(), w, b), "No gradient arrives at `u`"),
        (
            lambda e, u, w, b: by_cosh(e, u, w, b) + 0.5 * (u - u.detach()).sum(1),
            "The gradient of the log-determinant for `u`",
        ),
        (lambda e, u, w, b: by_cosh(e, u, w, b).mean(0), "found the shape (4,)"),
        (lambda e, u, w, b: by_cosh(e, u, w, b).sum(), "found the shape ()"),
        (lambda e, u, w, b: torch.log1p((w * u).sum(1)).expand(len(e), -1), "expected"),
        (lambda e, u, w, b: (by_cosh(e, u, w, b).exp() + 1e-5).log(), "expected"),
        (lambda e, u, w, b: by_cosh(e, u, w, b).clamp(min=-5.0), "nearly folds"),
    ]
}
