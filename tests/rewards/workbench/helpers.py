"""What the tests of the commands share: rows and rewards in a folder, and the commands with their outcome."""

import json

import pytest

from rlhf_recipes.rewards.__main__ import main

REWARDS_FILE = """
def brevity(completions, **kwargs):
    return [-float(len(text)) for text in completions]

def tokens(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

def human(stars, **kwargs):
    return [float(value) for value in stars]

def no_bad_words(completions, **kwargs):
    return [1 / (text != "Bad.") for text in completions]
"""
ROWS = [
    {"prompt": "It is", "completion": " good.", "stars": 4},
    {"prompt": "It is", "completion": " not", "stars": 2},
    {"prompt": "We saw", "completion": " a film.", "stars": 3},
]


def write(name, rows):
    with open(name, "w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return name


def scores(*arguments):
    """What `score` writes for each row."""
    main(["score", *arguments, "--output_dir", "scores"])
    with open("scores/scores.jsonl") as stream:
        return [json.loads(line) for line in stream]


def failure(capsys, *arguments):
    """Code and message of a command that fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return stopped.value.code, capsys.readouterr().err
