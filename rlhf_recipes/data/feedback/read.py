r"""Human feedback in all the forms in which it comes: what it is, whether it is sound, and how one becomes another.

```
pairs       [prompt,] chosen, rejected [, margin] [, target]       one is better
votes       [prompt,] chosen, rejected, chosen_votes, rejected_votes
ratings     [prompt,] completion, score [, votes]                  continuous, or 1 to K
rankings    [prompt,] completions, ranks                           1 is best, ties share a rank
best_worst  [prompt,] completions, best, worst                     places in the list, from 0
unpaired    [prompt,] completion, label                            true or false, or a chance from 0 to 1
clicks      [prompt,] completion, clicks, views                    what readers did
dwell       [prompt,] completion, dwell_seconds
objectives  [prompt,] completion, scores                           {"helpful": 4, "honest": 2}
steps       [prompt,] completions, labels                          a list of steps, and one label for each
```

Prompts and completions are texts or lists of messages. The prompt may also stand inside both answers of a pair, as in
the raw dialogues of HH-RLHF ("\n\nHuman: ... \n\nAssistant: ..."). [`recognize`] tells the format from the columns,
[`check`] counts what is odd and refuses what is wrong, [`normalize`] gives clean rows, [`convert`] changes formats.

Rows are left out only where they can say nothing; how many, and why, is in the log and in [`Check`].

    python -m rlhf_recipes.data.feedback --dataset_name my-rows
    python -m rlhf_recipes.data.feedback --dataset_name my-rows --convert_to pairs --output_dir my-pairs

The first says what each split is and what is odd about it. The second writes a folder of pairs; what a conversion
needs goes into `convert_args`, and what the columns do not say into the other options (`--help` lists them).
"""

from datasets import Dataset

from rlhf_recipes.data.feedback.convert import convert
from rlhf_recipes.data.feedback.formats import WEIGHT, Check, FeedbackArguments, FeedbackSettings
from rlhf_recipes.data.feedback.recognize import normalize
from rlhf_recipes.data.feedback.weights import add_weights

__all__ = [
    "COLUMNS",
    "CONVERSIONS",
    "Check",
    "FeedbackArguments",
    "FeedbackFormat",
    "FeedbackSettings",
    "Kind",
    "check",
    "convert",
    "normalize",
    "read_rows",
    "recognize",
    "row_keys",
]


def read_rows(rows: Dataset, args: FeedbackArguments) -> tuple[Dataset, Check]:
    """Check and clean rows as the options say, give them weights, and put them into another format.

    Votes are counted before a conversion takes them away; labels and groups after it, which may make them.

    Raises:
        `ValueError`: as [`normalize`], [`convert`] and [`~rlhf_recipes.data.feedback.weights.add_weights`].
    """
    clean, found = normalize(rows, args.settings())
    if args.weights == "votes":
        clean = add_weights(clean, "votes")
    if args.wanted is not None:
        clean, _ = convert(clean, args.wanted, FeedbackSettings(found.format.kind), **(args.convert_args or {}))
    if args.weights == "votes" and WEIGHT not in clean.column_names:
        raise ValueError(f"{found.format.kind} become {args.wanted} without their weights. Leave out weights.")
    if args.weights in ("labels", "groups"):
        clean = add_weights(clean, "labels" if args.weights == "labels" else "groups")
    return clean, found
