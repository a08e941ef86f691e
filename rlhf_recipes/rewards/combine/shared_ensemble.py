"""An ensemble of reward models that share one base in memory, and differ in LoRA adapter and head."""

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_recipes import filenames
from rlhf_recipes.data.chat import KWARGS
from rlhf_recipes.modeling.frozen import labels_of_adapter
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.modeling.reading import check_finite
from rlhf_recipes.outputs import write_json
from rlhf_recipes.rewards.base import log_means
from rlhf_recipes.rewards.combine.ensemble import Reduction, check_reduction, reduced, variance
from rlhf_recipes.rewards.contract.checks import check_choice
from rlhf_recipes.rewards.learned import LearnedReward
from rlhf_recipes.rewards.model_reward import ModelReward
from rlhf_recipes.texts import Text

GO_ON = "The command that trained it, given again, trains what is missing and keeps what is there."
Scale = Literal["standard", "rating", "none"]


def member_folder(folder: str | Path, index: int) -> Path:
    """Where the adapter of a member lies, counted from 0."""
    return Path(folder) / f"adapter_{index}"


@dataclass(frozen=True)
class EnsembleSettings:
    """What an ensemble is besides its adapters, as `ensemble.json` in its folder. Written last: without it, the
    training was not finished.

    Raises:
        `ValueError`: if there are fewer than two members, or a number does not fit.
    """

    members: int  # K, the number of adapters
    means: tuple[float, ...]  # (K,)  of each member's scores over the texts of the validation rows
    stds: tuple[float, ...]  # (K,)
    texts: int  # how many these were

    def __post_init__(self) -> None:
        object.__setattr__(self, "means", tuple(self.means))  # a list, out of a JSON file
        object.__setattr__(self, "stds", tuple(self.stds))
        if self.members < 2:
            raise ValueError(
                f"An ensemble of {self.members} member has no disagreement. Train two or more, or load the one that "
                "there is as a LearnedReward."
            )
        lengths = len(self.means), len(self.stds)
        if lengths != (self.members, self.members):
            raise ValueError(f"There are {self.members} members, but {lengths[0]} means and {lengths[1]} stds.")
        bad = [k for k in range(self.members) if not math.isfinite(self.means[k]) or not 0 < self.stds[k] < math.inf]
        if bad:
            k = bad[0]
            raise ValueError(
                f"The scores of member {k} have mean {self.means[k]} and standard deviation {self.stds[k]} over "
                f"{self.texts} texts; it must tell texts apart, in finite numbers. Train it anew, with a smaller "
                "learning_rate if it has gone wrong."
            )

    @classmethod
    def of(cls, scores: NDArray[np.float64]) -> "EnsembleSettings":
        """Those of raw scores `(K, N)` of validation texts."""
        table = np.asarray(scores, dtype=np.float64)
        return cls(len(table), tuple(table.mean(axis=1).tolist()), tuple(table.std(axis=1).tolist()), table.shape[1])

    def save(self, folder: str | Path) -> Path:
        """Write them into the folder, at once, and return the file's path."""
        return write_json(Path(folder) / filenames.ENSEMBLE, asdict(self))

    @classmethod
    def load(cls, folder: str | Path) -> "EnsembleSettings":
        """Read those of a folder.

        Raises:
            `FileNotFoundError`: if the folder holds no ensemble, or one whose training was not finished.
            `ValueError`: if the file cannot be understood.
        """
        path = Path(folder) / filenames.ENSEMBLE
        if not path.is_file():
            there = sorted(entry.name for entry in Path(folder).glob("adapter_*/"))
            if there:
                raise FileNotFoundError(
                    f"The ensemble in {folder} is not finished: it has {', '.join(there)}, but no {path.name}. {GO_ON}"
                )
            raise FileNotFoundError(
                f"There is no {filenames.ENSEMBLE} in {folder}, so it holds no ensemble. `recipes/reward_ensemble.py` "
                "makes one; for separate models there is EnsembleReward."
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            known = {item.name for item in fields(cls)}
            if not isinstance(data, dict) or set(data) != known:
                raise ValueError(f"it must hold {', '.join(sorted(known))}")
            return cls(**data)
        except (ValueError, TypeError) as error:
            raise ValueError(f"Cannot read {path}: {error}") from error


class SharedBaseEnsemble(ModelReward):
    """One number out of K reward models that are one base and K LoRA adapters with their heads, lower where they
    disagree.

    The base is in memory once. The members read a text in turn, K passes in all, because K small passes are as fast as
    one large one (see `docs/reward_uncertainty.md`).

    The score of a member that was trained on comparisons has no level and no unit of its own, so that a minimum over
    members would be that of whichever happens to lie lowest. Before they are put together, scores are therefore
    brought onto one scale:

    - `"standard"`: `(r_k - m_k) / s_k` with mean and standard deviation of member k over the validation texts of its
      training. 0 is an average text, 1 one standard deviation better.
    - `"rating"`: each through its own calibration to the rating scale, where there were ratings to fit it to.
    - `"none"`: as they are; for losses that learn the level of ratings.

    Then `reduce` makes one number of them as in [`EnsembleReward`], `penalty` being its `std_coef`, and
    `<name>/disagreement` is logged as there. What a text is to the model, and what becomes of long and of empty ones,
    is as in [`LearnedReward`].

    Args:
        folder (`str` or `Path`):
            As `recipes/reward_ensemble.py` writes it: `ensemble.json`, the tokenizer, `adapter_0`, `adapter_1`, ...
        reduce (`str`, *optional*, defaults to `"mean"`):
            `"mean"`, `"min"`, `"mean_minus_std"` or `"mean_minus_variance"`.
        penalty (`float`, *optional*, defaults to 1.0):
            What disagreement costs; 0 or more. Not read by `"mean"` and `"min"`.
        scale (`str`, *optional*, defaults to `"standard"`):
            `"standard"`, `"rating"` or `"none"`.
        batch_size, max_length, device, dtype, load_in_4bit:
            As in [`LearnedReward`].
        name (`str`, *optional*):
            What logs show. Default: the last part of the folder.
        batch_size, max_length, device, dtype, load_in_4bit: as in [`LearnedReward`].

    Raises:
        `FileNotFoundError`: if the folder holds no ensemble, or an adapter is missing.
        `ValueError`: if adapters have different bases, outputs or settings; if there are fewer than two; or if
            `scale` is `"rating"` and a member has no calibration.
        `RewardError`: when called, if a member gives NaN or infinity; it is named.

    Example:

    ```python
    reward = SharedBaseEnsemble("runs/ensemble", reduce="mean_minus_std", penalty=1.0)
    reward(prompts=["The film is"], completions=[" a delight."])  # one number
    reward.members(["The film is"], [" a delight."])  # (K, 1)
    ```
    """

    shown = ("reduce", "scale")

    def __init__(
        self,
        folder: str | Path,
        reduce: Reduction = "mean",
        penalty: float = 1.0,
        scale: Scale = "standard",
        batch_size: int = 32,
        max_length: int | None = None,
        name: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        load_in_4bit: bool = False,
    ) -> None:
        check_reduction(type(self).__name__, reduce, "penalty", penalty)
        check_choice("SharedBaseEnsemble", "scale", scale, get_args(Scale))
        self.settings = EnsembleSettings.load(folder)
        self.reduce, self.penalty, self.scale = reduce, penalty, scale
        options = {"max_length": max_length, "device": device, "dtype": dtype, "load_in_4bit": load_in_4bit}
        self.reader = load_members(folder, self.settings.members, batch_size=batch_size, **options)
        places = [member_folder(folder, k) for k in range(self.settings.members)]
        self.calibrations = [RewardModelSettings.load(place).to_ratings for place in places]
        if scale == "rating":
            self._check_calibrations()
        self.__name__ = name or Path(folder).resolve().name
        self._switching = threading.Lock()  # which adapter is active is a state of the one model

    @property
    def model(self) -> Any:
        """The base with all adapters."""
        return self.reader.model

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float]:
        """Score each prompt with its completion. `(B,)`"""
        rows = self.members(prompts, completions, template_kwargs=kwargs.get(KWARGS)).T.tolist()  # (B, K)
        disagreement = [math.sqrt(variance(row)) for row in rows]
        log_means(kwargs.get("log_metric"), self.__name__, {"disagreement": disagreement})
        return [reduced(row, self.reduce, self.penalty) for row in rows]

    def members(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        scale: Scale | None = None,
        template_kwargs: Sequence[Any] | None = None,
    ) -> NDArray[np.float64]:
        """What each member says, on one scale (instead of the ensemble's) and before it is reduced. `(K, B)`

        `template_kwargs` are what the chat template is told of each row.
        """
        wanted = scale or self.scale
        check_choice("SharedBaseEnsemble", "scale", wanted, get_args(Scale))
        with self._switching:
            scores = score_members(
                self.reader, self.settings.members, prompts, completions, self.__name__, template_kwargs
            )
        return self.scaled(scores, wanted)

    def scaled(self, scores: NDArray[np.float64], scale: Scale) -> NDArray[np.float64]:
        """Raw scores of the members on another scale. `(K, B) -> (K, B)`"""
        if scale == "none":
            return scores
        if scale == "standard":
            means, stds = np.array(self.settings.means), np.array(self.settings.stds)
            return (scores - means[:, None]) / stds[:, None]
        self._check_calibrations()
        return np.stack([own(row) for own, row in zip(self.calibrations, scores, strict=True) if own is not None])

    def _check_calibrations(self) -> None:
        without = [f"adapter_{k}" for k, calibration in enumerate(self.calibrations) if calibration is None]
        if without:
            raise ValueError(
                f"scale 'rating' needs the calibration of each member, and {', '.join(without)} has none: there were "
                "no ratings in its validation rows. Take scale 'standard'."
            )


def load_members(folder: str | Path, count: int, **kwargs: Any) -> LearnedReward:
    """The first member as a reward, whose model holds all `count` adapters; `kwargs` are for [`LearnedReward`]."""
    from transformers import AutoTokenizer  # lists all models that there are

    places = [member_folder(folder, index) for index in range(count)]
    check_members(places)
    # Without a tokenizer of its own the folder has that of the base.
    there = (Path(folder) / filenames.TOKENIZER_CONFIG).is_file()
    tokenizer = AutoTokenizer.from_pretrained(str(folder)) if there else None
    reader = LearnedReward(places[0], tokenizer, calibrate=False, name=Path(folder).resolve().name, **kwargs)
    device = str(next(reader.model.parameters()).device)
    for place in places:
        reader.model.load_adapter(str(place), adapter_name=place.name, torch_device=device)
    reader.model.set_adapter(places[0].name, inference_mode=True)
    reader.model.delete_adapter("default")  # the first, under the name that it was loaded by
    reader.model.requires_grad_(False)
    reader.model.eval()
    return reader


def score_members(
    reader: LearnedReward,
    count: int,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    name: str,
    template_kwargs: Sequence[Any] | None = None,
) -> NDArray[np.float64]:
    """Raw scores of every adapter. `(K, B)`

    Raises:
        `RewardError`: if one gives NaN or infinity.
    """
    token_ids = reader.encode(prompts, completions, template_kwargs)
    scores = np.empty((count, len(token_ids)))
    for index in range(count):
        reader.model.set_adapter(f"adapter_{index}", inference_mode=True)
        scores[index] = reader.scores(token_ids).numpy()
        check_finite(scores[index].tolist(), f"{name}/adapter_{index}", prompts, completions)
    return scores


def check_members(places: Sequence[Path]) -> None:
    """Raise where adapters are missing, or do not belong to one ensemble."""
    missing = [place.name for place in places if not (place / filenames.ADAPTER_CONFIG).is_file()]
    if missing:
        raise FileNotFoundError(
            f"The ensemble in {places[0].parent} has {len(places)} members, but {', '.join(missing)} is not there, or "
            f"holds no adapter. {GO_ON}"
        )
    from peft import PeftConfig

    first: dict[str, Any] = {}
    for place in places:
        config = PeftConfig.from_pretrained(str(place))
        settings = RewardModelSettings.load(place)
        found = {
            "base": config.base_model_name_or_path,
            "revision": config.revision,
            "task": str(config.task_type),
            "outputs": labels_of_adapter(place),
            "reading of texts": replace(settings, calibration=None),
        }
        first = first or found
        for key, value in found.items():
            if value != first[key]:
                raise ValueError(
                    f"The adapters of an ensemble must belong together, but {places[0].name} has the {key} "
                    f"{first[key]} and {place.name} {value}. Put models that differ into an EnsembleReward."
                )
