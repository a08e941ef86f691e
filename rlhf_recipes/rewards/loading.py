"""From the reward list of a YAML file or of flags to one `WeightedSum`.

```yaml
reward_funcs:
  - runs/quickstart/reward                      # a model folder, or a model id of the Hub
  - {func: EndsWithSentence, weight: 0.5}       # a name of rlhf_recipes.rewards
  - {func: my_rewards.py:brevity, name: brevity, weight: 0.1, args: {limit: 40}}   # a name in a Python file
  - my_package.rewards.politeness               # an import path; my_package.rewards:politeness is the same
  - {func: trl.rewards.accuracy_reward, timeout: 10}   # seconds, after which it is ended and gives None (`timed.py`)
```

Nothing has to be registered or decorated. A class is called once with `args` and must give a callable, and so is a
function that makes a reward, such as `make(limit)` or `trl.rewards.get_soft_overlong_punishment`. It is told by its
parameters: a reward has `prompts`, `completions`, `completion_ids` or `**kwargs` among them, and what has none of
these makes one. A reward gets `args` by keyword each time, before a column of the same name.

Paths are looked for from the folder in which the command runs, and then beside the YAML file. A Python file may import
the modules beside it.
"""

import asyncio
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_recipes import filenames, rewards
from rlhf_recipes.imports import (
    beside,
    did_you_mean,
    function_in_file,
    function_in_module,
    is_factory,
    names_a_file,
    parameters_of,
)
from rlhf_recipes.rewards.contract.checks import (
    REWARD_ATTRIBUTES,
    Weight,
    all_inside,
    check_can_stand,
    checked_call,
    is_per_token,
    own_copy,
    reads_policy_base,
    reward_name,
    weight_at,
    weighted,
)
from rlhf_recipes.rewards.contract.concurrent import can_start, only_waits, started
from rlhf_recipes.rewards.contract.timed import TimedReward
from rlhf_recipes.rewards.weighted_sum import WeightedSum, WeightSchedule, progress_of
from rlhf_recipes.starting.options import option
from rlhf_recipes.texts import short

LEFT_BY_RECIPES = (  # what tells a folder, the reward that reads it, and its argument for it
    (filenames.LINEAR_REWARD, "LinearReward", "model"),
    (filenames.PERSONAL_REWARD, "PersonalReward", "model"),
    (filenames.ENSEMBLE, "SharedBaseEnsemble", "folder"),
)
SPEC_KEYS = ("func", "name", "weight", "args", "timeout")
IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*")


@dataclass
class RewardArguments:
    """What is rewarded: rewards as [`load_rewards`] takes them, and their weights."""

    help_title = "Rewards"

    reward_funcs: list[str | dict] = field(
        metadata={"help": "Reward models (folder or Hub id), rewards by name (EndsWithSentence) or file.py:function."}
    )
    reward_weights: list[float] | None = option(
        None, "One weight for each reward. Default: 1 for all, or those in the YAML."
    )

    def load_for_trl(self) -> tuple[list[Callable[..., Any]], list[float]]:
        """The rewards and their weights, apart, as TRL's `GRPOTrainer` and `RLOOTrainer` take them.

        These trainers log, weigh and, where asked to, normalize each reward. What a reward returns is checked here
        first: one that raises, or returns NaN, or a number that its weight makes too large, stops the run and is named
        with the row (`RewardError`). A reward that only waits becomes a coroutine, which these trainers run side by
        side; all others, and what is made of them, stay in the main thread. A weight that changes is multiplied in
        before TRL sees the reward, whose own weights are numbers.

        Raises:
            `ValueError`: as [`load_rewards`], if a reward is per token, of which these trainers know nothing, or if
                there may be completions that no reward applies to, of which they would make a 0.
        """
        loaded = load_rewards(self.reward_funcs, self.reward_weights)
        by_name = dict(zip(loaded.names, loaded.reward_funcs, strict=True))
        for name, func in by_name.items():
            if is_per_token(func):
                raise ValueError(
                    f"Reward {name!r} gives one number for each token, but TRL's trainers take one for each "
                    "completion. Use it with PPO, or leave it out."
                )
            if any(map(reads_policy_base, all_inside(func))):
                raise ValueError(
                    f"Reward {name!r} reads the policy's base (base: policy), which PPO alone can give it. Use it "
                    "with PPO, or let it stand alone (base: own)."
                )
        check_can_stand(by_name)
        in_order = zip(loaded.reward_funcs, loaded.names, loaded.weights, strict=True)
        return [_checked(*one) for one in in_order], [1.0 if callable(w) else w for w in loaded.weights]


def _checked(func: Callable[..., Any], name: str, weight: Weight) -> Callable[..., Any]:
    from rlhf_recipes.data.chat_rows import as_rewards_see  # seconds, which a process for one reward need not wait

    def reward(**batch: Any) -> list[float | None]:
        values = checked_call(func, name, as_rewards_see(batch))
        now = weight_at(weight, progress_of(batch.get("trainer_state")), name)
        products = [None if value is None else weighted(now, value, name, row) for row, value in enumerate(values)]
        return products if callable(weight) else values  # a number TRL multiplies in itself

    async def side_by_side(**batch: Any) -> list[float | None]:
        return await asyncio.to_thread(reward, **batch)

    made = side_by_side if only_waits(func) else reward
    made.__name__ = name  # what TRL logs
    return made


class LoadedReward:
    """A reward with a name of its own, with settings for a function, or from a Python file.

    It pickles as what it was made from, so that a reward in a file that no other process can import arrives there.

    Args:
        func (`str` or callable):
            The reward, or where it is (see this module).
        name (`str`, *optional*):
            What logs show. Default: the reward's own name.
        args (`Mapping`, *optional*):
            Settings.
        is_reward (`bool`, *optional*, defaults to `True`):
            Whether it is called as a reward is; `False` for a function of something else, which makes none.
    """

    def __init__(
        self,
        func: str | Callable[..., Any],
        name: str | None = None,
        args: Mapping[str, Any] | None = None,
        is_reward: bool = True,
    ) -> None:
        self.made_from = (func, name, args)
        self._is_reward = is_reward
        target, self.args = _resolve(func, args, is_reward)
        maker = reward_name(target)
        self.is_made = is_reward and is_factory(target)
        if self.is_made or inspect.isclass(target):
            target, self.args = target(**self.args), {}
        if self.is_made and (not callable(target) or is_factory(target)):
            raise TypeError(
                f"{maker!r} takes none of prompts, completions, completion_ids and **kwargs, which a reward is called "
                f"with, so it was called to make one, and gave {short(target)}, which is none. Give a reward one of "
                "these parameters, or have the function return a reward."
            )
        if not callable(target):
            raise TypeError(f"A reward must be callable, but {func!r} is of type {type(target).__name__}.")
        self.reward: Callable[..., Any] = target
        self.inner_rewards = (target,)
        self.__name__ = name or reward_name(target)
        for attribute in REWARD_ATTRIBUTES:
            setattr(self, attribute, getattr(target, attribute, False))
        if can_start(target):
            self.start = self._start  # only then: to have it is to say that one can be started

    def _start(self, **kwargs: Any) -> Callable[[], Any]:
        return started(self.reward, {**kwargs, **own_copy(self.args)})

    def __call__(self, **kwargs: Any) -> Any:
        return started(self.reward, {**kwargs, **own_copy(self.args)})()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.made_from, self._is_reward)

    def __repr__(self) -> str:
        return f"LoadedReward({self.__name__!r}, {self.reward!r}, {self.args})"


def load_rewards(
    specs: Sequence[str | Mapping[str, Any] | Callable[..., Any]], weights: Sequence[Weight] | None = None
) -> WeightedSum:
    """Find the rewards that a configuration names and put them into one weighted sum.

    Args:
        specs (`Sequence`):
            Rewards: a string, a dictionary with `func` and, where wanted, `name`, `weight`, `args` and
            `timeout`, or a callable.
        weights (`Sequence`, *optional*):
            One for each reward, instead of those in the dictionaries. Default: 1. Numbers, or schedules.

    Raises:
        `FileNotFoundError`: if a file or model folder is not there.
        `ValueError`: if a name, key, argument or weight is not what it can be; the message says what can.
    """
    if isinstance(specs, (str, Mapping)) or callable(specs):
        raise TypeError(f"Rewards come as a list, but {specs!r} was given. Put it into brackets.")
    dictionaries = [_located(_as_dictionary, spec, spec) for spec in specs]
    own = [spec["func"] for spec in dictionaries if "weight" in spec]
    if weights is not None and own:
        raise ValueError(
            f"The weight of {', '.join(map(str, own))} is given with the reward, and weights are given as a list too "
            f"({list(weights)}). Give them in one place."
        )
    if weights is None:
        weights = [_located(_as_weight, spec, given) for given, spec in zip(specs, dictionaries, strict=True)]
    funcs = [_located(load_spec, beside(spec, getattr(spec, "folder", None)), spec) for spec in specs]
    return WeightedSum(funcs, weights)


def load_spec(spec: str | Mapping[str, Any] | Callable[..., Any]) -> Callable[..., Any]:
    """Find the reward of one entry of a list, without its weight; see `load_rewards`."""
    if spec is None:
        raise ValueError("A reward is missing. Give a callable, or what a YAML file would say: a name or a mapping.")
    given = _as_dictionary(spec)
    reward = load_reward(given["func"], given.get("name"), given.get("args"))
    return reward if given.get("timeout") is None else TimedReward(reward, given["timeout"])


def _located(function: Callable[[Any], Any], value: Any, spec: Any) -> Any:
    """Call a function; what it complains of is said with the file and line that the entry came from, if it did."""
    where = getattr(spec, "where", None)
    try:
        return function(value)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if where is None:
            raise
        # Not type(error): many of its subclasses (JSONDecodeError) cannot be made of a text alone.
        kinds = (FileNotFoundError, OSError, ImportError, TypeError, ValueError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        folder = getattr(spec, "folder", None)
        also = f" It is not beside {where.split(', line')[0]} either, in {folder.absolute()}." if folder else ""
        raise kind(f"{where}: {error}{also if kind is FileNotFoundError else ''}") from error


def load_reward(
    func: str | Callable[..., Any], name: str | None = None, args: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Find one reward (see `load_rewards`); it is wrapped only where its name, settings or origin ask for that."""
    if name is not None:
        target, settings = _resolve(func, args)
        if inspect.isclass(target) and "name" in inspect.signature(target).parameters and not names_a_file(func):
            made: Any = target(**{**settings, "name": name})
            return made
    loaded = LoadedReward(func, name, args)
    return loaded if name is not None or loaded.args or loaded.is_made or names_a_file(func) else loaded.reward


def _as_dictionary(spec: Any) -> dict[str, Any]:
    if isinstance(spec, str | Path) or callable(spec):
        return {"func": str(spec) if isinstance(spec, Path) else spec}
    if not isinstance(spec, Mapping):
        raise TypeError(f"A reward is a string or has the keys {', '.join(SPEC_KEYS)}, but {spec!r} was given.")
    for key in spec:
        if key not in SPEC_KEYS:
            raise ValueError(
                f"A reward has no key {key!r}{did_you_mean(key, SPEC_KEYS)} Known: {', '.join(SPEC_KEYS)}. Its own "
                "settings go under args."
            )
    if not spec.get("func"):
        raise ValueError(f"The reward {dict(spec)} says no func, which is what names it.")
    if not isinstance(spec.get("args") or {}, Mapping):
        raise ValueError(f"The args of reward {spec['func']!r} must map names to values, but are {spec['args']!r}.")
    return dict(spec)


def _as_weight(spec: Mapping[str, Any]) -> Weight:
    weight = spec.get("weight", 1.0)
    if isinstance(weight, Mapping):
        return WeightSchedule.from_mapping(weight, str(spec.get("name") or spec["func"]))
    if callable(weight):
        return weight
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise ValueError(
            f"The weight of reward {spec['func']!r} is {weight!r}, of type {type(weight).__name__}, but must be a "
            "number. (YAML reads 1e-1 as text; write 0.1.)"
        )
    return weight


def _resolve(
    func: str | Callable[..., Any], args: Mapping[str, Any] | None, is_reward: bool = True
) -> tuple[Any, dict[str, Any]]:
    """The function or class that is meant, and its settings, checked."""
    settings = dict(args or {})
    if not isinstance(func, str):
        target: Any = func
    elif names_a_file(func):
        path, _, attribute = func.rpartition(":") if not func.endswith(".py") else (func, "", "")
        target = function_in_file(Path(path).expanduser(), attribute)
    elif func in rewards.REWARDS:
        target = getattr(rewards, func)
    elif IMPORT_PATH.fullmatch(func) and not Path(func).exists():
        module_name, _, attribute = func.replace(":", ".").rpartition(".")
        # A reward that comes with the project is found by its name, also under the path of a file that it once had.
        ours = module_name.startswith("rlhf_recipes.rewards.") and attribute in rewards.__all__
        target = getattr(rewards, attribute) if ours else function_in_module(module_name, attribute, _meant)
    elif "/" in func or "\\" in func or Path(func).exists():
        if "model" in settings:
            raise ValueError(f"The reward {func!r} is a model, and its args name another, {settings['model']!r}.")
        target, argument = _of_folder(Path(func).expanduser())
        settings = {argument: func, **settings}
    else:
        raise ValueError(
            f"There is no reward {func!r}{did_you_mean(func, rewards.REWARDS)} A reward is a name of "
            f"rlhf_recipes.rewards ({', '.join(rewards.REWARDS)}), path/to/file.py:name, package.module.name, or a "
            "model folder or model id."
        )
    _check_args(target, settings, inspect.isclass(target) or (is_reward and is_factory(target)))
    return target, settings


def _of_folder(folder: Path) -> tuple[Any, str]:
    """The reward that reads what a recipe left in a folder, and its argument for the folder; else a classifier."""
    for file, name, argument in LEFT_BY_RECIPES:
        if (folder / file).is_file():
            return getattr(rewards, name), argument
    settings = folder / filenames.REWARD_SETTINGS
    of_steps = settings.is_file() and '"step_token"' in settings.read_text()
    return (rewards.StepReward, "score") if of_steps else (rewards.LearnedReward, "model")


def _meant(module_name: str, attribute: str) -> str:
    """What a user may have meant who named a module that is not there: a file, or a reward of this project."""
    file = f"{module_name.replace('.', '/')}.py"
    if Path(file).is_file():
        return f"; did you mean '{file}:{attribute}'?"
    hints = (did_you_mean(word, rewards.REWARDS) for word in (module_name, attribute))
    return next((hint for hint in hints if hint != "."), ".")


def _check_args(target: Any, args: Mapping[str, Any], is_made: bool) -> None:
    """Refuse settings that a reward does not have, and where it `is_made` with them those that are missing."""
    parameters = parameters_of(target)
    if parameters is None:
        return
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if takes_any and inspect.isclass(target):
        return
    # A reward's **kwargs are there for columns; a setting that only they take would have no effect.
    named = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in ("prompts", "completions", "completion_ids")
    ]
    for name in args:
        if name not in named:
            raise ValueError(
                f"Reward {reward_name(target)!r} has no argument {name!r}{did_you_mean(name, named)} "
                f"It takes {', '.join(named) or 'none'}."
            )
    missing = [
        name for name in named if is_made and parameters[name].default is inspect.Parameter.empty and name not in args
    ]
    if missing:
        raise ValueError(f"Reward {reward_name(target)!r} needs {', '.join(missing)}: give it under args.")


def inner_reward(reward: Any, role: str) -> Any:
    """The reward inside another one, from a callable or from what a YAML file says of it.

    Args:
        role (`str`): What it is there, for messages, such as `"the cost of Discount"`.

    Raises:
        `ValueError`: if it cannot be found, has keys that are not known, or gives one number for each token.
    """
    if isinstance(reward, Mapping) and "weight" in reward:
        raise ValueError(f"What describes {role} has weight, which only a list of rewards knows: {dict(reward)}.")
    found = load_spec(reward)
    if is_per_token(found):
        raise ValueError(
            f"{reward_name(found)!r} gives one number for each token, but {role} must give one for each completion."
        )
    return found
