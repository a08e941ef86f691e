"""The reward contract, TRL's own, and the weighted sum that the trainers score with.

A reward is any callable

    f(prompts, completions, completion_ids, **kwargs) -> list[float | None]

with one number for each row. So every reward here also works in TRL's `GRPOTrainer` and `RLOOTrainer`, and every
synchronous reward written for them works here.

- All lists, and what is in them, are the reward's own: it may change them, and no other reward sees that.
- `prompts`, `completions`: B texts each. Conversational rows give lists of messages (`{"role", "content"}`) instead.
  An answer that the prompt had begun is whole in the completion; `completion_ids` are those that were written.
- `completion_ids`: B lists of token ids, without padding, the end-of-sequence token kept.
- `kwargs`: every other column of the dataset as a list of B values, and, where the trainer has them, `trainer_state`,
  `log_extra(column, values)` and `log_metric(name, value)`. Write `**kwargs` to let through what is not needed. Where
  the chat template itself opens the answer, the column `answer_opening` says with what (`"<think>\\n"`).
- `None` means "does not apply to this row": the other rewards are summed, and a row without any is an error.
- A value depends on its own row, and where a reward says so on the other completions of the same prompt. Statistics
  over the batch belong to the trainer.

It may be a coroutine function, `async def`, or have a method `start(**batch)` (see `contract/concurrent.py`): such
rewards begin as soon as the completions are written, and run side by side.

Seven attributes of the callable, all `False` unless set, say that it is more than that:

- `per_token = True`: for each row it returns `None` or a list of numbers, one for each id in `completion_ids[row]`.
  TRL's trainers take such a reward inside a `WeightedSum`, which adds its numbers up.
- `potential = True`, with `per_token`: number t is the potential Phi(s_t) of the state before token t, that is of the
  prompt and the tokens before t. The trainer makes shaping rewards of them with its own gamma.
- `wants_prompt_ids = True`: it is given `prompt_ids`, B lists of token ids without padding, where the trainer has
  them. No other reward is.
- `wants_ref_logprobs = True`: it is given `ref_logprobs`, B lists of log-probabilities under the reference policy, one
  for each id in `completion_ids`, at the sampling temperature, where the trainer has them. No other reward is.
- `wants_siblings = True`: it compares a completion with the others of its prompt, and is `None` where there are none.
- `may_not_apply = True`: it is `None` for some completions, such as the empty one, whatever the row. Where all rewards
  of a list are such, a trainer refuses it.
- `constant = True`: its value is the same for all completions. As a reward it would teach nothing, so that PPO refuses
  it; as a factor of a product it is welcome.

Settings go into a small picklable object with `__call__` and `__name__`; the name is what logs and tables show.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from rlhf_recipes.rewards.contract.checks import checked_call, is_per_token, is_potential, own_batch, reward_name
from rlhf_recipes.rewards.contract.concurrent import Finish, begun, can_start
from rlhf_recipes.texts import Text

Texts: TypeAlias = Sequence[Text]  # (B,)  texts or conversations
Ids: TypeAlias = Sequence[Sequence[int]]  # (B, tokens of the row)
Series: TypeAlias = list[float | None]  # (B,)  one reward for each row
TokenSeries: TypeAlias = list[list[float] | None]  # (B, tokens of the row)  one reward for each token
Parts: TypeAlias = dict[str, Any]  # by reward, a Series, or a TokenSeries of one that is per token

# What only those rewards are given that ask for it, and the attribute by which they ask.
ON_REQUEST = {"prompt_ids": "wants_prompt_ids", "ref_logprobs": "wants_ref_logprobs"}


class RewardFunction(Protocol):
    """What a trainer asks of a reward; see the docstring of this module."""

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **kwargs: Any
    ) -> Sequence[float | None] | Sequence[Sequence[float] | None]: ...


def compute_rewards(
    reward_funcs: Sequence[RewardFunction],
    prompts: Texts,
    completions: Texts,
    completion_ids: Ids,
    columns: Mapping[str, Any],
) -> Parts:
    """Call each reward as TRL's trainers do, by keyword, and check what comes back.

    Args:
        columns (`Mapping`):
            What else the rewards are given; `prompt_ids` and `ref_logprobs` only to those that want them.

    Returns:
        `dict[str, list]`: for each reward, by name and in the order given, its B values: `float | None`, or
        `list[float] | None` of a reward with `per_token`.

    Raises:
        `RewardError`: if a reward raises, or does not return B finite numbers or `None`, or of a per-token reward
            B lists of as many as there are tokens or `None`.
        `ValueError`: if two rewards have the same name, or a column has that of an argument.
    """
    return StartedRewards(by_name(reward_funcs), prompts, completions, completion_ids, columns).values()


class StartedRewards:
    """Rewards in work: those that can be started have been, the others are called when `values` asks for them.

    Attributes:
        seconds (`dict[str, float]`): for each reward, how long `values` had to wait for it.
    """

    def __init__(
        self,
        reward_funcs: Mapping[str, RewardFunction],
        prompts: Texts,
        completions: Texts,
        completion_ids: Ids,
        columns: Mapping[str, Any],
    ) -> None:
        batch: dict[str, Any] = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        taken = sorted(set(batch) & set(columns))
        if taken:
            raise ValueError(
                f"The dataset's column {taken[0]!r} has the name of what every reward is given; rename it."
            )
        self.reward_funcs = reward_funcs
        self.batch = batch | dict(columns)
        self.seconds: dict[str, float] = {}
        self._begun: dict[str, Finish] = {
            name: begun(func, own_batch(self._given_to(func)))
            for name, func in reward_funcs.items()
            if can_start(func) and not getattr(func, "wants_ref_logprobs", False)  # which come later
        }

    def values(self, **late: Any) -> Parts:
        """Wait for all, and check what comes back; see `compute_rewards`.

        Args:
            late: What was not known when the rewards began, such as `ref_logprobs`.
        """
        self.batch |= late
        parts = {}
        for name, func in self.reward_funcs.items():
            begin = time.perf_counter()
            parts[name] = checked_call(func, name, self._given_to(func), self._begun.get(name))
            self.seconds[name] = time.perf_counter() - begin
        return parts

    def _given_to(self, func: Any) -> dict[str, Any]:
        kept_back = {key for key, attribute in ON_REQUEST.items() if not getattr(func, attribute, False)}
        return {key: value for key, value in self.batch.items() if key not in kept_back}


def log_means(log_metric: Any, of: str, values: Mapping[str, Sequence[float | None]]) -> None:
    """Log as `of/name` the mean of each reward over the rows to which it applies, where the trainer logs."""
    for name, own in values.items():
        applying = [value for value in own if value is not None]
        if applying and log_metric is not None:
            log_metric(f"{of}/{name}", math.fsum(applying) / len(applying))


def by_name(reward_funcs: Sequence[RewardFunction]) -> dict[str, RewardFunction]:
    """Rewards by name, each checked to be callable and to have a name of its own."""
    named: dict[str, RewardFunction] = {}
    for func in reward_funcs:
        if not callable(func):
            raise TypeError(f"A reward must be callable, but {func!r} is of type {type(func).__name__}.")
        name = reward_name(func)
        if name in named:
            raise ValueError(
                f"Two rewards are named {name!r}, so their logs would mix. Give them names of their own: "
                "{func: ..., name: short} in a list of rewards, load_reward(func, name='short') in Python."
            )
        if is_potential(func) and not is_per_token(func):
            raise ValueError(
                f"Reward {name!r} has potential = True but not per_token = True. A potential is one number for each "
                "token; set both."
            )
        named[name] = func
    return named
