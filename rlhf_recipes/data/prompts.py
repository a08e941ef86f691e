"""From dataset rows to prompts: openings of texts, token ids, and what is done with prompts that are too long."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.data.chat import OPENING, ChatError, kwargs_of, once, open_ids, opening_of, render
from rlhf_recipes.data.columns import drop_blank, require_columns
from rlhf_recipes.data.loading import DataArguments, load_rows, sample_rows
from rlhf_recipes.starting.options import option
from rlhf_recipes.texts import is_conversational, sentence

logger = logging.getLogger(__name__)

# An opening must leave at least this many words to be continued.
MIN_REST = 3

# Tokens at the end of a prompt among which a tag is looked for.
LONGEST_OPENING = 32

# What every reward is given under these names besides the dataset's columns.
TAKEN = ("prompts", "completions", "completion_ids", "prompt_ids", "trainer_state", "log_metric", "log_extra")


@dataclass
class PromptArguments:
    """Where prompts come from.

    `prompt_words` is for a policy that continues texts; those too short to be continued are left out.
    """

    help_title = "Prompts"

    prompt_column: str = option("prompt", "Column with the prompts, text or messages.")
    prompt_words: int | None = option(
        None, "The first N words of each text are its prompt, the rest is kept in reference. Default: all of it."
    )

    def __post_init__(self) -> None:
        if self.prompt_words is not None and self.prompt_words < 1:
            raise ValueError(
                f"prompt_words is {self.prompt_words}; give 1 or more, or leave it out for whole prompts."
            )


def load_prompts(data: DataArguments, args: PromptArguments, held_out: bool = False) -> Dataset:
    """The prompts to train on, or the held-out ones, as text or messages.

    No tokenizer is needed, so that a wrong file or column is told before one is loaded.

    Raises:
        `ValueError`: as [`prepare_prompts`]; the errors of [`~rlhf_recipes.data.loading.load_rows`] too.
    """
    split = data.dataset_test_split if held_out else data.dataset_train_split
    rows = load_rows(data.dataset_name, split, data.dataset_config)
    rows = prepare_prompts(rows, args, f"{data.dataset_name} (split {split!r})")
    return sample_rows(rows, data.max_eval_samples if held_out else data.max_train_samples)


def prepare_prompts(dataset: Dataset, args: PromptArguments, name: str | None = None) -> Dataset:
    """A dataset with a column `prompt`, blank ones left out, and all other columns as they were.

    Args:
        dataset (`Dataset`), args ([`PromptArguments`]): The rows, and where their prompts are.
        name (`str`, *optional*): What the log calls the dataset.

    Raises:
        `ValueError`: if the column is missing (saying which exist), a prompt is `None` or a conversation without
            messages (naming the row), or no prompt is left.
    """
    require_columns(dataset, [args.prompt_column], "A list of prompts")
    for row, prompt in enumerate(dataset.with_format(None)[args.prompt_column]):
        if prompt is None or prompt == []:
            what = "it is None" if prompt is None else "the conversation is empty"
            where = f"row {row}, column {args.prompt_column!r}"
            raise ValueError(f"{name or 'The dataset'}, {where}: {what}. Fill it in, or leave the row out.")
    dataset, _ = drop_blank(dataset, [args.prompt_column], name)
    if args.prompt_column != "prompt":
        if "prompt" in dataset.column_names:
            logger.warning(
                "The prompts are those of %r; the dataset's own column 'prompt' is left out.", args.prompt_column
            )
            dataset = dataset.remove_columns("prompt")
        dataset = dataset.rename_column(args.prompt_column, "prompt")
    return dataset if args.prompt_words is None else openings(dataset, args.prompt_words)


def openings(dataset: Dataset, words: int) -> Dataset:
    """Cut each text of the column `prompt` after its first words: the rest becomes the column `reference`."""
    if is_conversational(dataset[0]["prompt"]):
        raise ValueError("prompt_words cuts plain texts, but the prompts are conversations. Leave it out.")
    if "reference" in dataset.column_names:
        raise ValueError("The rest of each text would replace the dataset's column 'reference'. Rename that column.")
    long_enough = [i for i, text in enumerate(dataset["prompt"]) if len(text.split()) >= words + MIN_REST]
    if not long_enough:
        raise ValueError(
            f"No text has {words + MIN_REST} words or more, so none can be cut after prompt_words {words}."
        )
    if len(long_enough) < len(dataset):
        logger.info(
            "%d of %d texts have fewer than %d words and are left out: too short for an opening of %d words.",
            len(dataset) - len(long_enough), len(dataset), words + MIN_REST, words,
        )  # fmt: skip
    dataset = dataset.select(long_enough)

    def cut(row: dict[str, Any]) -> dict[str, str]:
        parts = row["prompt"].split()
        return {"prompt": " ".join(parts[:words]), "reference": " " + " ".join(parts[words:])}

    return dataset.map(cut, desc="Openings")


def tokenize_prompts(
    prompts: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int | None = None,
    template_kwargs: Sequence[Mapping[str, Any]] | None = None,
) -> list[list[int]]:
    """Token ids of each prompt, open at its end; messages go through the chat template.

    A longer prompt loses its beginning. The beginning-of-sequence token is there once, also where the text has it and
    the tokenizer sets it, and an end that the tokenizer sets is taken off.

    Args:
        prompts (`Sequence`): Text, or messages; the last one of the assistant is continued.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The policy's.
        max_prompt_length (`int`, *optional*): Tokens of a prompt.
        template_kwargs (`Sequence[Mapping]`, *optional*): What the template is given for each row besides.

    Raises:
        `ValueError`: for a prompt that is missing, or that the template cannot render, with its row.
    """
    texts: list[str] = []
    for row, prompt in enumerate(prompts):
        try:
            if prompt is None:
                raise ChatError("it is None: fill it in, or leave the row out")
            own = template_kwargs[row] if template_kwargs is not None else None
            is_chat = is_conversational(prompt)
            texts.append(render(tokenizer, prompt, own, is_open=True) if is_chat else prompt)
        except ChatError as error:
            raise ValueError(
                f"The prompt of row {row} cannot be read: {sentence(error)} It is {str(prompt)[:160]}."
            ) from None
    if is_conversational(prompts[0]):
        rendered: Any = tokenizer(texts, add_special_tokens=False)["input_ids"]
        ids = [once(row, tokenizer) for row in rendered]
    else:
        ids = open_ids(texts, tokenizer)
    if max_prompt_length is None:
        return ids
    too_long = sum(len(row) > max_prompt_length for row in ids)
    if too_long:
        logger.warning(
            "%d of %d prompts are longer than max_prompt_length %d tokens and lose their beginning.",
            too_long, len(ids), max_prompt_length,
        )  # fmt: skip
    return [row[-max_prompt_length:] for row in ids]


@dataclass(frozen=True)
class Prompts:
    """Prompts that are ready for a policy: the rows that were kept, with a column `prompt`, and their token ids."""

    dataset: Dataset
    ids: list[list[int]]

    def __len__(self) -> int:
        return len(self.ids)


def encode_prompts(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int,
    overlong: str = "cut",
    data_collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]] | None = None,
) -> Prompts:
    """Rows with a column `prompt` (text or messages) or `input_ids` to [`Prompts`].

    Args:
        dataset (`Dataset`):
            Columns `prompt`, or `input_ids` without what `attention_mask` hides and without pad tokens at either end.
        max_prompt_length (`int`): Tokens of a prompt.
        overlong (`str`): `"cut"` takes the beginning of longer prompts away, `"drop"` leaves them out.
        data_collator (callable, *optional*):
            Has the last word on a prompt's ids: it is given each row with its `input_ids` in a list of one, and its
            `input_ids` (less what its `attention_mask` hides) are taken.

    Raises:
        `TypeError`: if it is no `Dataset`.
        `ValueError`: if the dataset is empty, has neither column, has one with the name of what rewards are given, or
            no prompt is short enough.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(f"PPO needs a datasets.Dataset with a length, but was given a {type(dataset).__name__}.")
    if not len(dataset):
        raise ValueError("The dataset is empty: PPO needs prompts.")
    taken = [name for name in TAKEN if name in dataset.column_names]
    if taken:
        raise ValueError(f"The dataset's column {taken[0]!r} has the name of what every reward is given; rename it.")
    if "prompt" in dataset.column_names:
        if "input_ids" in dataset.column_names:
            logger.warning(
                "The dataset has both 'prompt' and 'input_ids': the prompts are those of 'prompt', and 'input_ids' is "
                "left out. Take the column 'prompt' away to have the token ids count."
            )
            dataset = dataset.remove_columns("input_ids")
        prompts = list(dataset.with_format(None)["prompt"])
        ids = tokenize_prompts(prompts, tokenizer, template_kwargs=kwargs_of(dataset))
        dataset = with_openings(dataset, ids, tokenizer)
    elif "input_ids" in dataset.column_names:
        ids = _without_padding(dataset, tokenizer.pad_token_id)
        dataset = dataset.remove_columns(
            [name for name in ("input_ids", "attention_mask") if name in dataset.features]
        )
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        dataset = dataset.add_column("prompt", texts) if dataset.column_names else Dataset.from_dict({"prompt": texts})
    else:
        raise ValueError(
            f"PPO needs a column 'prompt' (text or messages) or 'input_ids', but the dataset has "
            f"{', '.join(dataset.column_names)}. Rename the right one."
        )
    if data_collator is not None:
        pad = tokenizer.pad_token_id
        ids = [_collated(row, row_ids, data_collator, pad) for row, row_ids in zip(dataset, ids, strict=True)]
    return Prompts(*_fitting(dataset, ids, max_prompt_length, overlong))


def with_openings(dataset: Dataset, ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Rows with the column `answer_opening`, for rewards, where the template begins the answer itself (`<think>`).

    Args:
        dataset (`Dataset`): Rows with a column `prompt`.
        ids (`Sequence[Sequence[int]]`): Token ids of each prompt.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The policy's.
    """
    prompts = dataset.with_format(None)["prompt"]
    if OPENING in dataset.column_names or not is_conversational(prompts[0]):
        return dataset
    ends = tokenizer.batch_decode([list(row[-LONGEST_OPENING:]) for row in ids])
    openings = [opening_of(messages, end) for messages, end in zip(prompts, ends, strict=True)]
    return dataset.add_column(OPENING, openings) if any(openings) else dataset


def _fitting(
    dataset: Dataset, ids: list[list[int]], max_prompt_length: int, overlong: str
) -> tuple[Dataset, list[list[int]]]:
    kept = [row for row, row_ids in enumerate(ids) if len(row_ids) <= max_prompt_length]
    too_long = len(ids) - len(kept)
    if not too_long:
        return dataset, ids
    logger.warning(
        "%d of %d prompts are longer than max_prompt_length %d tokens and %s.",
        *(too_long, len(ids), max_prompt_length),
        "lose their beginning" if overlong == "cut" else "are left out",
    )
    if overlong == "cut":
        return dataset, [row_ids[-max_prompt_length:] for row_ids in ids]
    if not kept:
        raise ValueError(
            f"All {len(ids)} prompts are longer than max_prompt_length {max_prompt_length} tokens, and "
            "overlong_prompts is 'drop'. Raise max_prompt_length, or give overlong_prompts 'cut'."
        )
    return dataset.select(kept), [ids[row] for row in kept]


def _without_padding(dataset: Dataset, pad_token_id: int | None) -> list[list[int]]:
    plain = dataset.with_format(None)  # lists, also where the user wants tensors
    if "attention_mask" not in dataset.column_names:
        return [_stripped(row, pad_token_id) for row in plain["input_ids"]]
    pairs = zip(plain["input_ids"], plain["attention_mask"], strict=True)
    return [[token for token, real in zip(*pair, strict=True) if real] for pair in pairs]


def _stripped(ids: Sequence[int], pad_token_id: int | None) -> list[int]:
    """Without pad tokens at either end. One in the middle is the user's."""
    real = [position for position, token in enumerate(ids) if token != pad_token_id]
    return list(ids[real[0] : real[-1] + 1]) if real else []


def _collated(
    row: dict[str, Any], ids: list[int], data_collator: Callable[..., Mapping[str, Any]], pad_token_id: int | None
) -> list[int]:
    # Those of transformers, functions and classes, make tensors of all columns, and fail on texts.
    module = getattr(data_collator, "__module__", "")
    own = module.startswith("transformers.")
    made = data_collator([{"input_ids": ids} if own else {**row, "input_ids": ids}])
    row_ids = [int(token) for token in made["input_ids"][0]]
    mask = made.get("attention_mask")
    if mask is None:
        return _stripped(row_ids, pad_token_id)
    return [token for token, real in zip(row_ids, mask[0], strict=True) if int(real)]


def check_prompts(prompt_ids: Sequence[Sequence[int]], model: Any, max_completion_length: int) -> None:
    """Make sure that each prompt has a token, and that it and its completion fit into the model's context.

    Raises:
        `ValueError`: if not, with the numbers that do not fit.
    """
    empty = [row for row, ids in enumerate(prompt_ids) if not ids]
    if empty:
        raise ValueError(f"Row {empty[0]} has a prompt without tokens ({len(empty)} such rows). Leave them out.")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(ids) for ids in prompt_ids)
    if context is not None and longest + max_completion_length > context:
        raise ValueError(
            f"The longest prompt has {longest} tokens; with max_completion_length {max_completion_length} that is "
            f"more than the {context} tokens of the policy's context. Lower max_prompt_length or "
            "max_completion_length."
        )
