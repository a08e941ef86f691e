"""From rows to prompts: what is cut, what is left out, and that nobody has to guess how much."""

import logging

import pytest
from datasets import Dataset

from rlhf_recipes.data.prompts import PromptArguments, check_prompts, openings, prepare_prompts, tokenize_prompts
from tests.tiny import tiny_causal_lm, tiny_tokenizer


def rows(**columns):
    return Dataset.from_dict(columns)


def talk(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.fixture(autouse=True)
def heard(caplog):
    caplog.set_level(logging.INFO, logger="rlhf_recipes")
    return caplog


# ---- openings


def test_openings_by_hand():
    cut = openings(rows(prompt=["The film is a  quiet\nand funny story.", "One two three four five"], stars=[4, 2]), 2)
    assert cut["prompt"] == ["The film", "One two"]
    assert cut["reference"] == [" is a quiet and funny story.", " three four five"]
    assert cut["stars"] == [4, 2]


def test_prompt_and_reference_are_the_text_but_for_white_space():
    texts = ["It was bad, but the music was good.", "  What a\twonderful  little picture!", "a b c d e"]
    for words in (1, 2):
        cut = openings(rows(prompt=texts), words)
        joined = [prompt + reference for prompt, reference in zip(cut["prompt"], cut["reference"], strict=True)]
        assert joined == [" ".join(text.split()) for text in texts]


def test_texts_too_short_to_be_continued_are_left_out_and_counted(heard):
    # A prompt of 2 words and a rest of at least 3.
    cut = openings(rows(prompt=["a b c d", "a b c d e", "a b", "a b c d e f"], id=[0, 1, 2, 3]), 2)
    assert cut["id"] == [1, 3]
    assert "2 of 4 texts have fewer than 5 words and are left out" in heard.text


def test_where_all_are_too_short_it_says_so():
    with pytest.raises(ValueError, match="No text has 8 words or more, so none can be cut after prompt_words 5"):
        openings(rows(prompt=["a b c", "d e f"]), 5)


def test_conversations_have_no_opening():
    with pytest.raises(ValueError, match="prompts are conversations. Leave it out"):
        openings(rows(prompt=[talk("one two three four five six")]), 2)


def test_a_column_reference_of_the_datasets_own_is_not_written_over():
    with pytest.raises(ValueError, match="'reference'. Rename"):
        openings(rows(prompt=["a b c d e f"], reference=["gold"]), 2)


def test_prompt_words_begin_at_1():
    with pytest.raises(ValueError, match="prompt_words is 0; give 1 or more"):
        PromptArguments(prompt_words=0)


# ---- from rows


def test_whole_prompts_keep_their_text_and_all_columns(heard):
    data = rows(prompt=[" as  it\nis "], answer=[42])
    assert prepare_prompts(data, PromptArguments()).to_dict() == {"prompt": [" as  it\nis "], "answer": [42]}
    assert heard.text == ""


def test_another_column_is_renamed():
    data = prepare_prompts(rows(question=["Why?"], id=[7]), PromptArguments(prompt_column="question"))
    assert data.to_dict() == {"prompt": ["Why?"], "id": [7]}


def test_another_column_beside_one_called_prompt_takes_its_place_and_says_so(heard):
    data = prepare_prompts(rows(prompt=["old"], question=["new"]), PromptArguments(prompt_column="question"))
    assert data.to_dict() == {"prompt": ["new"]}
    assert "the dataset's own column 'prompt' is left out" in heard.text


def test_a_missing_column_is_told_with_those_that_exist():
    with pytest.raises(ValueError, match=r"needs the columns 'prompt'. The dataset has: review, stars\."):
        prepare_prompts(rows(review=["good"], stars=[5]), PromptArguments())


def test_blank_prompts_are_left_out_and_counted(heard):
    data = prepare_prompts(rows(prompt=["Why?", "", " \n\t", "\u200b", "How?"]), PromptArguments())
    assert data["prompt"] == ["Why?", "How?"]
    assert "Left out 3 of 5 rows" in heard.text


@pytest.mark.parametrize("prompt", [None, []])
def test_a_prompt_that_is_not_there_is_named_with_its_row(prompt):
    there = "Why?" if prompt is None else [{"role": "user", "content": "Why?"}]
    with pytest.raises(
        ValueError, match=r"my\.jsonl, row 1, column 'prompt': .*\. Fill it in, or leave the row out\."
    ):
        prepare_prompts(rows(prompt=[there, prompt]), PromptArguments(), "my.jsonl")


def test_nothing_but_blank_prompts_is_an_error():
    with pytest.raises(ValueError, match="All 2 rows are empty or blank"):
        prepare_prompts(rows(prompt=["", "  "]), PromptArguments())


def test_blank_rows_and_short_texts_together_leave_openings_in_order():
    data = rows(completion=["a b c d", "", "e f g h i j", "k l"], score=[1, 2, 3, 4])
    cut = prepare_prompts(data, PromptArguments(prompt_column="completion", prompt_words=1))
    assert cut["prompt"] == ["a", "e"]
    assert cut["score"] == [1, 3]


# ---- token ids


def test_texts_become_the_tokenizers_own_ids():
    tokenizer = tiny_tokenizer()
    ids = tokenize_prompts(["The film", "yes"], tokenizer, 100)
    assert [tokenizer.decode(row) for row in ids] == ["The film", "yes"]


def test_conversations_go_through_the_chat_template_up_to_the_assistants_turn():
    tokenizer = tiny_tokenizer(chat_template=True)
    ids = tokenize_prompts([talk("yes?"), talk("no?", "maybe", "film")], tokenizer, 100)
    assert [tokenizer.decode(row) for row in ids] == [
        "<|user|>yes?<|assistant|>",
        "<|user|>no?<|assistant|>maybe<eos><|user|>film<|assistant|>",
    ]


def test_long_prompts_lose_their_beginning_and_are_counted(heard):
    tokenizer = tiny_tokenizer()
    texts = ["The film is a quiet, funny and moving story", "yes", "It was bad, but the music was good"]
    whole = tokenize_prompts(texts, tokenizer, 100)
    assert heard.text == ""
    cut = tokenize_prompts(texts, tokenizer, 4)
    assert cut == [whole[0][-4:], whole[1], whole[2][-4:]]
    assert tokenizer.decode(cut[0]) in texts[0]
    assert "2 of 3 prompts are longer than max_prompt_length 4 tokens and lose their beginning" in heard.text


# ---- what the model can take


def test_prompts_that_fit_exactly_are_accepted_and_one_token_more_is_not():
    model = tiny_causal_lm(tiny_tokenizer(), max_position_embeddings=16)
    assert check_prompts([[5] * 10, [5]], model, max_completion_length=6) is None
    with pytest.raises(ValueError, match=r"longest prompt has 11 tokens; with max_completion_length 6 .* 16 tokens"):
        check_prompts([[5] * 11, [5]], model, max_completion_length=6)


def test_a_prompt_without_tokens_is_named():
    model = tiny_causal_lm(tiny_tokenizer())
    with pytest.raises(ValueError, match=r"Row 1 has a prompt without tokens \(2 such rows\)"):
        check_prompts([[5], [], []], model, max_completion_length=6)
