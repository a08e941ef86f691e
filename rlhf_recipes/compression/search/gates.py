"""The structure policy: independent categorical gates, trained by policy gradient with a memory of what has been paid.

A structure is a choice `c` of one option for each of K gates, and `pi(c) = prod_k pi_k(c_k)`. Structures are
deterministic: each is evaluated once, remembered, and never paid again. So the expected reward has a part that is
known exactly and a part that is sampled (Liang et al. 2018, "Memory Augmented Policy Optimization", arXiv 1807.02322,
eq. 5), and its gradient is

    grad E[R] = sum_{c in memory} (R(c) - b) grad pi(c) + (1 - pi(memory)) E_outside[(R(c) - b) grad log pi(c)]

with draws from outside the memory alone. It is REINFORCE (Williams 1992) where the memory is empty. A guess at rewards
makes the sampled part less noisy, and leaves its expectation as it is: its own expectation is taken over many draws,
which are free, and those that are paid correct it (a control variate).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Choice: TypeAlias = tuple[int, ...]  # (K,)  the option of each gate
Guess: TypeAlias = Callable[[Sequence[Choice]], Sequence[float]]  # rewards of choices that are not known

AT_ONCE = 64  # candidates drawn together while one outside the memory is looked for
GUESSED = 256  # draws whose rewards are guessed for an update


@dataclass(frozen=True)
class PolicySettings:
    """How the policy learns.

    Rewards are divided by their standard deviation, of which a single gate makes about 1 / sqrt(K); so entropy and KL,
    which are sums over gates, are too.

    Args:
        learning_rate (`float`): Of Adam, on logits.
        draws (`int`): Structures drawn for each update.
        entropy_coef (`float`): Weight of the entropy, in nats, while nothing has been spent. It falls linearly.
        entropy_coef_end (`float`): The weight when all has been spent.
        kl_coef (`float`): Weight of KL(policy || prior), in nats.
    """

    learning_rate: float = 0.3
    draws: int = 4
    entropy_coef: float = 1.2
    entropy_coef_end: float = 0.2
    kl_coef: float = 0.0

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}; it must be 1 or more.")
        for name, value in asdict(self).items():
            if not math.isfinite(value) or value < 0 or (name == "learning_rate" and value == 0):
                least = "greater than 0" if name == "learning_rate" else "0 or more"
                raise ValueError(f"{name} is {value}; it must be a number, {least}.")


class Gates:
    """K categorical distributions of different sizes, as log-probabilities `(K, N)`, -inf where there is no option.

    Args:
        sizes (`Sequence[int]`): Options of each gate, N the most of them.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes is {list(sizes)}; there must be a gate, and each must have 1 option or more.")
        self.sizes = tuple(sizes)
        self.real = torch.arange(max(sizes)) < torch.tensor(self.sizes)[:, None]  # (K, N)
        self.count = math.prod(self.sizes)

    def log_probabilities(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """From logits `(K, N)`, which may hold anything where there is no option."""
        return torch.log_softmax((logits / temperature).masked_fill(~self.real, -torch.inf), dim=1)

    def of_choices(self, log_probabilities: Tensor, choices: Sequence[Choice]) -> Tensor:
        """`log pi(c)` of each choice, `(B,)`."""
        index = torch.tensor(list(choices), dtype=torch.long).view(-1, len(self.sizes))
        return log_probabilities.gather(1, index.T).sum(dim=0)

    def entropy(self, log_probabilities: Tensor) -> Tensor:
        """In nats, summed over gates, which is the entropy of the choice as a whole. A scalar."""
        finite = log_probabilities.masked_fill(~self.real, 0.0)
        return -torch.where(self.real, finite.exp() * finite, 0.0).sum()

    def divergence(self, log_probabilities: Tensor, prior: Tensor) -> Tensor:
        """KL(policy || prior) in nats, summed over gates; `prior` are log-probabilities too. A scalar."""
        ours, theirs = (table.masked_fill(~self.real, 0.0) for table in (log_probabilities, prior))
        return torch.where(self.real, ours.exp() * (ours - theirs), 0.0).sum()

    def check(self, choice: Sequence[int]) -> Choice:
        """The choice as a tuple; `ValueError` where it is none of these gates."""
        given = tuple(int(option) for option in choice)
        if len(given) != len(self.sizes) or any(not 0 <= o < n for o, n in zip(given, self.sizes, strict=True)):
            raise ValueError(
                f"{given} is no choice: it must have {len(self.sizes)} options, each from 0 to one less than "
                f"{list(self.sizes)}."
            )
        return given


def expected_reward(
    gates: Gates,
    log_probabilities: Tensor,
    memory: Mapping[Choice, float],
    choices: Sequence[Choice],
    rewards: Sequence[float],
    others: Sequence[Choice] = (),
    guess: Guess | None = None,
) -> Tensor:
    """A scalar whose gradient estimates that of E[R], without bias where the choices are independent draws from
    outside the memory.

    The baseline of a draw is the estimated E[R] without that draw: of the memory its mean under the policy, of the
    outside the mean of the other draws (leave-one-out, arXiv 1903.08114). So each draw is independent of its own
    baseline, and what the baselines add to both parts adds up to the gradient of a constant.

    With a guess g, `E_outside[R grad log pi]` is the mean of `g grad log pi` over `others` and that of
    `(R - g) grad log pi` over the draws.

    Args:
        log_probabilities (`(K, N)`): Of the policy, with gradient.
        memory: Rewards of the structures that were known when the others were drawn.
        choices, rewards (length B): The draws, none of which is in the memory.
        others (length S): More draws from outside the memory, whose rewards nobody knows.
        guess (callable, *optional*): Rewards of choices, worked out from the memory alone.
    """
    known = gates.of_choices(log_probabilities, list(memory)).exp()  # (M,)
    paid = torch.tensor(list(memory.values()), dtype=known.dtype)
    sampled, worth = (others, guess(others)) if guess is not None and others else (choices, rewards)
    drawn = torch.tensor([float(reward) for reward in worth], dtype=known.dtype)
    weights = known.detach()
    inside = weights.sum().clamp(max=1.0)
    mean_inside = (weights @ paid) / inside if inside > 0 else paid.new_zeros(())
    if len(drawn) > 1:
        mean_outside = (drawn.sum() - drawn) / (len(drawn) - 1)
        baselines = inside * mean_inside + (1 - inside) * mean_outside
        baseline = baselines.mean()
    else:
        baselines = baseline = mean_inside
    value = (known * (paid - baseline)).sum()
    if len(drawn):
        of_sampled = gates.of_choices(log_probabilities, sampled)
        value = value + (1 - inside) * ((drawn - baselines) * of_sampled).mean()
    if guess is not None and sampled is others and choices:
        errors = torch.tensor([r - float(g) for r, g in zip(rewards, guess(choices), strict=True)], dtype=known.dtype)
        value = value + (1 - inside) * (errors * gates.of_choices(log_probabilities, choices)).mean()
    return value


class StructurePolicy:
    """Gates with logits, the optimizer, the generator of draws, and the memory.

    Args:
        sizes (`Sequence[int]`): Options of each gate.
        settings ([`PolicySettings`]): How it learns.
        prior (`Sequence` of K sequences, *optional*): Probabilities of each gate's options, all positive, where it
            begins and what `kl_coef` holds it to. Default: uniform.
        seed (`int`): Of the draws.

    Raises:
        `ValueError`: if the prior is not one of these gates.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        settings: PolicySettings | None = None,
        prior: Sequence[Sequence[float]] | None = None,
        seed: int = 0,
    ) -> None:
        self.gates = Gates(sizes)
        self.settings = settings or PolicySettings()
        self.logits = _logits(self.gates, prior).requires_grad_()
        self.prior = self.gates.log_probabilities(self.logits.detach().clone())
        self.memory: dict[Choice, float] = {}
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam([self.logits], lr=self.settings.learning_rate)

    @torch.no_grad()
    def probabilities(self) -> list[list[float]]:
        """Of each gate's options."""
        table = self.gates.log_probabilities(self.logits).exp()
        return [row[:size].tolist() for row, size in zip(table, self.gates.sizes, strict=True)]

    @torch.no_grad()
    def mode(self) -> Choice:
        """The most likely choice."""
        return tuple(self.gates.log_probabilities(self.logits).argmax(dim=1).tolist())

    @torch.no_grad()
    def sample(self, count: int, temperature: float = 1.0) -> list[Choice]:
        """Independent draws from the policy, known or not."""
        probabilities = self.gates.log_probabilities(self.logits, temperature).exp()
        table = torch.multinomial(probabilities, count, replacement=True, generator=self.generator)  # (K, count)
        return [tuple(column) for column in table.T.tolist()]

    def draw(self, count: int | None = None) -> list[Choice]:
        """Independent draws from what is outside the memory, so that one may come twice; fewer than `count` only
        where nothing is left.

        Where the policy is nearly sure of what is known, the temperature is doubled until something else comes. Such a
        draw is none of the policy's own, but weighs next to nothing as one: it counts from the memory.
        """
        count = self.settings.draws if count is None else count
        found: list[Choice] = []
        temperature = 1.0
        while len(found) < count and len(self.memory) < self.gates.count:
            new = [choice for choice in self.sample(AT_ONCE, temperature) if choice not in self.memory]
            found += new[: count - len(found)]
            temperature = temperature if new else 2 * temperature
        return found

    def remember(self, choices: Iterable[Sequence[int]], rewards: Iterable[float]) -> None:
        """Keep rewards that are known, for draws to come and for the part of the gradient that is exact."""
        for choice, reward in zip(choices, rewards, strict=True):
            if not math.isfinite(reward):
                raise ValueError(f"The reward of the choice {tuple(choice)} is {reward}; it must be a finite number.")
            self.memory[self.gates.check(choice)] = float(reward)

    def update(
        self, choices: Sequence[Choice], rewards: Sequence[float], spent: float, guess: Guess | None = None
    ) -> dict[str, float]:
        """One step of gradient ascent on E[R] / std + (entropy - KL) / sqrt(K), after which the draws are remembered.

        Args:
            choices, rewards: As drawn by [`draw`], and what they brought. There may be none.
            spent (`float`): Which share of all evaluations there will be is used up, from 0 to 1.
            guess (callable, *optional*): Rewards of choices, worked out before the draws were known.

        Returns:
            `dict[str, float]`: mean reward of the draws, policy's entropy and KL before the step, and the probability
            of all that is remembered.
        """
        settings = self.settings
        scale = _spread(list(self.memory.values())) or _spread(rewards) or 1.0
        log_probabilities = self.gates.log_probabilities(self.logits)
        others = [] if guess is None else [c for c in self.sample(GUESSED) if c not in self.memory]
        value = expected_reward(self.gates, log_probabilities, self.memory, choices, rewards, others, guess) / scale
        entropy = self.gates.entropy(log_probabilities)
        divergence = self.gates.divergence(log_probabilities, self.prior)
        share = min(max(spent, 0.0), 1.0)
        weight = (1 - share) * settings.entropy_coef + share * settings.entropy_coef_end
        pull = (weight * entropy - settings.kl_coef * divergence) / len(self.gates.sizes) ** 0.5
        self.optimizer.zero_grad()
        (-value - pull).backward()
        self.optimizer.step()
        self.remember(choices, rewards)
        known = self.gates.of_choices(log_probabilities.detach(), list(self.memory)).exp().sum()
        return {
            "reward": math.fsum(rewards) / len(rewards) if rewards else math.nan,
            "entropy": float(entropy.detach()),
            "kl": float(divergence.detach()),
            "known": float(known),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that the next draw and the next update depend on; with tensors, numbers, lists and dicts alone."""
        return {
            "sizes": list(self.gates.sizes),
            "logits": self.logits.detach().clone(),
            "prior": self.prior.clone(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "choices": [list(choice) for choice in self.memory],
            "rewards": list(self.memory.values()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what [`state_dict`] gave; `ValueError` where that was a policy over other gates."""
        if list(state["sizes"]) != list(self.gates.sizes):
            raise ValueError(
                f"The saved search is over gates of sizes {list(state['sizes'])}, this one over "
                f"{list(self.gates.sizes)}: begin anew, or search the space that was saved."
            )
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.prior = state["prior"].clone()
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.memory = {tuple(c): float(r) for c, r in zip(state["choices"], state["rewards"], strict=True)}


def _logits(gates: Gates, prior: Sequence[Sequence[float]] | None) -> Tensor:
    logits = torch.zeros(gates.real.shape, dtype=torch.float64)
    if prior is None:
        return logits
    if [len(row) for row in prior] != list(gates.sizes) or any(not p > 0 for row in prior for p in row):
        raise ValueError(
            f"The prior has {[len(row) for row in prior]} options for gates of {list(gates.sizes)}; it must give each "
            "option a positive number, since what has probability 0 is never tried."
        )
    for row, probabilities in zip(logits, prior, strict=True):
        row[: len(probabilities)] = torch.tensor(probabilities, dtype=torch.float64).log()
    return logits


def _spread(rewards: Sequence[float]) -> float:
    return float(torch.tensor(rewards, dtype=torch.float64).std()) if len(rewards) > 1 else 0.0
