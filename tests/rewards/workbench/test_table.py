import pytest
from datasets import Dataset

from rlhf_recipes.rewards import LengthWindow, WeightedSum
from rlhf_recipes.rewards.workbench.table import RowOptions, Sample, rows_of, score_rows
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

from .helpers import ROWS, failure, scores, write

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
