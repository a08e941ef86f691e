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

`python -m rlhf_recipes.data.feedback` does this from a shell.
"""

from rlhf_recipes.data.feedback.formats import (
    COLUMNS,
    CONVERSIONS,
    FORMATS,
    Check,
    Feedback,
    FeedbackArguments,
    FeedbackFormat,
    FeedbackSettings,
    Kind,
)
from rlhf_recipes.data.feedback.read import check, convert, normalize, read_rows
from rlhf_recipes.data.feedback.recognize import recognize, row_keys

__all__ = [
    "COLUMNS",
    "CONVERSIONS",
    "FORMATS",
    "Check",
    "Feedback",
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
