"""Rewards on a table of texts: what they say of each row, and how they stand to each other.

The commands `score` and `calibrate` of `python -m rlhf_recipes.rewards`. They read rows, score them as a trainer
would, and show figures (`balance.py`), histograms, and the rows that a list of rewards likes best and least.
"""

import argparse
import difflib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text as Cell
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.arguments import RecipeParser, UsageError, environment_of, read_yaml
from rlhf_recipes.data.columns import SYNONYMS
from rlhf_recipes.data.loading import load_rows
from rlhf_recipes.data.prompts import TAKEN, PromptArguments, prepare_prompts, tokenize_prompts
from rlhf_recipes.errors import RewardError
from rlhf_recipes.figures import draw_png
from rlhf_recipes.modeling.loading import load_tokenizer
from rlhf_recipes.outputs import prepare_output_dir, write_json, write_jsonl
from rlhf_recipes.rewards.base import Parts, Series, StartedRewards
from rlhf_recipes.rewards.contract.checks import is_per_token
from rlhf_recipes.rewards.loading import load_rewards
from rlhf_recipes.rewards.weighted_sum import WeightedSum
from rlhf_recipes.rewards.workbench.balance import Balance, balance_of, bins, figure, paint_histogram
from rlhf_recipes.texts import Text, as_text, cell_text, is_conversational, readable, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)
SCORE = """Score a table of texts with a list of rewards, and look at what they say.

The rewards of a recipe on the completions that an evaluation has written:

    python -m rlhf_recipes.rewards score --config recipes/configs/quickstart_ppo.yaml \\
        --data runs/quickstart/after/completions.jsonl --output_dir runs/scores

Any rewards on 200 rows of any file or Hub dataset:

    python -m rlhf_recipes.rewards score --data my-texts.csv --completion_column answer --limit 200 \\
        --reward_funcs Vader my_rewards.py:brevity --reward_weights 1 0.1

It shows the figures of each reward, how the values spread, and the best and the worst rows. The output folder gets
scores.jsonl (prompt, completion, every value) and histograms.png. The file of --config may be that of any recipe: the
rewards, the model (for its tokenizer), the dataset and the prompt column are read from it, and nothing else."""
CALIBRATE = """Weights that mean what they say: how much each reward of a list decides, and what would even it out.

The rewards of a recipe on completions of the policy before training, which is where they are to start from:

    python -m rlhf_recipes.rewards calibrate --config recipes/configs/quickstart_ppo.yaml \\
        --data runs/quickstart/before/completions.jsonl --output_dir runs/balance

Then train with the proposed weights; of two files the later one wins:

    accelerate launch recipes/ppo.py --config recipes/configs/quickstart_ppo.yaml --config runs/balance/rewards.yaml

Each weight that was given is divided by the reward's standard deviation, so that equal weights give equal spread. The
output folder gets balance.json, rewards.yaml and balance.png. The file of --config may be that of any recipe: the
rewards, the model (for its tokenizer), the dataset and the prompt column are read from it, and nothing else."""

# What is read from a recipe's file, and under which name it is known here.
OF_RECIPES = {
    "reward_funcs": "reward_funcs",
    "reward_weights": "reward_weights",
    "model_name_or_path": "tokenizer",
    "dataset_name": "data",
    "dataset_config": "data_config",
    "dataset_train_split": "split",
    "prompt_column": "prompt_column",
    "prompt_words": "prompt_words",
}
NEAR = 0.93  # from this similarity on a key of a file is a misspelt one
NUMBER = "_row"  # a column of ours, while rows are chosen
COMPLETIONS = ("completion", "text")  # columns that are taken without being named
WIDTH = 100  # of what goes to a file or a pipe, which has no width of its own
PROMPT_LENGTH, COMPLETION_LENGTH = 160, 320  # characters shown
FIRST_TO_GO = ((), ("25%", "75%"), ("25%", "75%", "50%"), ("min", "25%", "50%", "75%", "max"))  # columns of figures
BLOCKS = " ▏▎▍▌▋▊▉█"


@dataclass
class RewardOptions:
    """What is rewarded."""

    help_title = "Rewards"

    reward_funcs: list[str | dict] | None = field(
        default=None,
        metadata={
            "help": "Reward models (folder or Hub id), rewards by name (EndsWithSentence) or file.py:function. "
            "Default: reward_funcs of --config."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One weight for each reward. Default: 1 for all, or those of --config."}
    )
    progress: float = field(
        default=0.0, metadata={"help": "How far the run has come, from 0 to 1, for weights that change."}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.progress <= 1:
            raise ValueError(f"progress is {self.progress}; it is a share of the run, from 0 to 1.")


@dataclass
class RowOptions:
    """Which rows are scored."""

    help_title = "Rows"

    data: str | None = field(
        default=None,
        metadata={
            "help": "A local file (.jsonl .json .csv .parquet .txt), a folder, or a dataset id of the Hugging Face "
            "Hub. Default: dataset_name of --config."
        },
    )
    split: str | None = field(
        default=None, metadata={"help": "Default: train, or of --config's own dataset its dataset_train_split."}
    )
    data_config: str | None = field(
        default=None, metadata={"help": "Which configuration, of a dataset that has several. Default: the only one."}
    )
    completion_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the completions, text or messages. Default: completion, else text, else the last "
            "turn of messages."
        },
    )
    prompt_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the prompts. Default: that of --config, if the data has it, else prompt, question, "
            "query, instruction or input; without any, prompts are empty."
        },
    )
    prompt_words: int | None = field(
        default=None,
        metadata={
            "help": "Where one column holds whole texts: the first N words of each are its prompt, the rest is the "
            "completion. Default: that of --config."
        },
    )
    limit: int | None = field(
        default=None,
        metadata={"help": "Score N rows at most, drawn at random, those of one prompt together. Default: all."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of that draw."})
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Model folder or id whose tokenizer makes completion_ids, for rewards that count tokens. Default: "
            "model_name_or_path of --config."
        },
    )
    chunk_size: int = field(
        default=256, metadata={"help": "Rows that the rewards are given at a time; changes no result."}
    )

    def __post_init__(self) -> None:
        for name in ("limit", "prompt_words", "chunk_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give 1 or more.")


@dataclass
class OutputOptions:
    """What is written."""

    help_title = "Output"

    output_dir: str | None = field(default=None, metadata={"help": "Folder for the files. Default: none is written."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Write into a folder that holds other things. Nothing is deleted."}
    )


@dataclass
class ScoreOutput(OutputOptions):
    """What is shown and written."""

    top: int = field(default=10, metadata={"help": "How many of the best and of the worst rows to show."})

    def __post_init__(self) -> None:
        if self.top < 0:
            raise ValueError(f"top is {self.top}; give 0 or more.")


@dataclass
class CalibrateOutput(OutputOptions):
    """What is shown and written."""

    scaled: bool = field(
        default=False,
        metadata={"help": "Propose a Scale around each reward, which takes its mean away too, and keep the weights."},
    )


class WorkbenchParser(RecipeParser):
    """A parser to which `--config` may be the file of any recipe: it keeps apart what that says, in `recipe`."""

    def __init__(self, command: str, *args: Any, **kwargs: Any) -> None:
        self.recipe = argparse.Namespace()
        super().__init__(*args, prog=f"python -m rlhf_recipes.rewards {command}", **kwargs)

    def _read_config(self, path: str) -> dict[str, Any]:
        for key, (line, node) in read_yaml(path).items():
            where = f"{path}, line {line}"
            near = difflib.get_close_matches(key, OF_RECIPES, n=1, cutoff=NEAR)
            try:
                if key == "env":
                    os.environ.update(environment_of(node, where))
                elif key in OF_RECIPES:
                    self._take_entry(OF_RECIPES[key], node, self.recipe, path)
                elif near:
                    raise UsageError(f"unknown key {key!r}. Did you mean {near[0]!r}?")
            except (argparse.ArgumentError, UsageError) as error:
                raise UsageError(f"{where}: {error}") from None
        return {}


@dataclass(frozen=True)
class Sample:
    """Rows as the rewards are given them."""

    prompts: list[Text]
    completions: list[Text]
    columns: dict[str, list[Any]]
    rows: list[int]  # which rows of the data they are, from 0
    completion_ids: list[list[int]] | None = None
    prompt_ids: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.completions)


def score(argv: Sequence[str] | None = None) -> None:
    """The command `score`."""
    parser = WorkbenchParser("score", (RewardOptions, RowOptions, ScoreOutput), SCORE)
    reward_args, row_args, output_args = parser.parse(argv)
    output_dir = _output_dir(output_args)
    rewards, specs = _load_rewards(reward_args, parser.recipe)
    sample, title = _load_sample(row_args, parser.recipe, rewards)
    parts = score_rows(rewards, sample, row_args.chunk_size)
    balance = balance_of(rewards, parts, reward_args.progress, specs)

    console = _console()
    _print_title(console, title)
    console.print(_figures(balance, console))
    _print_remarks(console, balance.remarks)
    _print_title(console, "How many rows have which value")
    console.print(_histograms(balance, console))
    _print_rows(console, balance, sample, output_args.top)
    if output_dir is not None:
        write_jsonl(output_dir / "scores.jsonl", scored_rows(balance, sample))
        _draw_histograms(output_dir / "histograms.png", balance)
        console.print(f"\nSaved in {output_dir}: scores.jsonl, histograms.png", highlight=False)


def calibrate(argv: Sequence[str] | None = None) -> None:
    """The command `calibrate`."""
    parser = WorkbenchParser("calibrate", (RewardOptions, RowOptions, CalibrateOutput), CALIBRATE)
    reward_args, row_args, output_args = parser.parse(argv)
    output_dir = _output_dir(output_args)
    rewards, specs = _load_rewards(reward_args, parser.recipe)
    sample, title = _load_sample(row_args, parser.recipe, rewards)
    parts = score_rows(rewards, sample, row_args.chunk_size)
    balance = balance_of(rewards, parts, reward_args.progress, specs)

    console = _console()
    _print_title(console, title)
    console.print(_figures(balance, console))
    _print_title(console, "What each reward decides, and what it would with weights by spread")
    console.print(balance.proposal_table())
    if len(balance.rewards) > 1:
        _print_title(console, "Correlations: Pearson above the diagonal, Spearman below")
        console.print(balance.correlation_table())
    _print_remarks(console, (*balance.remarks, *balance.proposal_remarks))
    block = balance.to_yaml(output_args.scaled)
    if parser.recipe.__dict__.get("reward_weights") is not None:
        block += "reward_weights: null   # they stand with the rewards now\n"
    console.print(f"\n{block}", markup=False, highlight=False, soft_wrap=True)
    if output_dir is not None:
        write_json(output_dir / "balance.json", balance.as_dict())
        (output_dir / "rewards.yaml").write_text(block, encoding="utf-8")
        balance.plot(output_dir / "balance.png")
        console.print(f"\nSaved in {output_dir}: balance.json, rewards.yaml, balance.png", highlight=False)


# --- Rewards and rows -------------------------------------------------------------------------


def _output_dir(args: OutputOptions) -> Any:
    if args.output_dir is None:
        return None
    return prepare_output_dir(args.output_dir, "rewards", args.overwrite_output_dir)


def _load_rewards(args: RewardOptions, recipe: Any) -> tuple[WeightedSum, list[Any]]:
    of_recipe = args.reward_funcs is None
    specs = getattr(recipe, "reward_funcs", None) if of_recipe else args.reward_funcs
    if not specs:
        raise ValueError(
            "There are no rewards. Name them with --reward_funcs, or give the YAML of a recipe that has reward_funcs "
            "with --config. `python -m rlhf_recipes.rewards list` shows those that come with the project."
        )
    weights = args.reward_weights
    if weights is None and of_recipe:
        weights = getattr(recipe, "reward_weights", None)
    return load_rewards(specs, weights), specs


def _load_sample(args: RowOptions, recipe: Any, rewards: WeightedSum) -> tuple[Sample, str]:
    """The rows, with token ids where there is a tokenizer, and a title that says what they are."""
    of_recipe = SimpleNamespace(**{name: getattr(recipe, name, None) for name in OF_RECIPES.values()})
    name = args.data or of_recipe.data
    if name is None:
        raise ValueError(
            "There is nothing to score. Name a file, a folder or a dataset with --data, or give the YAML of a recipe "
            "that has dataset_name with --config."
        )
    own = args.data is None  # then the recipe's other words are about this very dataset
    split = args.split or (of_recipe.split if own else None) or "train"
    dataset = load_rows(name, split, args.data_config or (of_recipe.data_config if own else None)).with_format(None)
    sample, total = rows_of(dataset, args, of_recipe.prompt_column, of_recipe.prompt_words)
    sample = _with_ids(sample, args.tokenizer, of_recipe.tokenizer, rewards)
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
    numbers = list(dataset[NUMBER])
    names = [name for name in dataset.column_names if name not in (prompt, completion, NUMBER)]
    taken = [name for name in names if name in TAKEN and name not in ("completion_ids", "prompt_ids")]
    if taken:
        raise ValueError(f"The dataset's column {taken[0]!r} has the name of what every reward is given; rename it.")
    completions = list(dataset[completion])
    prompts: list[Any] = [""] * len(dataset) if prompt is None else [value or "" for value in dataset[prompt]]
    if completion == "messages":
        turns = [_last_turn(messages) for messages in completions]
        prompts = [before for before, _ in turns]
        completions = [last for _, last in turns]
    there = [row for row, value in enumerate(completions) if value is not None]
    if not there:
        raise ValueError(f"No row has a completion: the column {completion!r} has none that could be scored.")
    if len(there) < len(dataset):
        logger.warning("%d of %d rows have no completion and are left out.", len(dataset) - len(there), len(dataset))
    rows = _drawn([prompts[row] for row in there], there, args.limit, args.seed)
    pairs = [_checked_pair(prompts[row], completions[row], numbers[row], (prompt, completion)) for row in rows]
    picked = dataset.select(rows)
    columns = {name: list(picked[name]) for name in names}
    ids = {name: columns.pop(name, None) for name in ("completion_ids", "prompt_ids")}
    of_data = [numbers[row] for row in rows]
    sample = Sample([pair[0] for pair in pairs], [pair[1] for pair in pairs], columns, of_data, **ids)
    return sample, len(there)


def _columns_of(
    dataset: Dataset, args: RowOptions, prompt_column: str | None, prompt_words: int | None
) -> tuple[Dataset, str | None, str]:
    """Which columns hold prompts and completions; whole texts are cut where `prompt_words` says so."""
    there = [name for name in dataset.column_names if name != NUMBER]
    for option in ("prompt_column", "completion_column"):
        name = getattr(args, option)
        if name is not None and name not in there:
            raise ValueError(f"There is no column {name!r}, which --{option} names. The data has {', '.join(there)}.")
    completion = args.completion_column or next((name for name in (*COMPLETIONS, "messages") if name in there), None)
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


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)


def _by_prompt(prompts: Sequence[Any], rows: Sequence[int]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for prompt, row in zip(prompts, rows, strict=True):
        groups.setdefault(_key(prompt), []).append(row)
    return list(groups.values())


def _drawn(prompts: Sequence[Any], rows: Sequence[int], limit: int | None, seed: int) -> list[int]:
    """At most `limit` rows, prompt by prompt, so that completions of one prompt stay together; in their order."""
    if limit is None or limit >= len(rows):
        return list(rows)
    groups = _by_prompt(prompts, rows) if any(prompts) else [[row] for row in rows]
    taken: list[int] = []
    for place in np.random.default_rng(seed).permutation(len(groups)):
        group = groups[int(place)]
        if len(taken) + len(group) <= limit:
            taken += group
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
        sample = Sample(
            sample.prompts, sample.completions, sample.columns, sample.rows,
            completion_ids=_completion_ids(sample, tokenizer),
            prompt_ids=tokenize_prompts(sample.prompts, tokenizer) if rewards.wants_prompt_ids else None,
        )  # fmt: skip
    if sample.completion_ids is None:
        per_token = [func for func in rewards.reward_funcs if is_per_token(func)]
        if per_token:
            named = rewards.names[rewards.reward_funcs.index(per_token[0])]
            raise ValueError(f"Reward {named!r} gives a number for each token, and there are none: give --tokenizer.")
    return sample


def _completion_ids(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of each completion, and the end-of-sequence token, unless a column `finished` says that it was cut off."""
    texts = [as_text(completion) for completion in sample.completions]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    finished = sample.columns.get("finished") or [True] * len(texts)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [[*row, *(end if done is not False else [])] for row, done in zip(ids, finished, strict=True)]


# --- Scoring ----------------------------------------------------------------------------------


def score_rows(rewards: WeightedSum, sample: Sample, chunk_size: int) -> Parts:
    """The values of each reward, by name, in the order of the rows.

    Rewards are given chunks that hold all completions of a prompt, because some compare these. Rows without prompts
    are all of one prompt, the empty one.

    Raises:
        `RewardError`: as a trainer would; the row that it names is that of the data.
    """
    parts: Parts = {name: [None] * len(sample) for name in rewards.names}
    by_name = dict(zip(rewards.names, rewards.reward_funcs, strict=True))
    with tqdm(total=len(sample) * len(by_name), unit="value", desc="Scoring", leave=False) as bar:
        for rows in _chunks(sample.prompts, chunk_size):
            batch = _batch(sample, rows)
            # All are begun before one is waited for: those that wait on a server do so side by side.
            begun = {name: StartedRewards({name: func}, **batch) for name, func in by_name.items()}
            for name, started in begun.items():
                try:
                    values = started.values()[name]
                except RewardError as error:
                    raise _with_row_of_data(error, [sample.rows[row] for row in rows], sample) from error
                for row, value in zip(rows, values, strict=True):
                    parts[name][row] = value
                bar.update(len(rows))
    return parts


def _chunks(prompts: Sequence[Text], size: int) -> Iterator[list[int]]:
    chunk: list[int] = []
    for group in _by_prompt(prompts, range(len(prompts))):
        if chunk and len(chunk) + len(group) > size:
            yield chunk
            chunk = []
        chunk = chunk + group
    if chunk:
        yield chunk


def _batch(sample: Sample, rows: Sequence[int]) -> dict[str, Any]:
    columns = {name: [values[row] for row in rows] for name, values in sample.columns.items()}
    if sample.prompt_ids is not None:
        columns["prompt_ids"] = [sample.prompt_ids[row] for row in rows]
    return {
        "prompts": [sample.prompts[row] for row in rows],
        "completions": [sample.completions[row] for row in rows],
        # None, and not empty lists: a reward that counts tokens shall say that it has none.
        "completion_ids": None if sample.completion_ids is None else [sample.completion_ids[row] for row in rows],
        "columns": columns,
    }


def _with_row_of_data(error: RewardError, rows: Sequence[int], sample: Sample) -> RewardError:
    """The same error, its rows counted in the data and not in the chunk."""
    said = re.sub(r"\brow (\d+) \(prompt ", lambda found: f"row {rows[int(found[1])]} (prompt ", str(error))
    cause = error.__cause__
    if sample.completion_ids is None and (isinstance(cause, TypeError) or "completion_ids" in str(cause)):
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


# --- On the screen ----------------------------------------------------------------------------


def _console() -> Console:
    on_screen = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if on_screen else WIDTH, highlight=False)


def _is_plain(console: Console) -> bool:
    return console.options.ascii_only


def _print_title(console: Console, title: str) -> None:
    console.print()
    console.print(cell_text(title, _is_plain(console)), style="bold")
    console.print()


def _figures(balance: Balance, console: Console) -> Table:
    """The table of figures that fits: one that is too wide would lose names and the ends of numbers."""
    boundless = console.options.update(max_width=10_000)
    for without in FIRST_TO_GO:
        table = balance.table(without)
        if Measurement.get(console, boundless, table).maximum <= console.width:
            break
    return table


def _print_remarks(console: Console, remarks: Sequence[str]) -> None:
    if remarks:
        console.print()
    for remark in remarks:
        console.print(cell_text(f"* {remark}", _is_plain(console)))


def _histograms(balance: Balance, console: Console) -> Table:
    """A text histogram of the sum and of each reward, two beside each other where there is room."""
    plain = _is_plain(console)
    series = balance.series()
    columns = 2 if console.width >= 90 and len(series) > 1 else 1
    width = (console.width - 4 * (columns - 1)) // columns
    panels = []
    for number, (name, values) in enumerate(series.items()):
        lines = "\n".join(bar_lines(values, width, plain))
        above = Cell("\n" if number >= columns else "")
        panels.append(above + cell_text(name, plain).append(f"\n{lines}", style="not bold"))
    grid = Table.grid(*[""] * columns, padding=(0, 4, 0, 0))
    for first in range(0, len(panels), columns):
        grid.add_row(*panels[first : first + columns], style="bold")
    return grid


def bar_lines(values: Series, width: int, plain: bool = False) -> list[str]:
    """A histogram as lines of text: where a bin begins and ends, a bar, and how many values it holds.

    Args:
        width (`int`): Characters in a line.
        plain (`bool`, *optional*, defaults to `False`): ASCII alone, for terminals that know no other.
    """
    finite = np.array([value for value in values if value is not None and math.isfinite(value)])
    if not len(finite):
        return ["applies to no row"]
    edges, exact = bins(finite, 12)
    counts, _ = np.histogram(finite, edges)
    pairs = zip(edges[:-1], edges[1:], strict=True)
    labels = [figure(v) for v in exact] if exact else [f"{_edge(a, edges)} to {_edge(b, edges)}" for a, b in pairs]
    left, right = max(map(len, labels)), len(str(counts.max()))
    room = max(width - left - right - 2, 4)
    return [
        f"{label:>{left}} {_bar(int(count) / int(counts.max()), room, plain)} {count:>{right}}"
        for label, count in zip(labels, counts, strict=True)
    ]


def _edge(value: float, edges: np.ndarray) -> str:
    """An edge with as many decimals as tell it from the next."""
    step = float(edges[1] - edges[0])
    digits = next((digits for digits in range(7) if math.isclose(round(step, digits), step, rel_tol=1e-6)), None)
    return f"{value:.4g}" if digits is None or abs(value) >= 1e7 else f"{value:.{digits}f}"


def _bar(share: float, room: int, plain: bool) -> str:
    if plain:
        return ("#" * max(round(share * room), 1 if share else 0)).ljust(room)
    eighths = max(round(share * room * 8), 1 if share else 0)
    return (BLOCKS[-1] * (eighths // 8) + BLOCKS[eighths % 8].strip()).ljust(room)


def _print_rows(console: Console, balance: Balance, sample: Sample, top: int) -> None:
    scored = [(total, i) for i, total in enumerate(balance.totals) if total is not None]
    ranked = [i for _, i in sorted(scored, key=lambda pair: (-pair[0], pair[1]))]
    if not top or not ranked:
        return
    if len(ranked) <= 2 * top:
        console.print(_row_table(console, balance, sample, ranked, "All rows, the best first"))
        return
    console.print(_row_table(console, balance, sample, ranked[:top], f"The best {top} of {len(ranked)} rows"))
    console.print(_row_table(console, balance, sample, ranked[-top:], f"The worst {top}, the very worst last"))


def _row_table(console: Console, balance: Balance, sample: Sample, chosen: Sequence[int], title: str) -> Table:
    plain = _is_plain(console)
    has_prompts = any(sample.prompts)
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
        padding=(0, 1), leading=1, show_edge=False, expand=True,
    )  # fmt: skip
    table.add_column("row", justify="right")
    if has_prompts:
        table.add_column("prompt", ratio=3, overflow="fold")
    table.add_column("completion", ratio=5, overflow="fold")
    table.add_column("values", no_wrap=False, overflow="fold", min_width=14, max_width=30)
    for i in chosen:
        completion = shorten(as_text(sample.completions[i]), COMPLETION_LENGTH)
        texts = [cell_text(completion, plain) if completion.strip() else Cell("(empty)", style="dim")]
        if has_prompts:
            texts.insert(0, cell_text(shorten(readable(sample.prompts[i]), PROMPT_LENGTH), plain))
        table.add_row(str(sample.rows[i]), *texts, _values_of_row(balance, i, plain))
    return table


def _values_of_row(balance: Balance, i: int, plain: bool) -> Cell:
    lines = [f"{figure(values[i]):>6} {name}" for name, values in balance.series().items()]
    cell = Cell("\n").join(cell_text(line, plain) for line in lines)
    cell.stylize("bold", 0, cell.plain.find("\n"))
    return cell


def _draw_histograms(path: Any, balance: Balance) -> None:
    series = balance.series()
    columns = min(3, len(series))
    lines = math.ceil(len(series) / columns)

    def paint(canvas: "Figure") -> None:
        for number, (name, values) in enumerate(series.items()):
            axes = canvas.add_subplot(lines, columns, number + 1)
            paint_histogram(axes, name, values)
            if number % columns == 0:
                axes.set_ylabel("rows")

    draw_png(path, (4.2 * columns, 2.4 * lines), paint)
