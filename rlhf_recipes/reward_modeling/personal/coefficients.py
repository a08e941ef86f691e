"""A linear model with random coefficients of low rank: the arithmetic below personal reward models.

Row i is a rating `y_i` of a text with features `d_i`, or a pair, whose `d_i` is the difference of both texts:

```
m_i = d_i.theta + b_i.e_u(i)     b_i = L^T d_i     e_u ~ N(0, I_k)
rating  y_i ~ N(m_i, noise)      pair  P(chosen) = sigmoid(m_i)
```
With `e_u` integrated out (Laird and Ware 1982, Biometrics 38), and with `w_i = 1 / noise` and `r_i = y_i -
d_i.theta`, user u adds to the negative log-likelihood

```
1/2 sum_i (w_i r_i^2 - log w_i) + 1/2 log|P_u| - 1/2 q_u.P_u^-1 q_u + constant
P_u = I + sum_i w_i b_i b_i^T,   q_u = sum_i w_i b_i r_i,   and e_u | rows ~ N(P_u^-1 q_u, P_u^-1)
```
For pairs this is Laplace's approximation: around the most likely `m_i` a pair is a rating `m_i + 1 / p_i` whose weight
is `w_i = p_i (1 - p_i)`, with `p_i = sigmoid(m_i)`. Fit and approximation are repeated in turn (the penalized
quasi-likelihood of Breslow and Clayton 1993, Journal of the American Statistical Association 88).

Shapes: N rows, T texts, D features with a last column of ones, U users, k rank. All float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

SHARED_PENALTIES = tuple(10.0**power for power in range(-1, 5))
TASTE_PENALTIES = tuple(10.0**power for power in range(1, 6))
FEW_ROWS = 20  # fewer are not split to choose a penalty
FALLBACK = (10.0, 100.0)
ROUNDS = 20  # of approximation and fit, for pairs
STEPS = 300
LEAST_LOG_NOISE = -18.0  # of standardized ratings: users who are told exactly would drive it to nothing


@dataclass(frozen=True)
class Rows:
    """Ratings or pairs, by row numbers of their texts.

    Where the mean rating of a text by others is known, tastes are told against it, and not against what the shared
    head says, whose error would be noise to them.
    """

    z: Tensor  # (T, D)  features of each text
    first: Tensor  # (N,)  which text was rated, or chosen
    second: Tensor | None  # (N,)  which was rejected; None for ratings
    targets: Tensor | None  # (N,)  ratings; of pairs what stands for them
    users: Tensor  # (N,)  whose row it is; U, one more than the last, is a user who is not known
    others: Tensor | None = None  # (N,)  mean rating by others; NaN where there is none
    weights: Tensor | None = None  # (N,)  of pairs

    @property
    def rated(self) -> bool:
        """Whether these are ratings, and no pairs."""
        return self.second is None

    def of(self, values: Tensor) -> Tensor:
        """From values of texts to values of rows: `(T, ...) -> (N, ...)`"""
        return values[self.first] if self.second is None else values[self.first] - values[self.second]

    def select(self, kept: Tensor) -> "Rows":
        """Some of the rows, with all texts."""
        columns = {name: column for name, column in vars(self).items() if name != "z" and column is not None}
        return replace(self, **{name: column[kept] for name, column in columns.items()})

    def residual(self, theta: Tensor) -> Tensor:
        """What tastes and noise have to explain. `(N,)`"""
        assert self.targets is not None
        said = self.of(self.z @ theta)
        return self.targets - (said if self.others is None else torch.where(self.others.isnan(), said, self.others))

    def as_ratings(self, said: Tensor) -> "Rows":
        """Pairs as the ratings that stand for them around what is said of them, `m (N,)`."""
        weights, targets = laplace(said)
        return replace(self, weights=weights, targets=targets)


def laplace(m: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and ratings that stand for pairs around `m`: curvature and Newton's step of `-log sigmoid`."""
    p = torch.sigmoid(m).clamp(1e-8, 1 - 1e-8)
    return p * (1 - p), m + 1 / p


@dataclass(frozen=True)
class RandomCoefficients:
    """The shared head `theta (D,)`, the loadings `L (D, k)` of tastes, and the variance of a rating's noise."""

    shared: Tensor
    loadings: Tensor
    noise: float

    def evidence(self, z: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What rows of one user add to `P_u` and to `q_u`. `(N, D), (N,), (N,) -> (k, k), (k,)`"""
        b = z @ self.loadings
        return b.T @ (weights[:, None] * b), b.T @ (weights * (y - z @ self.shared))

    def evidence_of_pairs(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The same of pairs of one user, whose features differ by `z (N, D)`, around what is most likely."""
        from scipy.optimize import minimize
        from scipy.special import expit, log_expit

        shared, b = (z @ self.shared).numpy(), (z @ self.loadings).numpy()

        def loss(e: np.ndarray) -> tuple[float, np.ndarray]:
            m = shared + b @ e
            return 0.5 * e @ e - log_expit(m).sum(), e - b.T @ expit(-m)

        best = minimize(loss, np.zeros(b.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-8}).x
        weights, y = laplace(torch.from_numpy(shared + b @ best))
        return self.evidence(z, y, weights)


def fit(
    rows: Rows, rank: int, users: int, shared_penalty: float, taste_penalty: float, steps: int = STEPS
) -> tuple[RandomCoefficients, tuple[Tensor, Tensor]]:
    """Fit theta, L and noise to all rows, and the posterior of each user.

    The negative log-likelihood plus `shared_penalty / (2 noise) |w|^2 + taste_penalty / 2 |A|^2`, all but the last
    coefficients of theta and L, is minimized by L-BFGS. Ratings are standardized for it, so that penalties mean the
    same on every scale. It starts at the shared head alone, with L along the main directions in which the gradients
    of users differ from it; there is no chance in it.

    Returns:
        `tuple`: the model, and `P (U, k, k)` and `q (U, k)` of the users.
    """
    center, scale = 0.0, 1.0
    if rows.targets is not None:
        center, scale = float(rows.targets.mean()), float(rows.targets.std(correction=0)) or 1.0
        others = None if rows.others is None else (rows.others - center) / scale
        rows = replace(rows, targets=(rows.targets - center) / scale, others=others)
    theta = fit_shared(rows, shared_penalty)
    if not rows.rated:
        rows = rows.as_ratings(rows.of(rows.z @ theta))
    # Of ratings what the shared head leaves, as a start; of pairs 1, since their weights say it all.
    noise = max(float((rows.residual(theta) ** 2).mean()), 1e-6) if rows.rated else 1.0
    loadings = _start(rows, theta, noise, rank, users)
    state = [theta, loadings, torch.tensor(math.log(noise), dtype=theta.dtype)]
    for _ in range(1 if rows.rated else ROUNDS):
        state = _minimize(rows, state, (shared_penalty, taste_penalty), users, steps)
        if not rows.rated:
            before, steps = _weights(rows, state[2]), 30
            rows = rows.as_ratings(_most_likely(rows, state, users))
            if float((_weights(rows, state[2]) - before).abs().max()) < 1e-5:
                break
    theta, loadings, log_noise = state = _resize(rows, state, users)
    precision, information = _posterior(rows, state, users)
    theta = theta * scale
    theta[-1] += center
    model = RandomCoefficients(theta, (loadings * scale).contiguous(), float(log_noise.exp()) * scale**2)
    return model, (precision[:users], information[:users])


def fit_shared(rows: Rows, penalty: float) -> Tensor:
    """The shared head alone, `(D,)`: ridge or logistic regression, by scikit-learn.

    Of ratings it is fitted to the mean of others where that is known.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    d = rows.of(rows.z)[:, :-1].numpy()  # the last column is one, or of pairs 0
    if rows.targets is not None:
        means = rows.targets if rows.others is None else torch.where(rows.others.isnan(), rows.targets, rows.others)
        head = Ridge(alpha=penalty, solver="cholesky").fit(d, means.numpy())
        return torch.from_numpy(np.append(head.coef_, head.intercept_))
    place = np.arange(max(len(d), 2))
    side = np.where(place % 2, -1.0, 1.0)  # a classifier needs both
    head = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-8, max_iter=1000)
    head.fit(d[place % len(d)] * side[:, None], side)
    return torch.from_numpy(np.append(head.coef_[0], 0.0))


def choose_penalties(
    rows: Rows, rank: int, users: int, shared: float | None, taste: float | None, seed: int = 0
) -> tuple[float, float]:
    """Penalties that predict the rows of a held-out fifth of the texts best: first of the shared head, then of tastes.

    The mean squared error counts for ratings, and `-log sigmoid` for pairs. Those that are given stay. Fewer than 20
    rows are not split: there the penalties are 10 and 100.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.randperm(len(rows.z), generator=generator)[: len(rows.z) // 5]
    aside = torch.isin(rows.first, held_out)
    if len(rows.users) < FEW_ROWS or not aside.any() or aside.all():
        return shared or FALLBACK[0], taste or FALLBACK[1]
    kept, asked = rows.select(~aside), rows.select(aside)

    def error(theta: Tensor, tasted: Tensor | float = 0.0) -> float:
        if asked.targets is None:
            return float(-torch.nn.functional.logsigmoid(asked.of(asked.z @ theta) + tasted).mean())
        return float(((asked.residual(theta) - tasted) ** 2).mean())

    def with_shared(penalty: float) -> float:
        return error(fit_shared(kept, penalty))

    def with_taste(penalty: float) -> float:
        model, (precision, information) = fit(kept, rank, users, chosen, penalty, steps=60)
        tastes = torch.linalg.solve(precision, information)
        tastes = torch.cat([tastes, torch.zeros(1, rank, dtype=tastes.dtype)])
        return error(model.shared, (asked.of(asked.z @ model.loadings) * tastes[asked.users]).sum(dim=1))

    chosen = shared or min(SHARED_PENALTIES, key=with_shared)
    return chosen, taste or min(TASTE_PENALTIES, key=with_taste)


# --- inside ----------------------------------------------------------------------------------------------


def _weights(rows: Rows, log_noise: Tensor) -> Tensor:
    if rows.weights is not None:
        return rows.weights
    return torch.ones_like(rows.first).to(log_noise) / log_noise.clamp(min=LEAST_LOG_NOISE).exp()


def _bent(rows: Rows, loadings: Tensor, users: int) -> Tensor:
    """`b (N, k)`, 0 of whoever is not known."""
    return rows.of(rows.z @ loadings) * (rows.users < users).to(loadings.dtype)[:, None]


def _posterior(rows: Rows, state: list[Tensor], users: int) -> tuple[Tensor, Tensor]:
    """`P (U + 1, k, k)` and `q (U + 1, k)`; the last are of whoever is not known, and stay at the prior."""
    theta, loadings, log_noise = state
    b = _bent(rows, loadings, users)
    rank = b.shape[1]
    weighted = _weights(rows, log_noise)[:, None] * b
    prior = torch.eye(rank, dtype=b.dtype).repeat(users + 1, 1, 1)
    precision = prior.index_add(0, rows.users, weighted[:, :, None] * b[:, None, :])
    pulled = weighted * rows.residual(theta)[:, None]
    return precision, torch.zeros(users + 1, rank, dtype=b.dtype).index_add(0, rows.users, pulled)


def _most_likely(rows: Rows, state: list[Tensor], users: int) -> Tensor:
    """`m (N,)` at the mode of each user's posterior."""
    theta, loadings, _ = state
    modes = torch.linalg.solve(*_posterior(rows, state, users))
    return rows.of(rows.z @ theta) + (_bent(rows, loadings, users) * modes[rows.users]).sum(dim=1)


def _minimize(rows: Rows, state: list[Tensor], penalties: tuple[float, float], users: int, steps: int) -> list[Tensor]:
    """Theta, L and the logarithm of the noise that are best, from those given."""
    variables = [tensor.detach().clone().requires_grad_() for tensor in state]
    theta, loadings, log_noise = variables
    last = 0.0 if rows.rated else 1.0  # a direction that pairs do not see must not wander

    def objective() -> Tensor:
        value = deviance(rows, variables, users)
        ridge = penalties[0] / log_noise.clamp(min=LEAST_LOG_NOISE).exp() if rows.rated else penalties[0]
        value = value + 0.5 * ridge * ((theta[:-1] ** 2).sum() + last * theta[-1] ** 2)
        return value + 0.5 * penalties[1] * ((loadings[:-1] ** 2).sum() + last * (loadings[-1] ** 2).sum())

    moved = [loadings]
    if rows.others is None:  # else the shared head is fitted to the mean of others, and stays
        moved.append(theta)
    if rows.rated:
        moved.append(log_noise)
    _descend(objective, moved, steps)
    return [tensor.detach() for tensor in variables]


def _resize(rows: Rows, state: list[Tensor], users: int) -> list[Tensor]:
    """The same directions in other sizes: those that are most likely, without a penalty.

    The penalty is there to find directions; it also makes them too short, and all users too much alike.
    """
    theta, loadings, log_noise = (tensor.detach() for tensor in state)
    left, size, _ = torch.linalg.svd(loadings, full_matrices=False)  # e_u may be rotated at will: its prior is round
    directions = left * size
    log_sizes = torch.zeros(directions.shape[1], dtype=theta.dtype, requires_grad=True)
    log_noise = log_noise.clone().requires_grad_()

    def objective() -> Tensor:
        return deviance(rows, [theta, directions * log_sizes.exp(), log_noise], users)

    _descend(objective, [log_sizes, log_noise] if rows.rated else [log_sizes], 50)
    # A direction that is of no use has no best size: it shrinks for ever, or hardly moves at all.
    sizes = log_sizes.detach().clamp(-10.0, 10.0).exp()
    return [theta, directions * sizes, log_noise.detach().clamp(min=LEAST_LOG_NOISE)]


def deviance(rows: Rows, state: list[Tensor], users: int) -> Tensor:
    """The negative log-likelihood of the rows with all users integrated out, but for a constant."""
    theta, _, log_noise = state
    precision, information = _posterior(rows, state, users)
    factor = torch.linalg.cholesky(precision)
    solved = torch.linalg.solve_triangular(factor, information[:, :, None], upper=False)
    value = 0.5 * (_weights(rows, log_noise) * rows.residual(theta) ** 2).sum() - 0.5 * (solved**2).sum()
    value = value + factor.diagonal(dim1=1, dim2=2).log().sum()
    return value + 0.5 * len(rows.users) * log_noise.clamp(min=LEAST_LOG_NOISE) if rows.rated else value


def _descend(objective: Callable[[], Tensor], variables: list[Tensor], steps: int) -> None:
    start = max(abs(float(objective().detach())), 1.0)  # so that tolerances mean the same for few rows and for many
    optimizer = torch.optim.LBFGS(
        variables, max_iter=steps, history_size=20, tolerance_grad=1e-8, tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> float:
        optimizer.zero_grad()
        value = objective() / start
        value.backward()
        return float(value.detach())

    optimizer.step(closure)


def _start(rows: Rows, theta: Tensor, noise: float, rank: int, users: int) -> Tensor:
    """Main directions of the users' mean gradients, scaled so that tastes explain a third of what is left."""
    weights = _weights(rows, torch.tensor(math.log(noise), dtype=theta.dtype))
    d = rows.of(rows.z)
    pull = (weights * rows.residual(theta))[:, None] * d  # (N, D)
    sums = torch.zeros(users + 1, d.shape[1], dtype=d.dtype).index_add(0, rows.users, pull)[:users]
    counts = torch.bincount(rows.users, minlength=users + 1)[:users]
    directions = torch.linalg.svd(sums / counts.sqrt().clamp(min=1.0)[:, None], full_matrices=False).Vh[:rank].T
    size = (d @ directions).pow(2).mean(dim=0).sqrt().clamp(min=1e-12)
    started = directions / size * (1.0 / (3 * rank * weights.mean())).sqrt()
    loadings = torch.zeros(d.shape[1], rank, dtype=d.dtype)
    loadings[:, : started.shape[1]] = started
    return loadings
