"""Exercises of chapter 5, the gaps of a trained VAE."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vaetutor.exercises._attempt import Attempt
from vaetutor.exercises._declare import Exercise, Mistake, register

PAGE = "05d_gaps"


# 5.7


def gap_table(log_p: Tensor, best: Tensor, encoder: Tensor) -> Tensor:
    gaps = torch.stack([log_p - best, best - encoder, log_p - encoder])  # (3, N)
    error = gaps.std(1) / gaps.shape[1] ** 0.5
    return torch.stack([gaps.mean(1), error], 1)


def _values(attempt: Attempt, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Digits that differ by tens of nats, with gaps that depend on each other.

    Two single gaps are a little below zero, as the noise of draws makes them.
    """
    noise = torch.rand(3, n, generator=attempt.generator)
    log_p = -90 + 30 * torch.randn(n, generator=attempt.generator)
    first = 0.2 + noise[0]
    second = 0.5 + 2 * noise[0] + 1.5 * noise[1] ** 2
    first[0], second[1] = -0.1 - 0.1 * noise[2, :2]
    return log_p, log_p - first, log_p - first - second


def _judge_gap_table(attempt: Attempt) -> None:
    for n in (9, 2, 400):
        args = _values(attempt, n)
        log_p, best, encoder = (value.numpy() for value in args)
        rows = []
        for each in (log_p - best, best - encoder, log_p - encoder):
            mean = sum(each) / n
            variance = sum((each - mean) ** 2) / (n - 1)
            rows.append([mean, np.sqrt(variance / n)])
        found = attempt(*args)
        if callable(to_numpy := getattr(found, "to_numpy", None)):  # a data frame
            found = to_numpy()
        attempt.close(found, torch.tensor(rows), f"the table for {n} digits")


def _unpaired(log_p: Tensor, best: Tensor, encoder: Tensor) -> Tensor:
    table = gap_table(log_p, best, encoder)
    a, b, c = (value.var() / len(value) for value in (log_p, best, encoder))
    return torch.stack([table[:, 0], torch.stack([a + b, b + c, a + c]).sqrt()], 1)


def _in_quadrature(log_p: Tensor, best: Tensor, encoder: Tensor) -> Tensor:
    table = gap_table(log_p, best, encoder)
    table[2, 1] = (table[0, 1] ** 2 + table[1, 1] ** 2).sqrt()
    return table


def _population(log_p: Tensor, best: Tensor, encoder: Tensor) -> Tensor:
    n = len(log_p)
    return gap_table(log_p, best, encoder) * torch.tensor([1.0, ((n - 1) / n) ** 0.5])


def _cut_off(log_p: Tensor, best: Tensor, encoder: Tensor) -> Tensor:
    gaps = torch.stack([log_p - best, best - encoder, log_p - encoder]).clamp(min=0.0)
    return torch.stack([gaps.mean(1), gaps.std(1) / gaps.shape[1] ** 0.5], 1)


register(
    Exercise(
        "5.7",
        title="Which gap, and how sure?",
        page=PAGE,
        kind="function",
        difficulty="easy",
        minutes=10,
        solution=gap_table,
        judge=_judge_gap_table,
        mistakes=(
            Mistake(
                "The errors are those of unpaired values, from the variances of the two bounds. "
                "Both belong to the same digits, and what makes a digit hard moves both: take "
                "the difference for each digit first, and then its spread.",
                _unpaired,
            ),
            Mistake(
                "These are standard deviations, the spread of the digits. The error of their "
                "mean is smaller by the square root of N.",
                lambda log_p, best, encoder: (
                    gap_table(log_p, best, encoder) * torch.tensor([1.0, len(log_p) ** 0.5])
                ),
            ),
            Mistake(
                "The standard deviation has been divided by N. The error of a mean falls with "
                "the square root of N: four times as many digits halve it.",
                lambda log_p, best, encoder: (
                    gap_table(log_p, best, encoder) * torch.tensor([1.0, len(log_p) ** -0.5])
                ),
            ),
            Mistake(
                "Single gaps below zero have been cut off. They are the noise of the draws, and "
                "without them the mean is too large.",
                _cut_off,
            ),
            Mistake(
                "The sign is turned round. A gap is what is lost: the larger quantity less the "
                "smaller one.",
                lambda log_p, best, encoder: (
                    gap_table(log_p, best, encoder) * torch.tensor([-1.0, 1.0])
                ),
            ),
            Mistake(
                "The error of the total comes from adding the other two in quadrature, which is "
                "right for independent numbers. A digit that is hard for the family may be hard "
                "for the encoder as well: take the spread of the total itself.",
                _in_quadrature,
            ),
            Mistake(
                "The first two rows have changed places. What the family loses is the "
                "approximation gap, and what the encoder loses on top is the amortisation gap.",
                lambda log_p, best, encoder: gap_table(log_p, best, encoder)[[1, 0, 2]],
            ),
            Mistake(
                "The variance has been divided by N. The prompt asks for the sample standard "
                "deviation, with N - 1, since the mean comes from the same digits.",
                _population,
            ),
        ),
        hints=(
            "Each gap is a difference of two of the three arguments. Which, in the order of the "
            "rows? The larger one comes first.",
            "Take the difference digit by digit before anything else: you then have three "
            "tensors of N gaps. What is the standard error of a mean of N numbers?",
            "For each of the three: the mean, and the sample standard deviation over the square "
            "root of N.",
        ),
        lesson="The two gaps add up to the total, and their errors do not. The reference cancels "
        "in the amortisation gap: a log p that is estimated too low lowers the other two rows "
        "alone. Neither gap can be negative, but for the noise of the draws: a first row below "
        "zero by more than that points at the reference, and a second row at the search for the "
        "best member, which has missed the one that the encoder found.",
    )
)
