"""Estimators of mutual information on batches, in nats: functions and modules on tensors, without a model.

`InfoNCE` is a lower bound, to be maximised; `Club` and `LeaveOneOut` are upper bounds, to be minimised. Each is
trained while it is used.
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

LOG_VARIANCE = 6.0  # bounds of a Gaussian's log-variance


def info_nce(scores: Tensor) -> Tensor:
    """Compute InfoNCE (van den Oord et al., 2018) of scores (B, B), row i's partner in column i: a scalar.

    A lower bound of the mutual information that cannot exceed log B; 0 for a batch of one row.
    """
    return scores.diagonal().mean() - scores.logsumexp(dim=1).mean() + math.log(len(scores))


class InfoNCE(nn.Module):
    """I(Z;Y) by a normalised score: the cosine of learnt projections of z and y, over a temperature.

    `hidden` is the width inside each projection, `size` the number of features that are compared.
    """

    def __init__(
        self, z_size: int, y_size: int, *, hidden: int = 256, size: int = 128, temperature: float = 0.07
    ) -> None:  # fmt: skip
        super().__init__()
        self.temperature = temperature
        self.z = _mlp(z_size, hidden, size)
        self.y = _mlp(y_size, hidden, size)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the bound for rows z (B, z_size) and y (B, y_size); each row's negatives are the other rows."""
        left, right = (functional.normalize(part, dim=-1) for part in (self.z(z), self.y(y)))
        return info_nce(left @ right.T / self.temperature)


class Gaussian(nn.Module):
    """q(z|x): mean and logarithm of the variance of each dimension of z, learnt functions of x."""

    def __init__(self, x_size: int, z_size: int, hidden: int) -> None:
        super().__init__()
        self.mean = _mlp(x_size, hidden, z_size)
        self.log_variance = _mlp(x_size, hidden, z_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, (B, z_size) each, for x (B, x_size)."""
        return self.mean(x), LOG_VARIANCE * torch.tanh(self.log_variance(x) / LOG_VARIANCE)


def club(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute CLUB (Cheng et al., 2020) of z (B, d) under Gaussians (B, d): a scalar; 0 for a batch of one row.

    The mean of log q(z_i | x_i) - log q(z_j | x_i) over all rows i and all other rows j.
    """
    rows = len(z)
    if rows == 1:
        return (z * 0).sum()
    pairs = _distances(z, mean, log_variance)
    others = (pairs.sum(1) - pairs.diagonal()) / (rows - 1)
    return 0.5 * (others - pairs.diagonal()).mean()


def leave_one_out(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute the leave-one-out bound (Poole et al., 2019) of z (B, d) under Gaussians (B, d); 0 for a single row.

    The mean of log q(z_i | x_i) - log mean_j q(z_i | x_j) over all rows i, j being the other rows.
    """
    rows = len(z)
    if rows == 1:
        return (z * 0).sum()
    scores = -0.5 * (_distances(z, mean, log_variance) + log_variance.sum(-1, keepdim=True))
    itself = torch.eye(rows, dtype=torch.bool, device=z.device)
    others = scores.masked_fill(itself, -math.inf).logsumexp(0) - math.log(rows - 1)
    return (scores.diagonal() - others).mean()


def _distances(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return (B, B) squared distances of z_j (column) from row i's mean (row), in units of row i's variances."""
    precision = (-log_variance).exp()
    # Avoids a tensor (B, B, d): sum_d (z_j - m_i)^2 w_i, expanded about the mean of all points.
    centre = mean.mean(0)
    points, middles = z - centre, mean - centre
    pairs = precision @ points.square().T - 2 * (precision * middles) @ points.T
    return pairs + (precision * middles.square()).sum(-1, keepdim=True)


class Club(nn.Module):
    """I(Z;X) by CLUB with a Gaussian q(z|x).

    q is trained by `fit` alone; the bound has no gradient to q, which could otherwise lower it by fitting worse. With
    an exact q its value is I(Z;X) + KL(p(x) p(z) || p(x, z)): above the true value, and not close to it.
    """

    def __init__(self, x_size: int, z_size: int, *, hidden: int = 256) -> None:
        super().__init__()
        self.q = Gaussian(x_size, z_size, hidden)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the bound for rows z (B, z_size) and x (B, x_size)."""
        return club(z, *self.fixed(x))

    def fixed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return q's mean and log-variance for x, without a gradient to q."""
        fixed = {name: parameter.detach() for name, parameter in self.q.named_parameters()}
        mean, log_variance = functional_call(self.q, fixed, (x,))
        return mean, log_variance

    def fit(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the negative log-likelihood of q up to a constant: a scalar whose gradient reaches q alone."""
        mean, log_variance = self.q(x.detach())
        return 0.5 * ((z.detach() - mean).square() / log_variance.exp() + log_variance).sum(-1).mean()


class LeaveOneOut(Club):
    """I(Z;X) by the leave-one-out bound, which is close to the true value if q is and the batch is large."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return leave_one_out(z, *self.fixed(x))


def _mlp(n_in: int, hidden: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, hidden), nn.GELU(), nn.Linear(hidden, n_out))
