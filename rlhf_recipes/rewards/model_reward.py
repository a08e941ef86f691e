"""What rewards that hold a model have in common."""

import functools
import inspect
from pathlib import Path
from typing import Any, ClassVar, Self


class ModelReward:
    """A reward that holds one model or several: named, shown and pickled by what it was made with.

    These arguments mean the same wherever a reward has them:

    Args:
        model (`str`, `Path` or `torch.nn.Module`), processing_class, max_length, device, dtype, load_in_4bit:
            As in [`~rlhf_recipes.modeling.frozen.FrozenModel`].
        batch_size (`int`, *optional*):
            Texts in one forward pass; they are of similar length.
        name (`str`, *optional*):
            What logs show. Default: the name of the class.

    Raises:
        `FileNotFoundError`: if there is no model where a path points.
        `ValueError`: if a weight of the model was not in its files, so that it would judge at random; if its tokenizer
            gives ids that it has no embedding for; if a setting is out of its range.
        `RewardError`: when called, if the model gives NaN or infinity; it names the row.
    """

    __name__: str
    model: Any
    _made_with: tuple[tuple[Any, ...], dict[str, Any]]
    shown: ClassVar[tuple[str, ...]] = ()  # attributes that its description tells

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        made._made_with = args, kwargs
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        # Made anew from where it was loaded: a pickle stays small, and the device is found where it is opened.
        args, kwargs = self._made_with
        given = inspect.signature(type(self)).bind(*args, **kwargs)
        given.apply_defaults()
        return functools.partial(type(self), **given.kwargs) if given.kwargs else type(self), given.args

    def hold(self, model: Any, kind: Any, name: str | None, trust: bool) -> None:
        """Take a fitted model, or load it from its folder; `trust` is that of the `load` of its kind."""
        given = isinstance(model, kind)
        self.model = model if given else kind.load(str(model), trust)
        if self.model.trained_on is None:
            raise ValueError("The model has not been fitted: call its fit_ratings or fit_pairs first.")
        self.__name__ = name or (type(self).__name__ if given else Path(str(model)).name)

    def __repr__(self) -> str:
        said = {"name": self.__name__} | {attribute: getattr(self, attribute) for attribute in self.shown}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in said.items())})"
