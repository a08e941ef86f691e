r"""What a run will take in memory, and whether it fits, before anything is loaded.

    python -m rlhf_recipes.modeling.memory --config recipes/configs/quickstart_ppo.yaml
    python -m rlhf_recipes.modeling.memory --config run.yaml --gpu "RTX 4090"
    python -m rlhf_recipes.modeling.memory --config run.yaml --fits 24GB --load_in_4bit --prompt_tokens 128 --json

Of models the config.json is read and nothing else. The YAML is that of any recipe, and flags override it. Exit code
0: it fits; 1: it does not, and what would help is said; 2: something is wrong with the command.
docs/memory.md says what is counted, and how near it comes to what was measured.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.modeling.memory.advice import advise
from rlhf_recipes.modeling.memory.estimate import as_mapping, estimate
from rlhf_recipes.modeling.memory.machines import Machine, named, of_size, this_one
from rlhf_recipes.modeling.memory.pages import page, table
from rlhf_recipes.modeling.memory.settings import RunArguments, recipe_of


@dataclass
class MemoryArguments:
    """What to fit into, and how to say it."""

    help_title = "The answer"

    recipe: str | None = field(
        default=None, metadata={"help": "Which recipe the YAML is for. Default: the one that its header runs."}
    )
    gpu: str | None = field(default=None, metadata={"help": 'Fit into this GPU, such as "RTX 4090".'})
    fits: str | None = field(
        default=None, metadata={"help": "Fit into a GPU with so much memory, such as 24GB. Default: this machine."}
    )
    prompt_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens of the longest prompt. Default: max_prompt_length, the most it may have."},
    )
    json: bool = field(default=False, metadata={"help": "One JSON object and no table."})
    table: str | None = field(
        default=None,
        metadata={"help": "The table of docs/memory.md, of the sizes in a JSON file of configs by name, or `known`."},
    )

    def __post_init__(self) -> None:
        if self.gpu is not None and self.fits is not None:
            raise ValueError("--gpu and --fits both say what to fit into. Give one of them.")
        if self.prompt_tokens is not None and self.prompt_tokens < 1:
            raise ValueError(f"prompt_tokens is {self.prompt_tokens}; give 1 or more.")

    def machine(self) -> Machine:
        """What to fit into."""
        if self.gpu is not None:
            return named(self.gpu)
        return this_one() if self.fits is None else of_size(self.fits)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    parser = RecipeParser(
        (MemoryArguments, RunArguments), __doc__, takes_any_recipe=True, prog="python -m rlhf_recipes.modeling.memory"
    )
    args, run = parser.parse(given)
    try:
        if args.table is not None:
            sys.stdout.write(table(None if args.table == "known" else Path(args.table)))
            return 0
        files = [given[index + 1] for index, flag in enumerate(given[:-1]) if flag == "--config"]
        files += [flag.partition("=")[2] for flag in given if flag.startswith("--config=")]
        recipe = args.recipe if args.recipe or not files else recipe_of(files[-1])
        recipe = recipe_of(files[-1] if files else "the command line", recipe)
        found = estimate(run, recipe, args.machine(), args.prompt_tokens)
        changes = [] if found.fits else advise(run, found, args.prompt_tokens)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.json:
        advice = [{"options": change.options, "total": change.total, "fits": change.fits} for change in changes]
        sys.stdout.write(json.dumps({**as_mapping(found), "advice": advice}) + "\n")
    else:
        page(found, changes)
    return 0 if found.fits else 1


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    sys.exit(main())
