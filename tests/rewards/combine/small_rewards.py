"""Three rows, and rewards whose values on them anybody can check."""

ROWS = {"prompts": ["a", "b", "c"], "completions": ["x", "yy", "zzz"], "completion_ids": [[1], [1, 2], [3, 4, 5]]}


def length(completions, **kwargs):
    return [float(len(text)) for text in completions]


def signed(completions, **kwargs):
    return [-1.0, 0.0, 2.0][: len(completions)]


def sometimes(completions, **kwargs):
    return [0.5, None, 3.0]


def per_token(completion_ids, **kwargs):
    return [[float(t) for t in ids] for ids in completion_ids]


per_token.per_token = True
