"""Rows made ready for training: edits, filters and duplicates as named steps, and what they did as a table."""

from rlhf_recipes.data.cleaning.steps import CleaningArguments, Table, run, steps_from

__all__ = ["CleaningArguments", "Table", "run", "steps_from"]
