"""A reward with a time limit: it runs in a process of its own, which is ended when the limit is over."""

import logging
import pickle
from collections.abc import Callable
from typing import Any

from rlhf_recipes.errors import RewardError
from rlhf_recipes.rewards.contract.checks import REWARD_ATTRIBUTES, check_positive, checked_call, reward_name, row_of
from rlhf_recipes.rewards.contract.worker import Worker, WorkerEnded

logger = logging.getLogger(__name__)
MOST_LIMITS = 4  # rows of one batch that may use up their limit before the others are given up
FROM_TRAINER = ("log_metric", "log_extra")  # functions, which no other process can call


class TimedReward:
    """A reward that is ended when it does not come back, and gives `None` then: it does not apply.

    In a YAML file it is `timeout`, beside `func`:

    ```yaml
    - {func: trl.rewards.accuracy_reward, timeout: 10}
    ```

    It is called in the main thread of a process of its own, which imports it anew: a reward of a file or a package,
    not of the main program. It is made there and here, so that a model would be loaded twice. A batch that takes
    longer than the limit is scored row by row, each within the limit, so that one row does not cost the others
    theirs; a reward that compares the completions of a prompt gives `None` for all. How many rows that is, is logged
    as `<name>/timed_out`, and said once.

    Args:
        reward (callable): The reward.
        timeout (`float`): Seconds that one call may take. The time to start the process does not count.
    """

    def __init__(self, reward: Callable[..., Any], timeout: float) -> None:
        name = reward_name(reward)
        check_positive(f"reward {name!r}", "timeout", timeout, "seconds")
        self.reward = reward
        self.timeout = timeout
        self.inner_rewards = (reward,)
        self.__name__ = name
        for attribute in REWARD_ATTRIBUTES:
            setattr(self, attribute, getattr(reward, attribute, False))
        self._worker = Worker(_Called(reward))
        self._said = False

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[Any]:
        batch = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
        size = len(completions)
        try:
            return self._values(batch)
        except TimeoutError:
            if size == 1 or getattr(self, "wants_siblings", False):
                return self._given_up(batch, [None] * size)
        values: list[Any] = []
        late = 0
        for row in range(size):
            try:
                values += self._values(row_of(batch, row)) if late < MOST_LIMITS else [None]
            except TimeoutError:
                late += 1
                values.append(None)
        return self._given_up(batch, values) if late else values

    def _values(self, batch: dict[str, Any]) -> list[Any]:
        sent = {key: value for key, value in batch.items() if key not in FROM_TRAINER}
        try:
            values, logged = self._worker((self.__name__, sent), self.timeout)
        except WorkerEnded as error:
            raise RewardError(f"The process of reward {self.__name__!r} ended: {error}") from error
        for function, arguments in logged:
            if batch.get(function) is not None:
                batch[function](*arguments)
        return list(values)

    def _given_up(self, batch: dict[str, Any], values: list[Any]) -> list[Any]:
        late = [row for row, value in enumerate(values) if value is None]
        if batch.get("log_metric") is not None:
            batch["log_metric"](f"{self.__name__}/timed_out", float(len(late)))
        if not self._said:
            self._said = True
            logger.warning(
                "Reward %r did not come back within its timeout of %g seconds, and was ended: %d of %d rows get None, "
                "the first with the completion %.200r. This is said once.",
                *(self.__name__, self.timeout, len(late), len(values), batch["completions"][late[0]]),
            )
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reward, self.timeout)

    def __repr__(self) -> str:
        return f"TimedReward({self.reward!r}, timeout={self.timeout})"


class _Called:
    """What the process does: call the reward, with functions that keep what it logs."""

    def __init__(self, reward: Callable[..., Any]) -> None:
        self.reward = reward
        try:
            packed = pickle.dumps(reward)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"{_not_sent(reward)} ({error})") from error
        if b"__main__" in packed:
            raise ValueError(_not_sent(reward))

    def __call__(self, argument: tuple[str, dict[str, Any]]) -> tuple[list[Any], list[tuple[str, tuple[Any, ...]]]]:
        name, batch = argument
        logged: list[tuple[str, tuple[Any, ...]]] = []
        for function in FROM_TRAINER:
            batch[function] = lambda *arguments, function=function: logged.append((function, arguments))
        return checked_call(self.reward, name, batch), logged


def _not_sent(reward: Callable[..., Any]) -> str:
    return (
        f"Reward {reward_name(reward)!r} has a timeout, so that it runs in a process of its own, and that process "
        "cannot find it: it must be a function or class of a file or a package, not of the main program, and no "
        "lambda. Put it into a file and name it, as in {func: my_rewards.py:name, timeout: 5}."
    )
