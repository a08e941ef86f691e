"""Metrics of scores and feedback as modules of the library `evaluate`, which load from this folder, without the Hub.

| module | predictions | references |
|---|---|---|
| `pairwise_accuracy` | score of each text | its rating |
| `pairwise_accuracy`, configuration `pairs` | score of each chosen text | score of the rejected one |
| `rating_errors` | score of each text | its rating |
| `calibration` | probability | outcome, or share of votes |
| `win_rate` | score of each text | its rating |

```python
from rlhf_recipes import metrics

metrics.load("pairwise_accuracy").compute(predictions=scores, references=ratings)
```

`evaluate.load(str(metrics.path("pairwise_accuracy")))` does the same. What they compute, and what else may be given to
`compute`, is in `rlhf_recipes.reward_modeling.evaluation.figures`, which needs no `evaluate`.
"""

from pathlib import Path
from typing import Any

from rlhf_recipes.imports import optional

NAMES = ("calibration", "pairwise_accuracy", "rating_errors", "win_rate")


def path(name: str) -> Path:
    """The folder of a module, for `evaluate.load`; `ValueError` for a name that is none of `NAMES`."""
    if name not in NAMES:
        raise ValueError(f"There is no metric {name!r}. There are {', '.join(NAMES)}.")
    return Path(__file__).parent / name


def load(name: str, config_name: str | None = None, **options: Any) -> Any:
    """Load a module by `evaluate.load`, from this package and not from the Hub.

    `evaluate` copies the module into its cache of modules (`HF_MODULES_CACHE`) and imports the copy.

    Args:
        name (`str`): One of `NAMES`.
        config_name (`str`, *optional*): The module's configuration.
        options: For `evaluate.load`, such as `keep_in_memory` or `experiment_id`.

    Returns:
        `evaluate.EvaluationModule`: with `compute`, `add` and `add_batch`.

    Raises:
        `ValueError`: if there is no such module or configuration.
        `ImportError`: if `evaluate` is not installed.
    """
    folder = path(name)
    return optional("evaluate", "rlhf_recipes.metrics", extra="feedback").load(str(folder), config_name, **options)
