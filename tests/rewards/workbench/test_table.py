import io
import json
import subprocess
import sys

import pytest
import yaml
from datasets import Dataset

from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.rewards import REWARDS, LengthWindow, WeightedSum
from rlhf_recipes.rewards.__main__ import listing, main
from rlhf_recipes.rewards.loading import RewardArguments
from rlhf_recipes.rewards.workbench.show import bar_lines
from rlhf_recipes.rewards.workbench.table import RowOptions, Sample, rows_of, score_rows
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

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


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "my_rewards.py").write_text(REWARDS_FILE)
    write("rows.jsonl", ROWS)


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


# score


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


# Rows.


def sample_of(rows, *recipe, **options):
    return rows_of(Dataset.from_list(rows), RowOptions(**options), *recipe)[0]


def test_columns_besides_prompt_and_completion_reach_the_rewards():
    sample = sample_of(ROWS)
    assert (sample.prompts, sample.completions) == (["It is", "It is", "We saw"], [" good.", " not", " a film."])
    assert sample.columns == {"stars": [4, 2, 3]}


@pytest.mark.parametrize("name", ["question", "query", "instruction", "input"])
def test_known_spellings_of_a_prompt(name):
    assert sample_of([{name: "Why?", "text": "So."}]) == Sample(["Why?"], ["So."], {}, [0])


def test_rows_without_prompts():
    assert sample_of([{"completion": "So."}, {"completion": ""}]) == Sample(["", ""], ["So.", ""], {}, [0, 1])


def test_rows_without_a_completion_are_left_out():
    sample = sample_of([{"completion": None}, {"completion": "So."}])
    assert (sample.completions, sample.rows) == (["So."], [1])
    with pytest.raises(ValueError, match="No row has a completion"):
        sample_of([{"prompt": "Why?", "completion": None}])


def test_whole_texts_are_cut():
    texts = [{"text": "one two three four five six"}, {"text": "too short"}, {"text": "a b c d e f g"}]
    sample = sample_of(texts, prompt_words=2)
    assert sample == Sample(["one two", "a b"], [" three four five six", " c d e f g"], {}, [0, 2])
    # As a recipe says it, for rows that it was written for:
    assert sample_of(texts, "text", 2) == sample
    # and for completions of its policy, of which `completion` is no longer a whole text:
    assert sample_of(ROWS, "completion", 2).prompts == ["It is", "It is", "We saw"]


def test_a_prompt_column_that_a_recipe_names_may_be_missing_and_one_that_is_typed_may_not():
    assert sample_of(ROWS, "opening").prompts == ["It is", "It is", "We saw"]
    with pytest.raises(
        ValueError, match=r"no column 'opening', which --prompt_column names. The data has prompt, comp"
    ):
        sample_of(ROWS, prompt_column="opening")
    with pytest.raises(ValueError, match="prompt_words cuts whole texts"):
        sample_of(ROWS, prompt_column="prompt", prompt_words=2)


def test_messages():
    ask, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    assert sample_of([{"messages": [ask, answer]}, {"messages": [ask]}]) == Sample([[ask]], [[answer]], {}, [0])
    assert sample_of([{"prompt": [ask], "completion": [answer]}]) == Sample([[ask]], [[answer]], {}, [0])
    # As an evaluation writes them:
    assert sample_of([{"prompt": [ask], "completion": "So."}]) == Sample([[ask]], [[answer]], {}, [0])
    assert sample_of([{"completion": [answer]}]) == Sample([[]], [[answer]], {}, [0])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{"prompt": "Why?", "response": "So."}],
            "It has prompt, response. Name the one with the texts: --completion_column resp",
        ),
        ([{"completion": 3}], "Column 'completion' holds neither text nor messages in row 0, but a int: 3"),
        ([{"completion": "So.", "prompts": "Why?"}], "column 'prompts' has the name of what every reward is given"),
    ],
)
def test_rows_that_cannot_be_scored(rows, words):
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the words are checked below
        sample_of(rows)
    assert words in str(refused.value)


def test_a_limit_takes_all_completions_of_a_prompt_or_none():
    rows = [{"prompt": f"p{i % 10}", "completion": str(i)} for i in range(40)]
    sample = sample_of(rows, limit=13)
    prompts = sample.prompts
    assert len(sample) == 12
    assert all(prompts.count(prompt) == 4 for prompt in prompts)
    assert sample.rows == sorted(sample.rows)
    assert sample.completions == [str(row) for row in sample.rows]
    assert sample_of(rows, limit=13) == sample
    assert sample_of(rows, limit=13, seed=1) != sample
    with pytest.raises(ValueError, match="each prompt has 4 completions or more"):
        sample_of(rows, limit=3)


def test_a_limit_without_prompts_draws_rows():
    sample = sample_of([{"completion": str(i)} for i in range(40)], limit=13)
    assert len(set(sample.rows)) == 13
    assert sample.rows != list(range(13))


# Token ids.


def test_token_ids_come_from_a_tokenizer_with_the_end_unless_cut_off():
    tokenizer = tiny_tokenizer()
    save_tiny("policy", tiny_causal_lm(tokenizer), tokenizer)
    write("ends.jsonl", [{"completion": "It was bad", "finished": done} for done in (True, False, None)])
    rows = scores("--data", "ends.jsonl", "--reward_funcs", "my_rewards.py:tokens", "--tokenizer", "policy")
    plain = len(tokenizer("It was bad")["input_ids"])
    assert [row["score"] for row in rows] == [plain + 1, plain, plain + 1]


def test_token_ids_may_stand_in_the_data():
    write("ids.jsonl", [{"completion": "It was", "completion_ids": [5, 6, 7, 8]}])
    [row] = scores("--data", "ids.jsonl", "--reward_funcs", "my_rewards.py:tokens")
    assert row["score"] == 4.0


def test_without_a_tokenizer_rewards_that_count_tokens_say_so(capsys):
    code, said = failure(capsys, "score", "--data", "rows.jsonl", "--reward_funcs", "LengthWindow")
    assert code == 1
    assert "LengthWindow counts tokens and needs completion_ids" in said
    assert "give --tokenizer" in said
    code, said = failure(capsys, "score", "--data", "rows.jsonl", "--reward_funcs", "my_rewards.py:tokens")
    assert "give --tokenizer" in said


def test_a_recipes_model_that_is_not_there_is_no_error(caplog):
    with open("ppo.yaml", "w") as stream:
        stream.write("model_name_or_path: runs/not/yet\nreward_funcs: [EndsWithSentence]\n")
    assert [row["score"] for row in scores("--config", "ppo.yaml", "--data", "rows.jsonl")] == [1.0, 0.0, 1.0]
    assert "the tokenizer of runs/not/yet cannot be loaded" in caplog.text


def test_a_tokenizer_that_was_asked_for_has_to_be_there(capsys):
    typed = ("--data", "rows.jsonl", "--reward_funcs", "EndsWithSentence", "--tokenizer", "./nowhere")
    code, said = failure(capsys, "score", *typed)
    assert (code, "No model at './nowhere'" in said) == (1, True)


# Scoring.


def count_of_siblings(prompts, **kwargs):
    return [float(prompts.count(prompt)) for prompt in prompts]


def chunk(prompts, **kwargs):
    return [float(len(prompts))] * len(prompts)


def test_completions_of_one_prompt_are_in_one_chunk_and_rows_keep_their_order():
    prompts = ["a", "b", "a", "c", "b", "a"]
    sample = Sample(prompts, list("uvwxyz"), {"number": list(range(6))}, list(range(6)))

    def number(number, **kwargs):
        return [float(n) for n in number]

    parts = score_rows(WeightedSum([count_of_siblings, chunk, number]), sample, chunk_size=2)
    assert parts["count_of_siblings"] == [3.0, 2.0, 3.0, 1.0, 2.0, 3.0]
    assert parts["chunk"] == [3.0, 2.0, 3.0, 1.0, 2.0, 3.0]  # more than chunk_size only where a prompt asks for it
    assert parts["number"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_chunks_change_no_result():
    rewards = WeightedSum([count_of_siblings, LengthWindow(maximum=1, unit="words")])
    sample = Sample(["a", "b"] * 20, [f"{'x ' * (i % 4)}" for i in range(40)], {}, list(range(40)))
    assert score_rows(rewards, sample, 3) == score_rows(rewards, sample, 1000)


def test_a_reward_that_raises_is_named_with_the_row_of_the_data(capsys):
    rows = [{"prompt": str(i % 3), "completion": "Bad." if i == 7 else "Good."} for i in range(9)]
    write("mixed.jsonl", rows)
    code, said = failure(
        capsys, "score", "--data", "mixed.jsonl", "--reward_funcs", "my_rewards.py:no_bad_words", "--chunk_size", "2"
    )
    assert code == 1
    assert "Reward 'no_bad_words' raised ZeroDivisionError" in said
    assert "row 7 (prompt '1', completion 'Bad.')" in said
    assert "Traceback" not in said
    assert "completion_ids, for want" not in said


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


# calibrate


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


# Histograms in text.


def test_a_bar_for_each_value_of_a_few():
    assert bar_lines([0.0, 1.0, 1.0, 1.0, 1.0, None], width=12) == ["0 ██       1", "1 ████████ 4"]
    assert bar_lines([0.0, 1.0, 1.0, 1.0], width=12, plain=True) == ["0 ###      1", "1 ######## 3"]


def test_bins_of_many_values():
    lines = bar_lines([i / 10 for i in range(20)] + [0.05, 7.9], width=40)
    assert [line.split("█")[0].split("▌")[0].strip() for line in lines[:2]] == ["0 to 1", "1 to 2"]
    assert [int(line.split()[-1]) for line in lines] == [11, 10, 0, 0, 0, 0, 0, 1]
    assert {len(line) for line in lines} == {40}


def test_nothing_to_draw():
    assert bar_lines([None, None], width=40) == ["applies to no row"]


def test_a_terminal_that_knows_ascii_alone(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    write("cafe.jsonl", [{"completion": "Café…"}, {"completion": "Tea."}])
    main(["score", "--data", "cafe.jsonl", "--reward_funcs", "EndsWithSentence"])
    stream.flush()
    shown = stream.buffer.getvalue().decode("ascii")
    assert "Caf\\xe9\\u2026" in shown
    assert "####" in shown


# The command.


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
