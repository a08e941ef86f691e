"""What a completion costs: tokens, floating-point operations, parameters; and a factor that falls with the cost.

The first half is arithmetic on the shape of a decoder, without rewards and without weights. The second half are costs
as rewards. They are positive numbers: a negative weight makes the penalty `-lambda * C`, and [`Discount`] the factor
`delta(C)` of a product `P * delta(C)`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_recipes.modeling.cost.flops import DecoderShape, completion_flops, decoder_shape, parameters_active
from rlhf_recipes.rewards.contract.checks import check_positive
from rlhf_recipes.rewards.rules import Rule
from rlhf_recipes.texts import Text


@dataclass(frozen=True)
class Flops(Rule):
    """Floating-point operations of producing the completion, in GFLOPs (see [`completion_flops`]). A cost: 0 or more.

    Prompt and completion both count, and a token costs the more the later it comes. An empty completion costs 0; an
    empty prompt counts as the one token that a generation begins with. What the tokens say plays no part.

    Args:
        model (`str`, `Path`, config or [`DecoderShape`]):
            The model whose work is counted, as a rule the policy: a folder, a model id of the Hub or a config. No
            weights are loaded. It should read the same tokens as the policy, because those are counted.
        unit (`float`, *optional*, defaults to 1e9):
            Operations in one unit of the cost.
        tokenizer (`str`, `Path` or `PreTrainedTokenizerBase`, *optional*):
            Counts the tokens of prompts where the trainer does not give their ids, as TRL's do not. Default: that of
            the model's folder.

    Raises:
        `ValueError`: as [`decoder_shape`]; while scoring, if prompts come without ids and there is no tokenizer.
    """

    model: Any
    unit: float = 1e9
    tokenizer: Any = None
    shape: DecoderShape = field(init=False, repr=False, compare=False)

    wants_prompt_ids = True

    def __post_init__(self) -> None:
        check_positive("Flops", "unit", self.unit)
        object.__setattr__(self, "shape", decoder_shape(self.model))
        if hasattr(self.model, "parameters"):
            object.__setattr__(self, "model", self.model.config)  # a reward does not carry weights around

    def __call__(
        self,
        completions: Sequence[Text],
        prompts: Sequence[Text] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        prompt_ids: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        tokenizer = self.tokenizer or (self.model if isinstance(self.model, (str, Path)) else None)
        prompt_lengths = _prompt_lengths(self.__name__, prompts, prompt_ids, tokenizer)
        lengths = zip(prompt_lengths, _lengths(self.__name__, completion_ids), strict=True)
        return [completion_flops(self.shape, max(1, before), count) / self.unit for before, count in lengths]


@dataclass(frozen=True)
class TokenCount(Rule):
    """Tokens of the completion, the end-of-sequence token included. A cost: 0 or more; 0 for an empty completion.

    Args:
        include_prompt (`bool`, *optional*, defaults to `False`):
            Whether the tokens of the prompt count too.
        tokenizer (`str`, `Path` or `PreTrainedTokenizerBase`, *optional*):
            Counts the tokens of prompts where the trainer does not give their ids, as TRL's do not.
    """

    include_prompt: bool = False
    tokenizer: Any = None

    @property
    def wants_prompt_ids(self) -> bool:
        return self.include_prompt

    def __call__(
        self,
        completions: Sequence[Text],
        prompts: Sequence[Text] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        prompt_ids: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        counts = _lengths(self.__name__, completion_ids)
        if self.include_prompt:
            before = _prompt_lengths(self.__name__, prompts, prompt_ids, self.tokenizer)
            counts = [sum(pair) for pair in zip(before, counts, strict=True)]
        return [float(count) for count in counts]


@dataclass(frozen=True)
class ActiveParameters(Rule):
    """Parameters that the model uses for a token, in billions (see [`parameters_active`]). A cost, above 0.

    It is the same for all completions, so that no policy can change it and PPO refuses it as a reward. It tells
    structures of models apart, and scales a product.

    Args:
        model (`str`, `Path`, config or model):
            What is counted: a folder, a model id of the Hub, a config or a model.
        unit (`float`, *optional*, defaults to 1e9):
            Parameters in one unit of the cost.
    """

    model: Any
    unit: float = 1e9
    parameters: int = field(init=False, repr=False, compare=False)

    constant = True

    def __post_init__(self) -> None:
        check_positive("ActiveParameters", "unit", self.unit)
        object.__setattr__(self, "parameters", parameters_active(self.model))
        if hasattr(self.model, "parameters"):
            object.__setattr__(self, "model", getattr(self.model, "config", type(self.model).__name__))

    def __call__(self, completions: Sequence[Text], **kwargs: Any) -> list[float | None]:
        return [self.parameters / self.unit for _ in completions]


@functools.lru_cache(maxsize=8)
def _loaded_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    from rlhf_recipes.modeling.loading import check_model_path

    # A folder may hold a tokenizer and no model.
    return AutoTokenizer.from_pretrained(name if Path(name).is_dir() else check_model_path(name))


def tokenizer_of(tokenizer: Any) -> Any:
    """A tokenizer, from a folder, a model id or itself. Nothing on it is changed, and its pad token plays no part."""
    return _loaded_tokenizer(str(tokenizer)) if isinstance(tokenizer, (str, Path)) else tokenizer


def _lengths(reward: str, completion_ids: Sequence[Sequence[int]] | None) -> list[int]:
    if completion_ids is None:
        raise ValueError(f"{reward} counts tokens and needs completion_ids, which were not given.")
    return [len(ids) for ids in completion_ids]


def _prompt_lengths(
    reward: str, prompts: Sequence[Text] | None, prompt_ids: Sequence[Sequence[int]] | None, tokenizer: Any
) -> list[int]:
    if prompt_ids is not None:
        return [len(ids) for ids in prompt_ids]
    if prompts is None or tokenizer is None:
        missing = "neither prompts nor prompt_ids were given" if prompts is None else "the trainer gives no prompt_ids"
        raise ValueError(f"{reward} counts the tokens of prompts, but {missing}. Give the policy's tokenizer.")
    if not prompts:
        return []
    from rlhf_recipes.data.prompts import tokenize_prompts

    return [len(ids) for ids in tokenize_prompts(prompts, tokenizer_of(tokenizer))]
