"""Rows with scores that are known, without a model."""

from datasets import Dataset

from rlhf_recipes.reward_modeling.scored import Scored, score_rows


def scored(kind: str, scores: list[list[float]], **columns: list) -> Scored:
    """Rows of one kind, and a reward that gives `scores` to their texts, which need not differ between rows."""
    dataset = Dataset.from_dict(columns)
    names = {"pairs": ("chosen", "rejected"), "votes": ("chosen", "rejected")}.get(kind)
    lists = columns["completions"] if "completions" in columns else [
        list(texts) for texts in zip(*(columns[name] for name in names or ("completion",)), strict=True)
    ]  # fmt: skip
    prompts = columns.get("prompt", [""] * len(lists))
    table = {
        (prompt, text): score
        for prompt, own, of_row in zip(prompts, lists, scores, strict=True)
        for text, score in zip(own, of_row, strict=True)
    }
    return score_rows(lambda prompts, texts: [table[key] for key in zip(prompts, texts, strict=True)], dataset, kind)
