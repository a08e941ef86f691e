"""A linear model with random coefficients of low rank: the arithmetic below personal reward models, torch alone.

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
A pair becomes a row of this kind by the bound of Jaakkola and Jordan (2000, Statistics and Computing 10): `log
sigmoid(m) >= m/2 - w m^2/2 + constant` with `w = tanh(xi/2) / (2 xi)`, which is tight at `xi = |m|`; so `y = 1/(2w)`,
and `xi^2 = E[m^2]` under the posterior makes the bound best. Both are repeated in turn.

Shapes: N rows, T texts, D features with a last column of ones, U users, k rank. All float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SHARED_PENALTIES = tuple(10.0**power for power in range(-1, 5))
TASTE_PENALTIES = tuple(10.0**power for power in range(1, 6))
FEW_ROWS = 20  # fewer are not split to choose a penalty
FALLBACK = (10.0, 100.0)
ROUNDS = 20  # of bound and fit, for pairs
STEPS = 300


@dataclass(frozen=True)
class Rows:
    """Ratings or pairs, by row numbers of their texts.

    Args:
        z (`Tensor` of shape `(T, D)`): Features of each text.
        first (`Tensor` of shape `(N,)`): Which text was rated, or chosen.
        second (`Tensor` of shape `(N,)`, *optional*): Which was rejected; `None` for ratings.
        targets (`Tensor` of shape `(N,)`, *optional*): Ratings; `None` for pairs.
        users (`Tensor` of shape `(N,)`): Whose row it is. U, one more than the last, is a user who is not known.
        others (`Tensor` of shape `(N,)`, *optional*):
            Mean rating of the row's text by others; NaN where there is none. Tastes are then told against it, and
            not against what the shared head says, whose error would be noise to them.
    """

    z: Tensor
    first: Tensor
    second: Tensor | None
    targets: Tensor | None
    users: Tensor
    others: Tensor | None = None

    def of(self, values: Tensor) -> Tensor:
        """From values of texts to values of rows: `(T, ...) -> (N, ...)`"""
        return values[self.first] if self.second is None else values[self.first] - values[self.second]

    def select(self, kept: Tensor) -> "Rows":
        """Some of the rows, with all texts."""
        second = None if self.second is None else self.second[kept]
        targets = None if self.targets is None else self.targets[kept]
        others = None if self.others is None else self.others[kept]
        return Rows(self.z, self.first[kept], second, targets, self.users[kept], others)

    def residual(self, targets: Tensor, theta: Tensor) -> Tensor:
        """What tastes and noise have to explain. `(N,)`"""
        said = self.of(self.z @ theta)
        return targets - (said if self.others is None else torch.where(self.others.isnan(), said, self.others))

    def consensus(self) -> Tensor:
        """What the shared head is fitted to: the mean of others where it is known, or else the row itself. `(N,)`"""
        assert self.targets is not None
        if self.others is None:
            return self.targets
        return torch.where(self.others.isnan(), self.targets, self.others)


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

    def learn_pairs(self, z: Tensor, steps: int = 500, tolerance: float = 1e-10) -> tuple[Tensor, Tensor]:
        """`P_u` and `q_u` of one user after pairs, whose features differ by `z (N, D)`."""
        shared, b = z @ self.shared, z @ self.loadings
        weights = _bound_weights(shared)
        for _ in range(steps):
            precision = torch.eye(b.shape[1], dtype=b.dtype) + b.T @ (weights[:, None] * b)
            information = b.T @ (0.5 - weights * shared)
            covariance = torch.linalg.inv(precision)
            second_moment = (shared + b @ covariance @ information) ** 2 + ((b @ covariance) * b).sum(dim=1)
            new = _bound_weights(second_moment.sqrt())
            change, weights = float((new - weights).abs().max()), new
            if change < tolerance:
                break
        return precision, information


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
    theta, weights = fit_shared(rows, shared_penalty)
    targets, noise = _targets(rows, weights), _noise(rows, theta)
    loadings = _start(rows, theta, targets, weights / noise, rank, users)
    state = [theta, loadings, torch.tensor(math.log(noise), dtype=theta.dtype)]
    for _ in range(1 if rows.second is None else ROUNDS):
        state = _minimize(rows, state, targets, weights, (shared_penalty, taste_penalty), users, steps)
        if rows.second is not None:
            new = _moment_weights(rows, state[0], state[1], targets, weights, users)
            change, weights = float((new - weights).abs().max()), new
            targets, steps = _targets(rows, weights), 30
            if change < 1e-5:
                break
    theta, loadings, log_noise = _resize(rows, state, targets, weights, users)
    noise = float(log_noise.exp())
    precision, information = _posterior(rows, theta, loadings, targets, weights / noise, users)
    theta = theta * scale
    theta[-1] += center
    model = RandomCoefficients(theta, loadings * scale, noise * scale**2)
    return model, (precision[:users], information[:users])


def fit_shared(rows: Rows, penalty: float) -> tuple[Tensor, Tensor]:
    """The shared head alone, by (for pairs, repeatedly weighted) ridge regression; and the weights of the rows."""
    d = rows.of(rows.z)
    ridge = torch.full((d.shape[1],), penalty, dtype=d.dtype)
    ridge[-1] = 0.0 if rows.second is None else 1.0  # of pairs the column of ones is 0, and so is its coefficient
    weights = torch.full((len(d),), 1.0 if rows.second is None else 0.25, dtype=d.dtype)
    theta = torch.zeros(d.shape[1], dtype=d.dtype)
    for _ in range(1 if rows.second is None else 100):
        y = rows.consensus() if rows.targets is not None else 0.5 / weights
        right = d.T @ (weights * y)
        new = torch.linalg.solve(d.T @ (weights[:, None] * d) + ridge.diag(), right)
        change, theta = float((new - theta).abs().max()), new
        if rows.second is not None:
            weights = _bound_weights(d @ theta)
        if change < 1e-8:
            break
    return theta, weights


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

    def with_shared(penalty: float) -> float:
        return _loss(asked, asked.of(asked.z @ fit_shared(kept, penalty)[0]))

    def with_taste(penalty: float) -> float:
        model, (precision, information) = fit(kept, rank, users, chosen, penalty, steps=60)
        tastes = torch.linalg.solve(precision, information)
        tastes = torch.cat([tastes, torch.zeros(1, rank, dtype=tastes.dtype)])
        tasted = (asked.of(asked.z @ model.loadings) * tastes[asked.users]).sum(dim=1)
        if asked.targets is not None:
            return float(((asked.residual(asked.targets, model.shared) - tasted) ** 2).mean())
        return _loss(asked, asked.of(asked.z @ model.shared) + tasted)

    chosen = shared or _best(SHARED_PENALTIES, with_shared)
    return chosen, taste or _best(TASTE_PENALTIES, with_taste)


# --- inside ----------------------------------------------------------------------------------------------


def _best(penalties: tuple[float, ...], loss: Callable[[float], float]) -> float:
    return min(penalties, key=loss)


def _loss(rows: Rows, said: Tensor) -> float:
    if rows.targets is not None:
        return float(((rows.targets - said) ** 2).mean())
    return float(-torch.nn.functional.logsigmoid(said).mean())


def _bound_weights(xi: Tensor) -> Tensor:
    """`tanh(xi / 2) / (2 xi)`, which is 1/4 at 0."""
    xi = xi.abs().clamp(min=1e-6)
    return torch.tanh(xi / 2) / (2 * xi)


def _targets(rows: Rows, weights: Tensor) -> Tensor:
    return rows.targets if rows.targets is not None else 0.5 / weights


def _noise(rows: Rows, theta: Tensor) -> float:
    """Of ratings what the shared head leaves, as a start; of pairs 1, since their weights say it all."""
    if rows.targets is None:
        return 1.0
    return max(float((rows.residual(rows.targets, theta) ** 2).mean()), 1e-6)


def _posterior(
    rows: Rows, theta: Tensor, loadings: Tensor, targets: Tensor, weights: Tensor, users: int
) -> tuple[Tensor, Tensor]:
    """`P (U + 1, k, k)` and `q (U + 1, k)`; the last are of whoever is not known, and stay at the prior."""
    known = (rows.users < users).to(theta.dtype)
    b = rows.of(rows.z @ loadings) * known[:, None]  # (N, k)
    residual = rows.residual(targets, theta)
    rank = b.shape[1]
    weighted = weights[:, None] * b
    prior = torch.eye(rank, dtype=b.dtype).repeat(users + 1, 1, 1)
    precision = prior.index_add(0, rows.users, weighted[:, :, None] * b[:, None, :])
    information = torch.zeros(users + 1, rank, dtype=b.dtype).index_add(0, rows.users, weighted * residual[:, None])
    return precision, information


def _minimize(
    rows: Rows,
    state: list[Tensor],
    targets: Tensor,
    weights: Tensor,
    penalties: tuple[float, float],
    users: int,
    steps: int,
) -> list[Tensor]:
    """Theta, L and the logarithm of the noise that are best, from those given."""
    variables = [tensor.detach().clone().requires_grad_() for tensor in state]
    theta, loadings, log_noise = variables
    rated = rows.second is None
    last = 0.0 if rated else 1.0  # a direction that pairs do not see must not wander

    def objective() -> Tensor:
        value = _deviance(rows, theta, loadings, log_noise, targets, weights, users)
        ridge = penalties[0] / log_noise.exp() if rated else penalties[0]
        value = value + 0.5 * ridge * ((theta[:-1] ** 2).sum() + last * theta[-1] ** 2)
        return value + 0.5 * penalties[1] * ((loadings[:-1] ** 2).sum() + last * (loadings[-1] ** 2).sum())

    moved = [loadings]
    if rows.others is None:  # else the shared head is fitted to the mean of others, and stays
        moved.append(theta)
    if rated:
        moved.append(log_noise)
    _descend(objective, moved, steps)
    return [tensor.detach() for tensor in variables]


def _resize(rows: Rows, state: list[Tensor], targets: Tensor, weights: Tensor, users: int) -> list[Tensor]:
    """The same directions in other sizes: those that are most likely, without a penalty.

    The penalty is there to find directions; it also makes them too short, and all users too much alike.
    """
    theta, loadings, log_noise = (tensor.detach() for tensor in state)
    left, size, _ = torch.linalg.svd(loadings, full_matrices=False)  # e_u may be rotated at will: its prior is round
    directions = left * size
    log_sizes = torch.zeros(directions.shape[1], dtype=theta.dtype, requires_grad=True)
    log_noise = log_noise.clone().requires_grad_()

    def objective() -> Tensor:
        return _deviance(rows, theta, directions * log_sizes.exp(), log_noise, targets, weights, users)

    _descend(objective, [log_sizes, log_noise] if rows.second is None else [log_sizes], 50)
    # A direction that is of no use has no best size: it shrinks for ever, or hardly moves at all.
    return [theta, directions * log_sizes.detach().clamp(-10.0, 10.0).exp(), log_noise.detach()]


def _deviance(
    rows: Rows, theta: Tensor, loadings: Tensor, log_noise: Tensor, targets: Tensor, weights: Tensor, users: int
) -> Tensor:
    """The negative log-likelihood of the rows with all users integrated out, but for a constant."""
    weights = weights / log_noise.exp() if rows.second is None else weights
    precision, information = _posterior(rows, theta, loadings, targets, weights, users)
    factor = torch.linalg.cholesky(precision)
    solved = torch.linalg.solve_triangular(factor, information[:, :, None], upper=False)
    value = 0.5 * (weights * rows.residual(targets, theta) ** 2).sum() - 0.5 * (solved**2).sum()
    value = value + factor.diagonal(dim1=1, dim2=2).log().sum()
    return value + 0.5 * len(targets) * log_noise if rows.second is None else value


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


def _start(rows: Rows, theta: Tensor, targets: Tensor, weights: Tensor, rank: int, users: int) -> Tensor:
    """Main directions of the users' mean gradients, scaled so that tastes explain a third of what is left."""
    d = rows.of(rows.z)
    pull = (weights * rows.residual(targets, theta))[:, None] * d  # (N, D)
    sums = torch.zeros(users + 1, d.shape[1], dtype=d.dtype).index_add(0, rows.users, pull)[:users]
    counts = torch.bincount(rows.users, minlength=users + 1)[:users]
    directions = torch.linalg.svd(sums / counts.sqrt().clamp(min=1.0)[:, None], full_matrices=False).Vh[:rank].T
    size = (d @ directions).pow(2).mean(dim=0).sqrt().clamp(min=1e-12)
    started = directions / size * (1.0 / (3 * rank * weights.mean())).sqrt()
    loadings = torch.zeros(d.shape[1], rank, dtype=d.dtype)
    loadings[:, : started.shape[1]] = started
    return loadings


def _moment_weights(
    rows: Rows, theta: Tensor, loadings: Tensor, targets: Tensor, weights: Tensor, users: int
) -> Tensor:
    """Weights of the bound that is best for the posterior of now: `xi^2 = E[m^2]`."""
    precision, information = _posterior(rows, theta, loadings, targets, weights, users)
    covariance = torch.linalg.inv(precision)
    means = (covariance @ information[:, :, None])[:, :, 0]
    b = rows.of(rows.z @ loadings) * (rows.users < users).to(theta.dtype)[:, None]
    mean = rows.of(rows.z @ theta) + (b * means[rows.users]).sum(dim=1)
    variance = ((b[:, None, :] @ covariance[rows.users])[:, 0] * b).sum(dim=1)
    return _bound_weights((mean**2 + variance).sqrt())
