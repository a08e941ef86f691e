"""The commands `score` and `calibrate` of `python -m rlhf_recipes.rewards`.

They read rows (`table.py`), score them as a trainer would, and show figures (`balance.py`), histograms, and the rows
that a list of rewards likes best and least (`show.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.outputs import prepare_output_dir, write_json, write_jsonl
from rlhf_recipes.rewards.loading import RewardArguments, load_rewards
from rlhf_recipes.rewards.weighted_sum import WeightedSum
from rlhf_recipes.rewards.workbench.balance import Balance, balance_of
from rlhf_recipes.rewards.workbench.show import Screen
from rlhf_recipes.rewards.workbench.table import RowOptions, Sample, load_sample, score_rows, scored_rows
from rlhf_recipes.starting.options import option

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


@dataclass
class RewardOptions(RewardArguments):
    """What is rewarded."""

    reward_funcs: list[str | dict] | None = option(  # type: ignore[assignment]
        None,
        "Reward models (folder or Hub id), rewards by name (EndsWithSentence) or file.py:function. "
        "Default: reward_funcs of --config.",
    )
    progress: float = option(0.0, "How far the run has come, from 0 to 1, for weights that change.")

    def __post_init__(self) -> None:
        if not 0 <= self.progress <= 1:
            raise ValueError(f"progress is {self.progress}; it is a share of the run, from 0 to 1.")


@dataclass
class OutputOptions:
    """What is written."""

    help_title = "Output"

    output_dir: str | None = option(None, "Folder for the files. Default: none is written.")
    overwrite_output_dir: bool = option(False, "Write into a folder that holds other things. Nothing is deleted.")


@dataclass
class ScoreOutput(OutputOptions):
    """What is shown and written."""

    top: int = option(10, "How many of the best and of the worst rows to show.")

    def __post_init__(self) -> None:
        if self.top < 0:
            raise ValueError(f"top is {self.top}; give 0 or more.")


def score(argv: Sequence[str] | None = None) -> None:
    """The command `score`."""
    args, screen, balance, sample, _ = _measured("score", ScoreOutput, SCORE, argv)
    screen.remarks(balance.remarks)
    screen.title("How many rows have which value")
    screen.histograms(balance)
    screen.rows(balance, sample, args.top)
    if args.output_dir is not None:
        folder = Path(args.output_dir)
        write_jsonl(folder / "scores.jsonl", scored_rows(balance, sample))
        balance.plot(folder / "histograms.png", correlations=False)
        screen.print(f"\nSaved in {folder}: scores.jsonl, histograms.png", highlight=False)


def calibrate(argv: Sequence[str] | None = None) -> None:
    """The command `calibrate`."""
    args, screen, balance, _, recipe = _measured("calibrate", OutputOptions, CALIBRATE, argv)
    screen.title("What each reward decides, and what it would with weights by spread")
    screen.print(balance.proposal_table())
    if len(balance.rewards) > 1:
        screen.title("Correlations: Pearson above the diagonal, Spearman below")
        screen.print(balance.correlation_table())
    screen.remarks((*balance.remarks, *balance.proposal_remarks))
    block = balance.to_yaml()
    if recipe.get("reward_weights") is not None:
        block += "reward_weights: null   # they stand with the rewards now\n"
    screen.print(f"\n{block}", markup=False, highlight=False, soft_wrap=True)
    if args.output_dir is not None:
        folder = Path(args.output_dir)
        write_json(folder / "balance.json", balance.as_dict())
        (folder / "rewards.yaml").write_text(block, encoding="utf-8")
        balance.plot(folder / "balance.png")
        screen.print(f"\nSaved in {folder}: balance.json, rewards.yaml, balance.png", highlight=False)


def _measured(
    command: str, output: type[OutputOptions], description: str, argv: Sequence[str] | None
) -> tuple[Any, Screen, Balance, Sample, dict[str, Any]]:
    """What both commands begin with: rows are read and scored, and the figures of each reward shown."""
    classes = (RewardOptions, RowOptions, output)
    parser = RecipeParser(classes, description, OF_RECIPES, prog=f"python -m rlhf_recipes.rewards {command}")
    reward_args, row_args, output_args = parser.parse(argv)
    if output_args.output_dir is not None:
        prepare_output_dir(output_args.output_dir, "rewards", output_args.overwrite_output_dir)
    rewards, specs = _load_rewards(reward_args, parser.recipe)
    sample, title = load_sample(row_args, parser.recipe, rewards)
    balance = balance_of(rewards, score_rows(rewards, sample, row_args.chunk_size), reward_args.progress, specs)
    screen = Screen()
    screen.title(title)
    screen.figures(balance)
    return output_args, screen, balance, sample, parser.recipe


def _load_rewards(args: RewardOptions, recipe: dict[str, Any]) -> tuple[WeightedSum, list[Any]]:
    of_recipe = args.reward_funcs is None
    specs = recipe.get("reward_funcs") if of_recipe else args.reward_funcs
    if not specs:
        raise ValueError(
            "There are no rewards. Name them with --reward_funcs, or give the YAML of a recipe that has reward_funcs "
            "with --config. `python -m rlhf_recipes.rewards list` shows those that come with the project."
        )
    weights = args.reward_weights
    if weights is None and of_recipe:
        weights = recipe.get("reward_weights")
    return load_rewards(specs, weights), specs
