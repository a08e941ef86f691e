"""Rows of texts, as rewards are given them: from any table to prompts, completions and columns, and to values."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.data.columns import SYNONYMS
from rlhf_recipes.data.loading import load_rows
from rlhf_recipes.data.prompts import TAKEN, PromptArguments, prepare_prompts, tokenize_prompts
from rlhf_recipes.errors import RewardError
from rlhf_recipes.modeling.loading import load_tokenizer
from rlhf_recipes.rewards.base import Parts
from rlhf_recipes.rewards.weighted_sum import WeightedSum
from rlhf_recipes.rewards.workbench.balance import Balance
from rlhf_recipes.starting.options import option
from rlhf_recipes.statistics import rows_by_key
from rlhf_recipes.texts import Text, as_text, is_conversational

logger = logging.getLogger(__name__)
NUMBER = "_row"  # a column of ours, while rows are chosen
COMPLETIONS = ("completion", "text", "messages")  # columns that are taken without being named


@dataclass
class RowOptions:
    """Which rows are scored."""

    help_title = "Rows"

    data: str | None = option(
        None,
        "A local file (.jsonl .json .csv .parquet .txt), a folder, or a dataset id of the Hugging Face "
        "Hub. Default: dataset_name of --config.",
    )
    split: str | None = option(None, "Default: train, or of --config's own dataset its dataset_train_split.")
    data_config: str | None = option(
        None, "Which configuration, of a dataset that has several. Default: the only one."
    )
    completion_column: str | None = option(
        None,
        "Column with the completions, text or messages. Default: completion, else text, else the last "
        "turn of messages.",
    )
    prompt_column: str | None = option(
        None,
        "Column with the prompts. Default: that of --config, if the data has it, else prompt, question, "
        "query, instruction or input; without any, prompts are empty.",
    )
    prompt_words: int | None = option(
        None,
        "Where one column holds whole texts: the first N words of each are its prompt, the rest is the "
        "completion. Default: that of --config.",
    )
    limit: int | None = option(
        None, "Score N rows at most, drawn at random, those of one prompt together. Default: all."
    )
    seed: int = option(0, "Seed of that draw.")
    tokenizer: str | None = option(
        None,
        "Model folder or id whose tokenizer makes completion_ids, for rewards that count tokens. Default: "
        "model_name_or_path of --config.",
    )
    chunk_size: int = option(256, "Rows that the rewards are given at a time; changes no result.")

    def __post_init__(self) -> None:
        for name in ("limit", "prompt_words", "chunk_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give 1 or more.")


@dataclass(frozen=True)
class Sample:
    """Rows as the rewards are given them."""

    prompts: list[Text]
    completions: list[Text]
    columns: dict[str, list[Any]]
    rows: list[int]  # which rows of the data they are, from 0
    completion_ids: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.completions)

    def take(self, rows: Sequence[int]) -> "Sample":
        """Some of the rows, counted here."""
        return Sample(
            prompts=[self.prompts[row] for row in rows],
            completions=[self.completions[row] for row in rows],
            columns={name: [values[row] for row in rows] for name, values in self.columns.items()},
            rows=[self.rows[row] for row in rows],
            completion_ids=None if self.completion_ids is None else [self.completion_ids[row] for row in rows],
        )


def load_sample(args: RowOptions, recipe: Mapping[str, Any], rewards: WeightedSum) -> tuple[Sample, str]:
    """The rows, with token ids where there is a tokenizer, and a title that says what they are."""
    name = args.data or recipe.get("data")
    if name is None:
        raise ValueError(
            "There is nothing to score. Name a file, a folder or a dataset with --data, or give the YAML of a recipe "
            "that has dataset_name with --config."
        )
    about_it = recipe if args.data is None else {}  # else the recipe's other words are about another dataset
    split = args.split or about_it.get("split") or "train"
    dataset = load_rows(name, split, args.data_config or about_it.get("data_config")).with_format(None)
    sample, total = rows_of(dataset, args, recipe.get("prompt_column"), recipe.get("prompt_words"))
    sample = _with_ids(sample, args.tokenizer, recipe.get("tokenizer"), rewards)
    of_all = f" of {total}" if total > len(sample) else ""
    return sample, f"{len(sample)}{of_all} completion{'' if len(sample) == 1 else 's'} of {name}"


def rows_of(
    dataset: Dataset, args: RowOptions, prompt_column: str | None = None, prompt_words: int | None = None
) -> tuple[Sample, int]:
    """Prompts, completions and all other columns of a dataset, `limit` of its rows, and how many it has to offer.

    Args:
        prompt_column (`str`, *optional*), prompt_words (`int`, *optional*):
            What a recipe says; it holds where the data is such that it can.

    Raises:
        `ValueError`: if a column is missing, or no row has a completion.
    """
    dataset = dataset.add_column(NUMBER, range(len(dataset)))  # texts too short to be cut may be left out below
    dataset, prompt, completion = _columns_of(dataset, args, prompt_column, prompt_words)
    names = [name for name in dataset.column_names if name not in (prompt, completion, NUMBER)]
    taken = [name for name in names if name in TAKEN and name not in ("completion_ids", "prompt_ids")]
    if taken:
        raise ValueError(f"The dataset's column {taken[0]!r} has the name of what every reward is given; rename it.")
    completions = list(dataset[completion])
    prompts: list[Any] = [""] * len(dataset) if prompt is None else [value or "" for value in dataset[prompt]]
    if completion == "messages":
        turns = [_last_turn(messages) for messages in completions]
        prompts, completions = [before for before, _ in turns], [last for _, last in turns]
    there = [row for row, value in enumerate(completions) if value is not None]
    if not there:
        raise ValueError(f"No row has a completion: the column {completion!r} has none that could be scored.")
    if len(there) < len(dataset):
        logger.warning("%d of %d rows have no completion and are left out.", len(dataset) - len(there), len(dataset))
    rows = _drawn([prompts[row] for row in there], there, args.limit, args.seed)
    picked = dataset.select(rows)
    columns = {name: list(picked[name]) for name in names}
    ids, numbers = columns.pop("completion_ids", None), list(picked[NUMBER])
    checked = [
        _checked_pair(prompts[row], completions[row], number, (prompt, completion))
        for row, number in zip(rows, numbers, strict=True)
    ]
    return Sample([pair[0] for pair in checked], [pair[1] for pair in checked], columns, numbers, ids), len(there)


def _columns_of(
    dataset: Dataset, args: RowOptions, prompt_column: str | None, prompt_words: int | None
) -> tuple[Dataset, str | None, str]:
    """Which columns hold prompts and completions; whole texts are cut where `prompt_words` says so."""
    there = [name for name in dataset.column_names if name != NUMBER]
    for given in ("prompt_column", "completion_column"):
        name = getattr(args, given)
        if name is not None and name not in there:
            raise ValueError(f"There is no column {name!r}, which --{given} names. The data has {', '.join(there)}.")
    completion = args.completion_column or next((name for name in COMPLETIONS if name in there), None)
    if completion is None:
        others = [name for name in SYNONYMS["completion"] if name in there]
        raise ValueError(
            f"The data has no column 'completion', 'text' or 'messages' to score. It has {', '.join(there)}. Name "
            f"the one with the texts: --completion_column {others[0] if others else there[0]}."
        )
    spellings = [name for name in ("prompt", *SYNONYMS["prompt"]) if name in there and name != completion]
    words = args.prompt_words or prompt_words
    wanted = args.prompt_column or prompt_column
    whole_text = wanted == completion or (args.prompt_words is not None and wanted is None)
    if whole_text and words is not None and (args.prompt_words is not None or "prompt" not in there):
        dataset = prepare_prompts(dataset, PromptArguments(prompt_column=completion, prompt_words=words))
        return dataset, "prompt", "reference"
    if args.prompt_words is not None:
        raise ValueError(
            f"prompt_words cuts whole texts into prompt and completion, but prompts are to come from {wanted!r} and "
            f"completions from {completion!r}. Leave it out, or give the same column for both."
        )
    if wanted in there and wanted != completion:
        return dataset, wanted, completion
    return dataset, spellings[0] if spellings and completion != "messages" else None, completion


def _last_turn(messages: Any) -> tuple[Any, Any]:
    """A conversation as what came before and what the assistant said last; no completion if it did not."""
    if not messages or not is_conversational(messages) or messages[-1]["role"] != "assistant":
        return [], None
    return messages[:-1], messages[-1:]


def _checked_pair(prompt: Any, completion: Any, row: int, names: tuple[str | None, str]) -> tuple[Any, Any]:
    for value, name in zip((prompt, completion), names, strict=True):
        if not isinstance(value, str) and not is_conversational(value):
            raise ValueError(
                f"Column {name!r} holds neither text nor messages in row {row}, but a {type(value).__name__}: "
                f"{str(value)[:60]}. Name another with --prompt_column or --completion_column."
            )
    if isinstance(prompt, list) and prompt and isinstance(completion, str):
        return prompt, [{"role": "assistant", "content": completion}]
    return prompt if prompt or isinstance(completion, str) else [], completion


def _drawn(prompts: Sequence[Any], rows: Sequence[int], limit: int | None, seed: int) -> list[int]:
    """At most `limit` rows, prompt by prompt, so that completions of one prompt stay together; in their order."""
    if limit is None or limit >= len(rows):
        return list(rows)
    groups = rows_by_key(prompts if any(prompts) else list(rows), len(rows))
    taken: list[int] = []
    for place in np.random.default_rng(seed).permutation(len(groups)):
        if len(taken) + len(groups[place]) <= limit:
            taken += [rows[index] for index in groups[place]]
    if not taken:  # every prompt has more completions than that
        raise ValueError(
            f"limit is {limit}, but each prompt has {min(map(len, groups))} completions or more, which are scored "
            "together. Raise it."
        )
    return sorted(taken)


def _with_ids(sample: Sample, typed: str | None, of_recipe: str | None, rewards: WeightedSum) -> Sample:
    """The rows with their token ids: those of the data, or of a tokenizer, if there is one."""
    name = typed or (of_recipe if sample.completion_ids is None else None)
    tokenizer = None
    if name is not None:
        try:
            tokenizer = load_tokenizer(name)
        except (OSError, ValueError) as error:
            if typed is not None:
                raise
            reason = str(error).split("\n")[0]
            logger.warning("There will be no token ids, as the tokenizer of %s cannot be loaded: %s", name, reason)
    if tokenizer is not None:
        columns = {name: values for name, values in sample.columns.items() if name != "prompt_ids"}
        if rewards.wants_prompt_ids:
            columns["prompt_ids"] = tokenize_prompts(sample.prompts, tokenizer)
        sample = replace(sample, columns=columns, completion_ids=_completion_ids(sample, tokenizer))
    per_token = rewards.token_names + rewards.potential_names
    if sample.completion_ids is None and per_token:
        raise ValueError(
            f"Reward {per_token[0]!r} gives a number for each token, and there are none: give --tokenizer."
        )
    return sample


def _completion_ids(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of each completion, and the end-of-sequence token, unless a column `finished` says that it was cut off."""
    texts = [as_text(completion) for completion in sample.completions]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    finished = sample.columns.get("finished") or [True] * len(texts)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [[*row, *(end if done is not False else [])] for row, done in zip(ids, finished, strict=True)]


def score_rows(rewards: WeightedSum, sample: Sample, chunk_size: int) -> Parts:
    """The values of each reward, by name, in the order of the rows.

    Rewards are given chunks that hold all completions of a prompt, because some compare these. Rows without prompts
    are all of one prompt, the empty one.

    Raises:
        `RewardError`: as a trainer would; the row that it names is that of the data.
    """
    parts: Parts = {name: [None] * len(sample) for name in rewards.names}
    with tqdm(total=len(sample), unit="row", desc="Scoring", leave=False) as bar:
        for rows in _chunks(sample.prompts, chunk_size):
            chunk = sample.take(rows)
            # None, and not empty lists: a reward that counts tokens shall say that it has none.
            ids: Any = chunk.completion_ids
            try:
                scored = rewards.parts(chunk.prompts, chunk.completions, ids, **chunk.columns)
            except RewardError as error:
                raise _with_row_of_data(error, chunk) from error
            for name, values in scored.items():
                for row, value in zip(rows, values, strict=True):
                    parts[name][row] = value
            bar.update(len(rows))
    return parts


def _chunks(prompts: Sequence[Text], size: int) -> Iterator[list[int]]:
    chunk: list[int] = []
    for group in rows_by_key(prompts, len(prompts)):
        if chunk and len(chunk) + len(group) > size:
            yield chunk
            chunk = []
        chunk = [*chunk, *group.tolist()]
    if chunk:
        yield chunk


def _with_row_of_data(error: RewardError, chunk: Sample) -> RewardError:
    """The same error, its rows counted in the data and not in the chunk."""
    said = re.sub(r"\brow (\d+) \(prompt ", lambda found: f"row {chunk.rows[int(found[1])]} (prompt ", str(error))
    cause = error.__cause__
    if chunk.completion_ids is None and (isinstance(cause, TypeError) or "completion_ids" in str(cause)):
        said += " There are no completion_ids, for want of a tokenizer: give --tokenizer if it counts tokens."
    return type(error)(said)


def scored_rows(balance: Balance, sample: Sample) -> Iterator[dict[str, Any]]:
    """The rows of scores.jsonl: `row`, `prompt`, `completion`, `score` and `scores`, as an evaluation writes them."""
    for i, row in enumerate(sample.rows):
        yield {
            "row": row,
            "prompt": sample.prompts[i],
            "completion": sample.completions[i],
            "score": balance.totals[i],
            "scores": {name: values[i] for name, values in balance.values.items()},
        }
