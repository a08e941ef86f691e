"""What is learned from which feedback: for each loss the texts and targets of a row, and how logits become a score.

```
loss                    feedback                  a row is                   the model says
bradley_terry, hinge    pairs, votes              two texts                  one score
pairs_in_batch          ratings                   a text (or all of a list)  one score
mse, mae, huber         ratings                   a text                     one score, a rating
ordinal                 ratings on levels         a text                     one score, and thresholds
classification          ratings on levels         a text                     a number for each level
plackett_luce           rankings                  a list                     one score
best_worst              best_worst                a list                     one score
info_nce                rankings, best_worst      a list                     one score
binary_cross_entropy    unpaired                  a text                     one score, a logit
multi_objective         objectives                a text                     a number for each objective
process                 steps                     a solution                 one score at the end of each step
```

Each file has the losses of one kind: formula, settings, and what stands between them and a row.
`docs/reward_losses.md` says which fits when. A loss of your own is a file like these and its line in `LOSSES`, see
`docs/adding.md`.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rlhf_recipes.data.feedback.formats import Kind
from rlhf_recipes.imports import did_you_mean
from rlhf_recipes.reward_modeling.losses.base import Objective
from rlhf_recipes.reward_modeling.losses.labels import BinaryCrossEntropy
from rlhf_recipes.reward_modeling.losses.levels import Classification, Ordinal
from rlhf_recipes.reward_modeling.losses.lists import BestWorst, InfoNCE, PlackettLuce
from rlhf_recipes.reward_modeling.losses.objectives import MultiObjective
from rlhf_recipes.reward_modeling.losses.pairs import BradleyTerry, Hinge
from rlhf_recipes.reward_modeling.losses.pairs_in_batch import PairsInBatch
from rlhf_recipes.reward_modeling.losses.ratings import MAE, MSE, Huber
from rlhf_recipes.reward_modeling.losses.steps import Process
from rlhf_recipes.texts import sentence

AUTO = "auto"  # the first that reads the feedback
LOSSES: Mapping[str, type[Objective]] = {
    "bradley_terry": BradleyTerry,
    "hinge": Hinge,
    "pairs_in_batch": PairsInBatch,
    "mse": MSE,
    "mae": MAE,
    "huber": Huber,
    "ordinal": Ordinal,
    "classification": Classification,
    "plackett_luce": PlackettLuce,
    "best_worst": BestWorst,
    "info_nce": InfoNCE,
    "binary_cross_entropy": BinaryCrossEntropy,
    "multi_objective": MultiObjective,
    "process": Process,
}


def choose_loss(loss: str, kind: Kind) -> str:
    """The name of the loss for a kind of feedback.

    Raises:
        `ValueError`: if the loss does not read that kind; the message names those that do, and conversions.
    """
    fitting = [name for name, objective in LOSSES.items() if kind in objective.reads]
    if not fitting:
        raise ValueError(
            f"{kind} are noisy signs of what people liked, and no labels. Say how they become labels: convert_to: "
            "unpaired, with the rates of error in convert_args (docs/feedback_formats.md)."
        )
    name = fitting[0] if loss == AUTO else loss
    # Of ratings the pairs are drawn before training.
    if name in fitting or (name == "bradley_terry" and kind == "ratings"):
        return name
    raise ValueError(
        f"The loss {name} does not read {kind}. For {kind} there is {', '.join(fitting)}. With convert_to the rows "
        f"can become another format first ({' or '.join(LOSSES[name].reads)} for {name})."
    )


def make_objective(name: str, loss_args: Mapping[str, Any] | None = None, **defaults: Any) -> Objective:
    """One loss with its settings.

    Args:
        name (`str`): Of `LOSSES`.
        loss_args (`Mapping`, *optional*): Its settings.
        defaults: Settings that it gets if it has them and `loss_args` does not.

    Raises:
        `ValueError`: if it has no such setting, or one is out of range.
    """
    objective: Any = LOSSES[name]
    known = [item.name for item in fields(objective) if item.init]
    for key in loss_args or {}:
        if key not in known:
            there = f"It has {', '.join(known)}." if known else "It has none."
            raise ValueError(f"The loss {name} has no setting {key!r}{did_you_mean(key, known)} {there}")
    settings = {key: value for key, value in defaults.items() if key in known} | dict(loss_args or {})
    try:
        return objective(**settings)
    except TypeError as error:
        raise ValueError(f"loss_args {dict(loss_args or {})} do not fit the loss {name}: {sentence(error)}") from None
