"""What all tests share: the device, float64, a fixed seed and a few distributions.

Statistical tests compare with a standard error and fail beyond Z_LIMIT standard errors. For one
comparison that is a false alarm in 1.7 million; the seed is fixed, so a test that passes keeps
passing until the code changes.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.distributions as td
from torch import Tensor

Z_LIMIT = 5.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="run the tests on this device (cpu, cuda)")


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Make the wanted device the default, or skip with a reason."""
    chosen = torch.device(request.config.getoption("--device", "cpu"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    with chosen:
        yield chosen


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """Run the test with float64 as default; oracles are compared at 1e-8 or better."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class FixedNoise(td.Independent):
    """A diagonal normal that draws z = loc + scale * eps from noise given in advance.

    Shared noise makes bounds comparable to rounding: over batches and singles, over chunk sizes,
    over precisions and devices. The noise (S, B, D) is handed out from the front.
    """

    def __init__(self, loc: Tensor, scale: Tensor, eps: Tensor) -> None:
        super().__init__(td.Normal(loc, scale), 1)
        self.eps, self.used = eps, 0

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        (n,) = sample_shape
        eps = self.eps[self.used : self.used + n]
        assert len(eps) == n, "asked for more draws than there is noise"
        self.used += n
        return self.base_dist.loc + self.base_dist.scale * eps


def z_score(draws: Tensor, truth: Tensor | float) -> float:
    """The largest |mean - truth| in standard errors; draws along the first axis."""
    error = draws.std(0) / len(draws) ** 0.5
    return ((draws.mean(0) - truth).abs() / error).max().item()
