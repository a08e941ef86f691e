import io
import json
import subprocess
import sys

import pytest
import yaml

from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.rewards import REWARDS
from rlhf_recipes.rewards.__main__ import listing, main
from rlhf_recipes.rewards.loading import RewardArguments

from .helpers import ROWS, failure, scores, write


def test_every_row_is_scored_with_every_reward(capsys):
    rows = scores(
        *("--data", "rows.jsonl", "--reward_funcs", "EndsWithSentence", "my_rewards.py:human"),
        *("--reward_weights", "10", "0.5"),
    )
    ends, human = [1.0, 0.0, 1.0], [4.0, 2.0, 3.0]
    assert rows == [
        {
            "row": i,
            "prompt": ROWS[i]["prompt"],
            "completion": ROWS[i]["completion"],
            "score": 10 * ends[i] + 0.5 * human[i],
            "scores": {"EndsWithSentence": ends[i], "human": human[i]},
        }
        for i in range(3)
    ]
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "3 completions of rows.jsonl" in shown
    best, second, worst = (shown.index(text) for text in ("good.", "a film.", " not"))
    assert best < second < worst
    with open("scores/histograms.png", "rb") as stream:
        assert stream.read(8) == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(("columns", "shown"), [("100", True), ("72", False)])
def test_quartiles_give_way_to_names(columns, shown, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    main(["score", "--data", "rows.jsonl", "--reward_funcs", "EndsWithSentence", "my_rewards.py:brevity"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    [header] = [line for line in lines if line[:1] == ["reward"]]
    assert ("25%" in header) == shown
    assert any(line[:3] == ["EndsWithSentence", "1", "3"] for line in lines)


def test_of_many_rows_the_best_and_the_worst_are_shown(capsys):
    write("many.jsonl", [{"completion": "x" * length} for length in range(1, 30)])
    main(["score", "--data", "many.jsonl", "--reward_funcs", "my_rewards.py:brevity", "--top", "2"])
    shown = capsys.readouterr().out
    best, worst = shown.split("The best 2 of 29 rows")[1].split("The worst 2")
    assert [line.split()[:2] for line in best.splitlines() if " x" in line] == [["0", "x"], ["1", "xx"]]
    assert [line.split()[:2] for line in worst.splitlines() if " x" in line] == [["27", "x" * 28], ["28", "x" * 29]]
    assert "prompt" not in best  # there are none


def test_a_row_to_which_no_reward_applies_has_no_score(capsys):
    write("scripts.jsonl", [{"completion": "Good."}, {"completion": "好"}, {"completion": "Bad."}])
    rows = scores("--data", "scripts.jsonl", "--reward_funcs", "Spelling")
    assert [row["score"] is None for row in rows] == [False, True, False]
    assert "1 row of 3 got no reward at all" in " ".join(capsys.readouterr().out.split())


def test_a_config_of_a_recipe_is_read_as_far_as_it_is_about_rewards_and_rows():
    config = {
        "dataset_name": "rows.jsonl",
        "reward_funcs": [{"func": "my_rewards.py:brevity", "name": "short", "weight": 2.0}],
        "output_dir": "runs/of/the/recipe",
        "total_episodes": 640,
        "lora_target_modules": "all-linear",
    }
    with open("ppo.yaml", "w") as stream:
        yaml.safe_dump(config, stream)
    assert [row["score"] for row in scores("--config", "ppo.yaml")] == [-12.0, -8.0, -16.0]
    typed = scores("--config", "ppo.yaml", "--reward_funcs", "EndsWithSentence")
    assert [row["scores"] for row in typed] == [{"EndsWithSentence": value} for value in (1.0, 0.0, 1.0)]


def test_a_misspelt_key_of_a_config_is_refused(capsys):
    with open("ppo.yaml", "w") as stream:
        stream.write("total_episodes: 3\nreward_weight: [1.0]\n")
    code, said = failure(capsys, "score", "--config", "ppo.yaml")
    assert code == 2
    assert "ppo.yaml, line 2: unknown key 'reward_weight'. Did you mean 'reward_weights'?" in said


def test_weights_that_change(capsys):
    with open("ppo.yaml", "w") as stream:
        stream.write("reward_funcs: [{func: my_rewards.py:brevity, weight: {start: 0.0, end: 1.0}}]\n")
    rows = scores("--config", "ppo.yaml", "--data", "rows.jsonl", "--progress", "0.5")
    assert [row["score"] for row in rows] == [-3.0, -2.0, -4.0]
    assert failure(capsys, "score", "--data", "rows.jsonl", "--progress", "2")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["score", "--data", "nowhere.jsonl", "--reward_funcs", "Vader"], "No dataset at 'nowhere.jsonl'"),
        (["score", "--data", "rows.jsonl"], "There are no rewards. Name them with --reward_funcs"),
        (["score", "--reward_funcs", "Vader"], "nothing to score. Name a file, a folder or a dataset with --data"),
        (["score", "--data", "rows.jsonl", "--reward_funcs", "Vadr"], "did you mean 'Vader'?"),
        (["score", "--data", "rows.jsonl", "--reward_funcs", "Vader", "--limit", "0"], "limit is 0; give 1 or more"),
        (["score", "--dta", "rows.jsonl"], "unknown option --dta on the command line. Did you mean '--data'?"),
    ],
)
def test_bad_input_ends_with_a_message(arguments, words, capsys):
    code, said = failure(capsys, *arguments)
    assert code in (1, 2)
    assert words in said
    assert "Traceback" not in said


def test_calibrate_proposes_a_list_that_a_recipe_takes(capsys):
    with open("ppo.yaml", "w") as stream:
        stream.write("reward_funcs: [my_rewards.py:human, my_rewards.py:brevity]\nreward_weights: [3, 1]\n")
    main(["calibrate", "--config", "ppo.yaml", "--data", "rows.jsonl", "--output_dir", "balance"])
    shown = capsys.readouterr().out
    with open("balance/rewards.yaml") as stream:
        block = stream.read()
    assert block in shown
    both = ["--config", "ppo.yaml", "--config", "balance/rewards.yaml"]
    [arguments] = RecipeParser(RewardArguments).parse(both)
    weights = arguments.load_for_trl()[1]
    # Both spread over sqrt(2/3) and sqrt(8/3): of 2 3 4, and of 4 6 8 characters.
    assert weights == pytest.approx([3 / (2 / 3) ** 0.5, 1 / (8 / 3) ** 0.5], rel=1e-3)
    with open("balance/balance.json") as stream:
        assert [one["name"] for one in json.load(stream)["rewards"]] == ["human", "brevity"]
    with open("balance/balance.png", "rb") as stream:
        assert stream.read(4) == b"\x89PNG"


def test_an_output_folder_of_something_else_is_left_alone(capsys):
    code, said = failure(
        capsys, "calibrate", "--data", "rows.jsonl", "--reward_funcs", "EndsWithSentence", "--output_dir", "."
    )
    assert (code, "--overwrite_output_dir" in said) == (1, True)


def test_a_terminal_that_knows_ascii_alone(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    write("cafe.jsonl", [{"completion": "Café…"}, {"completion": "Tea."}])
    main(["score", "--data", "cafe.jsonl", "--reward_funcs", "EndsWithSentence"])
    stream.flush()
    shown = stream.buffer.getvalue().decode("ascii")
    assert "Caf\\xe9\\u2026" in shown
    assert "####" in shown


def test_list_shows_every_reward_with_what_it_is():
    lines = listing(100).splitlines()
    assert max(map(len, lines)) <= 100
    said = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ") and line[2] != " "}
    assert set(said) == set(REWARDS)
    assert " ".join(said["PlainProse"]) == "1 if the completion reads as one line of plain prose, else 0."


def test_help_and_unknown_commands(capsys):
    assert main([]) == main(["--help"]) == 0
    assert "python -m rlhf_recipes.rewards calibrate --help" in capsys.readouterr().out
    assert main(["socre"]) == 2
    assert "no command 'socre'. There are score, calibrate, list" in capsys.readouterr().err
    for command in ("score", "calibrate"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert f"python -m rlhf_recipes.rewards {command} --config" in capsys.readouterr().out


def test_list_in_ascii(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["list"]) == 0


def test_list_does_not_wait_for_torch():
    command = (
        "import sys; from rlhf_recipes.rewards.__main__ import main; main(['list']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", command], stdout=subprocess.DEVNULL).returncode == 0
