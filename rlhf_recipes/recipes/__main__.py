"""The command: list the recipes, or write one with its settings into a folder of your own."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_recipes.recipes.files import copy, recipes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_recipes.recipes", description="The recipes that come with the package."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("list", help="say which there are")
    parts = commands.add_parser("copy", help="write a recipe, its YAMLs and the launch configurations into a folder")
    parts.add_argument("name", metavar="RECIPE", help="such as ppo")
    parts.add_argument("--to", type=Path, default=Path(), metavar="FOLDER", help="default: the working directory")
    args = parser.parse_args(argv)
    try:
        if args.command == "list":
            sys.stdout.writelines(f"{name:16} {said}\n" for name, said in recipes().items())
        else:
            written = [str(path) for path in copy(args.name, args.to)]
            sys.stdout.writelines(f"{path}\n" for path in written or ["Everything is there already."])
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
