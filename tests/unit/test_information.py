"""The estimators on Gaussians whose mutual information is known, and what training with them does."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from perceptune.methods.parts.mutual_information import Club, InfoNCE, LeaveOneOut, club, info_nce, leave_one_out

BATCH = 256


def pair(rows: int, correlation: float, dimensions: int) -> tuple[Tensor, Tensor]:
    """Two Gaussians, correlated dimension by dimension."""
    x = torch.randn(rows, dimensions)
    return x, correlation * x + math.sqrt(1 - correlation**2) * torch.randn(rows, dimensions)


def truth(correlation: float, dimensions: int) -> float:
    """Their mutual information in nats."""
    return -0.5 * dimensions * math.log(1 - correlation**2)


def fitted(parameters: list[torch.nn.Parameter], loss: Callable[[], Tensor], steps: int, lr: float = 3e-3) -> None:
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def told(kind: type[Club], correlation: float, dimensions: int, *, steps: int, rows: int, batches: int) -> float:
    """An upper bound, its q learnt in so many steps, as the mean over batches of so many rows."""
    torch.manual_seed(0)
    bound = kind(dimensions, dimensions, hidden=32)

    def loss() -> Tensor:
        x, z = pair(BATCH, correlation, dimensions)
        return bound.fit(z, x)

    fitted(list(bound.parameters()), loss, steps)
    with torch.no_grad():
        pairs = [pair(rows, correlation, dimensions) for _ in range(batches)]
        return float(torch.stack([bound(z, x) for x, z in pairs]).mean())


@pytest.mark.parametrize(("correlation", "dimensions"), [(0.8, 1), (0.8, 2)])
def test_info_nce_comes_close_far_below_the_logarithm_of_the_batch(correlation: float, dimensions: int) -> None:
    """Within 15 % of 0.51 and 1.02 nats; log 256 is 5.5."""
    torch.manual_seed(0)
    bound = InfoNCE(dimensions, dimensions, hidden=64, size=16)
    fitted(list(bound.parameters()), lambda: -bound(*pair(BATCH, correlation, dimensions)), 250)
    with torch.no_grad():
        found = torch.stack([bound(*pair(BATCH, correlation, dimensions)) for _ in range(40)]).mean()
    assert float(found) == pytest.approx(truth(correlation, dimensions), rel=0.15)


def test_info_nce_cannot_exceed_the_logarithm_of_the_batch() -> None:
    assert float(info_nce(100 * torch.eye(8))) == pytest.approx(math.log(8), rel=1e-4)
    assert float(info_nce(torch.ones(8, 8))) == pytest.approx(0, abs=1e-6)
    scores = torch.full((1, 1), 3.0, requires_grad=True)
    info_nce(scores).backward()
    assert float(info_nce(scores).detach()) == 0
    assert float(scores.grad) == 0  # type: ignore[arg-type]


def test_info_nce_is_what_its_formula_says() -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 5)
    rows = [math.log(scores[i, i].exp() / scores[i].exp().mean()) for i in range(5)]
    assert float(info_nce(scores)) == pytest.approx(sum(rows) / 5, rel=1e-5)


@pytest.mark.parametrize("correlation", [0.3, 0.8])
def test_club_is_its_own_closed_form_which_lies_above_the_truth(correlation: float) -> None:
    """With q exact CLUB of a pair of Gaussians is c^2 / (1 - c^2): within 15 % of that, never below the truth."""
    dimensions = 2
    found = told(Club, correlation, dimensions, steps=300, rows=2000, batches=5)
    assert found == pytest.approx(dimensions * correlation**2 / (1 - correlation**2), rel=0.15)
    assert found > truth(correlation, dimensions)


def test_club_without_a_tensor_of_all_pairs_is_the_sum_over_all_pairs() -> None:
    torch.manual_seed(0)
    z, mean, log_variance = torch.randn(6, 3) + 5, torch.randn(6, 3) + 5, torch.randn(6, 3)

    def log_q(i: int, j: int) -> float:
        return float(-0.5 * ((z[j] - mean[i]).square() / log_variance[i].exp() + log_variance[i]).sum())

    own = sum(log_q(i, i) for i in range(6)) / 6
    others = sum(log_q(i, j) for i in range(6) for j in range(6) if i != j) / 30
    assert float(club(z, mean, log_variance)) == pytest.approx(own - others, rel=1e-4)
    assert float(club(z[:1], mean[:1], log_variance[:1])) == 0


@pytest.mark.parametrize("correlation", [0.5, 0.8])
def test_leave_one_out_comes_close(correlation: float) -> None:
    """Within 15 % of 0.29 and 1.02 nats, with q learnt."""
    dimensions = 2
    found = told(LeaveOneOut, correlation, dimensions, steps=400, rows=BATCH, batches=40)
    assert found == pytest.approx(truth(correlation, dimensions), rel=0.15)


def test_leave_one_out_is_what_its_formula_says() -> None:
    torch.manual_seed(1)
    z, mean, log_variance = (torch.randn(6, 3) for _ in range(3))
    density = [torch.distributions.Normal(m, (0.5 * v).exp()) for m, v in zip(mean, log_variance, strict=True)]
    expected = 0.0
    for i, row in enumerate(z):
        others = torch.stack([density[j].log_prob(row).sum() for j in range(6) if j != i])
        expected += float(density[i].log_prob(row).sum() - others.logsumexp(0) + math.log(5)) / 6
    assert float(leave_one_out(z, mean, log_variance)) == pytest.approx(expected, rel=1e-4)
    assert float(leave_one_out(z[:1], mean[:1], log_variance[:1])) == 0


@pytest.mark.parametrize("kind", [Club, LeaveOneOut])
def test_the_bound_moves_z_and_the_fit_moves_q(kind: type[Club]) -> None:
    torch.manual_seed(0)
    bound, x, z = kind(2, 2, hidden=4), torch.randn(8, 2), torch.randn(8, 2, requires_grad=True)
    bound(z, x).backward()
    assert z.grad is not None
    assert all(parameter.grad is None for parameter in bound.parameters())
    z.grad = None
    bound.fit(z, x).backward()
    assert z.grad is None
    assert all(parameter.grad is not None for parameter in bound.parameters())


@pytest.mark.parametrize(("kind", "weight"), [(Club, 0.2), (LeaveOneOut, 0.8)])
def test_training_lowers_what_z_tells_of_x_and_raises_what_it_tells_of_y(kind: type[Club], weight: float) -> None:
    """x = (signal, nuisance), y = signal, z = W x + noise; both informations of W are known exactly.

    What z tells of y it tells of x, too: where the bound is no multiple of the truth, more weight is needed.
    """
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.tensor([[0.3, 1.5], [0.1, -1.5]]))

    def z_of(x: Tensor) -> Tensor:
        return x @ weights.T + 0.5 * torch.randn(len(x), 2)

    def exact() -> tuple[float, float]:
        """I(Z;Y) and I(Z;X): z given y has the nuisance and the noise left, z given x the noise alone."""
        with torch.no_grad():
            noise = 0.25 * torch.eye(2)
            given_y = noise + torch.outer(weights[:, 1], weights[:, 1])
            whole = noise + weights @ weights.T
            return (0.5 * float(whole.logdet() - given_y.logdet()), 0.5 * float(whole.logdet() - noise.logdet()))

    lower, upper = InfoNCE(2, 1, hidden=32, size=16), kind(2, 2, hidden=32)
    before = exact()

    def loss() -> Tensor:
        x = torch.randn(128, 2)
        z = z_of(x)
        return -(lower(z, x[:, :1]) - weight * upper(z, x)) + upper.fit(z, x)

    fitted([weights, *lower.parameters(), *upper.parameters()], loss, 300, lr=1e-2)
    after = exact()
    assert after[0] > before[0] + 0.1
    assert after[1] < before[1] - 0.1
