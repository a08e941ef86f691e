"""The card of a reward model: what it learned from, how good it is, what it leans on, and how to use it."""

from pathlib import Path

from rlhf_recipes import filenames
from rlhf_recipes.outputs import write_json
from rlhf_recipes.report.reward_card import write_card
from rlhf_recipes.reward_modeling.bias.measure import measure_bias
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.explain import heat_maps
from rlhf_recipes.reward_modeling.splits import Splits
from rlhf_recipes.rewards.learned import LearnedReward

# How far the scores are from those that TRL's GRPO and RLOO get where they are handed the folder by its name.
BY_NAME = {"size": "mean_difference_in_std", "largest": "max_difference_in_std"}
JUDGED = ("pairs", "votes", "ratings", "unpaired", "clicks", "dwell", "rankings", "best_worst")


def write_report(folder: Path, splits: Splits, args: RewardConfig, loss: str) -> Path:
    """Measure on the test rows what the scores lean on, and write `bias.json`, `report.html` and `README.md`.

    Args:
        folder (`Path`): The saved model, with the files that `measure` has written.
        splits ([`~rlhf_recipes.reward_modeling.splits.Splits`]): The rows.
        args ([`~rlhf_recipes.reward_modeling.config.RewardConfig`]): `group_column` and `min_gap` are used.
        loss (`str`): The name of the loss.

    Returns:
        `Path`: the page.
    """
    reward, bias = None, None
    if splits.kind in JUDGED:
        reward = LearnedReward(folder, batch_size=args.per_device_eval_batch_size, calibrate=False)
        bias = measure_bias(reward, splits.test, splits.kind, args.group_column, min_gap=args.min_gap, seed=args.seed)
        write_json(folder / filenames.BIAS, bias)
    by_name = bias and bias["encodings"]["by name in TRL"]
    path = None
    if by_name and by_name["texts"]:
        path = {BY_NAME.get(key, key): by_name[key] for key in (*BY_NAME, "correlation", "texts")}
    heat = ([], "") if splits.kind == "steps" else heat_maps(folder, reward)
    return write_card(folder, splits.facts() | {"loss": loss}, bias, by_trl=path, heat=heat)
