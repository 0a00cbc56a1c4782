r"""A VAE for sequences (chapter: sequences).

An observation is a sequence :math:`x = (x_1, \dots, x_T)`, and so is its latent variable. The
model is a Markov chain seen through a decoder,

.. math:: p(x, z) = p(z_1) \prod_{t=2}^{T} p_\theta(z_t \mid z_{t-1})
          \prod_{t=1}^{T} p_\theta(x_t \mid z_t),

and its posterior factorises as :math:`\prod_t p(z_t \mid z_{t-1}, x_{t:T})`. An encoder that reads
the sequence from its end to its beginning can give a q of the same form.

A batch of sequences of different lengths is one tensor, shape (B, T, d + 1): the values, zeros
after the end of a sequence, and a last column that is 1 where there is a step and 0 in the
padding. :func:`pad` makes it. The padding adds nothing to a density, a bound or a gradient,
whatever finite values stand there. The latent variable is flat, (S, B, T D), like all events of
the package.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import _checks
from vaetutor.markov import MarkovNormal, NormalChain, ends_once

Direction = Literal["backward", "forward", "both"]


def pad(sequences: Iterable[Tensor]) -> Tensor:
    """Put sequences of different lengths into one tensor that says where each of them ends.

    Args:
        sequences: tensors (T_i, d), of one d, dtype and device.

    Returns:
        Tensor (B, T, d + 1) with T the largest of the lengths. The last column is 1 at the steps
        of a sequence and 0 in the padding, whose values are zero.

    Raises:
        ValueError: if there is no sequence, one is empty, not finite or not (T_i, d), or they
            differ in d, dtype or device.

    >>> pad([torch.tensor([[3.0]]), torch.tensor([[4.0], [5.0]])])
    tensor([[[3., 1.],
             [0., 0.]],
            [[4., 1.],
             [5., 1.]]])
    """
    usable = isinstance(sequences, Iterable) and not isinstance(sequences, Tensor)
    sequences = list(sequences) if usable else []
    if not sequences:
        raise ValueError("sequences must be a list of at least one tensor of shape (T_i, d)")
    for i, x in enumerate(sequences):
        _checks.batch(f"sequences[{i}]", x)
        if x.ndim != 2 or _kind(x) != _kind(sequences[0]):
            raise ValueError(
                "sequences must have shape (T_i, d) with one d, one dtype and one device, found "
                f"{_kind(sequences[0])} in the first and {_kind(x)} in number {i}, of shape "
                f"{tuple(x.shape)}"
            )
    marked = [torch.cat([x, x.new_ones(len(x), 1)], dim=1) for x in sequences]
    return nn.utils.rnn.pad_sequence(marked, batch_first=True)


def _kind(x: Tensor) -> tuple[int, torch.dtype, torch.device]:
    return x.shape[-1], x.dtype, x.device


def observed_steps(x: Tensor) -> Tensor:
    """Where the steps of padded sequences are: the last column of x, checked.

    Args:
        x: padded sequences (B, T, d + 1), as :func:`pad` makes them.

    Returns:
        Boolean tensor (B, T).

    Raises:
        ValueError: if x is empty or not finite, or its last column is not ones followed by zeros
            with at least a single one.
    """
    _checks.batch("x", x)
    if x.ndim != 3 or x.shape[2] < 2:
        raise ValueError(
            f"x must have shape (B, T, d + 1), values and a last column that marks the steps, "
            f"found {tuple(x.shape)}: make it by pad"
        )
    marks = x[..., -1]
    if _checks.enabled() and not ends_once(marks):
        raise ValueError(
            "the last column of x must be 1 at the steps of a sequence, at least one, and 0 "
            "after its end, found other values or a gap: make x by pad"
        )
    return marks > 0.5


class RecurrentEncoder(nn.Module):
    r"""A recurrent network that reads a sequence and gives a distribution over z.

    .. math:: q_\phi(z \mid x) = \prod_{t=1}^{T} \mathcal{N}\big(z_t;\ m(h_t) + a(h_t) \odot
              z_{t-1},\ \operatorname{diag} s^2(h_t)\big),

    where the state :math:`h_t` of a gated recurrent unit depends on

    * :math:`x_{t:T}` if it reads ``"backward"``, which is all that the posterior of a Markov chain
      needs beside :math:`z_{t-1}`;
    * :math:`x_{1:t}` if it reads ``"forward"``: what can be done while the sequence goes on;
    * all of x if it reads ``"both"`` ways with two units.

    Without gates, :math:`a = 0`, q is mean-field. A mean-field factor has no :math:`z_{t-1}` to
    lean on and needs all of x: take ``"both"``.

    Args:
        width: d, the values of one step.
        hidden: size of the recurrent state, of each unit.
        dim: D, latent dimensions of a step.
        direction: ``"backward"``, ``"forward"`` or ``"both"``.
        gates: whether z_t leans on :math:`z_{t-1}`.

    Called with x (B, T, d + 1), it returns a distribution with batch shape (B,) and event shape
    (T D,).

    Raises:
        ValueError: for sizes below 1 or an unknown direction; when called, for an x that
            :func:`observed_steps` refuses or of another width.

    Source: Krishnan et al. (2017), arXiv:1609.09869, section 4; the unit of Cho et al. (2014),
    arXiv:1406.1078.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        dim: int,
        direction: Direction = "backward",
        gates: bool = True,
    ) -> None:
        super().__init__()
        for name, size in (("width", width), ("hidden", hidden), ("dim", dim)):
            _checks.count(name, size)
        if direction not in get_args(Direction):
            raise ValueError(
                f"direction must be one of {', '.join(get_args(Direction))}, found {direction!r}"
            )
        self.width, self.dim, self.gates = width, dim, gates
        self.forwards, self.backwards = direction != "backward", direction != "forward"
        n_units = self.forwards + self.backwards
        self.units = nn.ModuleList(nn.GRU(width, hidden, batch_first=True) for _ in range(n_units))
        self.head = nn.Linear(n_units * hidden, (3 if gates else 2) * dim)

    def forward(self, x: Tensor) -> NormalChain:
        observed = observed_steps(x)
        if x.shape[2] != self.width + 1:
            raise ValueError(
                f"x must have shape (B, T, {self.width + 1}) for this encoder, found "
                f"{tuple(x.shape)}"
            )
        lam = self.head(self._states(x[..., :-1], observed))
        loc, raw, *gate = lam.split(self.dim, dim=-1)
        gate = gate[0] if gate else torch.zeros_like(loc)
        parts = loc, raw, gate[:, 1:]
        flat = torch.cat([part.flatten(1) for part in parts], dim=1)
        return MarkovNormal(x.shape[1], self.dim)(flat, observed)

    def _states(self, x: Tensor, observed: Tensor) -> Tensor:
        """The states of all units, (B, T, H). No state at a step has seen the padding."""
        units, states = iter(self.units), []
        if self.forwards:
            states.append(next(units)(x)[0])
        if self.backwards:
            reverse = _reversal(observed)
            states.append(_take(next(units)(_take(x, reverse))[0], reverse))
        return torch.cat(states, dim=-1)


def _reversal(observed: Tensor) -> Tensor:
    """The order of steps that reads each sequence backwards and leaves its padding behind it."""
    step = torch.arange(observed.shape[1], device=observed.device)
    last = observed.sum(1, keepdim=True) - 1
    return torch.where(observed, last - step, step)


def _take(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order.unsqueeze(-1).expand_as(x))


class SequenceVAE(nn.Module):
    r"""Variational autoencoder for sequences: a latent Markov chain, seen step by step.

    .. math:: p_\theta(x, z) = p(z_1) \prod_{t=2}^{T} p_\theta(z_t \mid z_{t-1})
              \prod_{t=1}^{T} p_\theta(x_t \mid z_t).

    The latent variable of a sequence of T steps has T D numbers, so its prior depends on x by the
    length, and the model offers ``log_prior(x, z)`` where a VAE has ``prior()``. Bounds, training
    and evaluation take both; the KL is then estimated by draws.

    Args:
        encoder: module, x (B, T, d + 1) to a distribution with event shape (T D,) that is zero in
            the padding, such as :class:`RecurrentEncoder`.
        decoder: module, z (..., D) to a distribution over one step, event shape (d,).
        transition: module, z (..., D) to a distribution over the next z, event shape (D,).
        initial: module, called with nothing, to a distribution over the first z, event shape (D,).

    Source: Krishnan et al. (2017), arXiv:1609.09869; Bayer and Osendorfer (2014),
    arXiv:1411.7610, for an early recurrent VAE.

    >>> from vaetutor import DiagonalNormal, Normal, StandardNormal, mlp
    >>> decoder = nn.Sequential(mlp(2, 3), Normal(3))
    >>> transition = nn.Sequential(mlp(2, 4), DiagonalNormal(2))
    >>> model = SequenceVAE(RecurrentEncoder(3, 8, 2), decoder, transition, StandardNormal(2))
    >>> x = pad([torch.zeros(5, 3), torch.zeros(4, 3)])
    >>> model.encoder(x).event_shape, model.log_joint(x, torch.zeros(7, 2, 10)).shape
    (torch.Size([10]), torch.Size([7, 2]))
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, transition: nn.Module, initial: nn.Module
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.transition = transition
        self.initial = initial

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Decoder log-density :math:`\sum_t \log p_\theta(x_t \mid z_t)`.

        Args:
            x: padded sequences (B, T, d + 1).
            z: latent draws (S, B, T D), or (S, 1, T D) for the same z with every x.

        Returns:
            Tensor (S, B), nats, summed over the steps of each sequence.

        Raises:
            ValueError: if x is not as :func:`pad` makes it, of another width or outside the
                support of the decoder, or z does not hold draws for its B rows and T steps.
        """
        observed = observed_steps(x)
        p = self.decoder(self._steps(x, z))
        values = torch.where(observed.unsqueeze(-1), x[..., :-1], 0.0)  # or gradients overflow
        if values.shape[2:] != p.event_shape:
            raise ValueError(
                f"x must have shape (B, T, {p.event_shape.numel() + 1}) for this decoder, values "
                f"and a last column that marks the steps, found {tuple(x.shape)}"
            )
        return torch.where(observed, p.log_prob(values), 0.0).sum(-1)

    def log_prior(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Prior log-density :math:`\log p(z_1) + \sum_{t \ge 2} \log p_\theta(z_t \mid z_{t-1})`.

        Args:
            x, z: as :meth:`log_likelihood`. Of x only the lengths are used.

        Returns:
            Tensor (S, B), nats, summed over the steps of each sequence.

        Raises:
            ValueError: as :meth:`log_likelihood`; if z is not zero in the padding, for it comes
                from a q that counts latent variables where there are none; or if the transition
                has another event shape than the first prior.
        """
        observed = observed_steps(x)
        z = self._steps(x, z)
        if _checks.enabled() and (z * ~observed.unsqueeze(-1)).any():
            raise ValueError(
                "z must be zero in the padding of x, found other values: draw it from a q that "
                "knows the lengths, such as that of RecurrentEncoder"
            )
        log_p = self.initial().log_prob(z[..., :1, :])
        if z.shape[2] > 1:
            later = self._next(z[..., :-1, :]).log_prob(z[..., 1:, :])
            log_p = torch.cat([log_p, later], dim=-1)
        return torch.where(observed, log_p, 0.0).sum(-1)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Joint log-density :math:`\log p_\theta(x \mid z) + \log p_\theta(z)`.

        Args:
            x, z: as :meth:`log_likelihood`.

        Returns:
            Tensor (S, B), nats.

        Raises:
            ValueError: as :meth:`log_likelihood` and :meth:`log_prior`.
        """
        return self.log_likelihood(x, z) + self.log_prior(x, z)

    @torch.no_grad()
    def sample(self, n: int, steps: int, mean: bool = False) -> Tensor:
        r"""Draw from the model: the chain z, then each :math:`x_t \sim p_\theta(x_t \mid z_t)`.

        Args:
            n: number of sequences.
            steps: length T of all of them.
            mean: return :math:`\mathbb{E}[x_t \mid z_t]` instead of a draw of x.

        Returns:
            Tensor (n, T, d + 1), in the form of :func:`pad`.

        Raises:
            ValueError: for n or steps below 1, or a transition of another event shape.
        """
        z = [self.initial().sample((_checks.count("n", n),))]
        for _ in range(1, _checks.count("steps", steps)):
            z.append(self._next(z[-1]).sample())
        p = self.decoder(torch.stack(z, dim=1))
        x = p.mean if mean else p.sample()
        return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)

    @torch.no_grad()
    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless x has a likelihood under the decoder; decodes a single z."""
        dim = self.initial().event_shape.numel()
        steps = observed_steps(x).shape[1]
        self.log_likelihood(x, x.new_zeros(1, 1, steps * dim))

    def _next(self, z: Tensor) -> td.Distribution:
        p, expected = self.transition(z), self.initial().event_shape
        if p.event_shape != expected:  # or it broadcasts, silently
            raise ValueError(
                f"transition must give event shape {tuple(expected)}, that of the first prior, "
                f"found {tuple(p.event_shape)}"
            )
        return p

    def _steps(self, x: Tensor, z: Tensor) -> Tensor:
        """z as (S, B, T, D)."""
        _checks.draws(x, z, shared=True)
        dim = self.initial().event_shape.numel()
        if z.shape[2] != x.shape[1] * dim:
            raise ValueError(
                f"z must have shape (S, B, {x.shape[1] * dim}) for {x.shape[1]} steps of {dim} "
                f"latent dimensions, found {tuple(z.shape)}"
            )
        return z.unflatten(-1, (-1, dim))
