"""Try rewards on texts before a run: score a file, compare the rewards of a list, see which there are.

    python -m rlhf_recipes.rewards list                   the rewards that come with the project
    python -m rlhf_recipes.rewards score --help           what a list of rewards says of completions
    python -m rlhf_recipes.rewards calibrate --help       weights that mean what they say

With the rewards of a recipe and the completions of an evaluation:

    python -m rlhf_recipes.rewards score --config recipes/configs/quickstart_ppo.yaml \\
        --data runs/quickstart/after/completions.jsonl
"""

import ast
import functools
import importlib.util
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rlhf_recipes import rewards

COMMANDS = ("score", "calibrate", "list")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII alone still gets to see it
    command, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        sys.stdout.write(f"{(__doc__ or '').strip()}\n")
        return 0
    if command not in COMMANDS:
        sys.stderr.write(f"error: there is no command {command!r}. There are {', '.join(COMMANDS)}; see --help.\n")
        return 2
    if command == "list":
        sys.stdout.write(listing(shutil.get_terminal_size((100, 24)).columns))
        return 0
    from rlhf_recipes.cli import run  # these wait for torch, and `list` need not
    from rlhf_recipes.rewards.workbench import commands

    run(functools.partial(getattr(commands, command), rest))
    return 0


def listing(width: int = 100) -> str:
    """The rewards that come with the project, by family, each with the first line of its docstring."""
    column = max(map(len, rewards.REWARDS)) + 4
    lines = []
    for module, names in rewards.REWARDS_OF.items():
        first_lines = _first_lines(module)
        lines.append(module.removesuffix(".reward").rpartition(".")[2])
        for name in names:
            said = re.sub(r"\[`~?([^`]*)`\]", r"\1", first_lines.get(name, "(its module is missing)"))
            lines += textwrap.wrap(
                f"{'  ' + name:<{column}}{said}",
                max(width, column + 20),
                subsequent_indent=" " * column,
                break_long_words=False,
            )
        lines.append("")
    lines.append("In the YAML of a run: reward_funcs: [{func: NAME, weight: 1.0, args: {...}}]")
    return "\n".join(lines) + "\n"


def _first_lines(module: str) -> dict[str, str]:
    # Read and not imported: many wait for torch.
    found = importlib.util.find_spec(f"rlhf_recipes.{module}")
    if found is None or found.origin is None:
        return {}
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    made = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return {node.name: (ast.get_docstring(node) or "").partition("\n")[0] for node in made}


if __name__ == "__main__":
    sys.exit(main())
