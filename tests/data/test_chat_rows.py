"""Rows with conversations: what is made of them before a run, and which row of which file is named."""

import json
from pathlib import Path

import pytest
import trl
from datasets import Dataset

from rlhf_recipes.data.chat import kwargs_of
from rlhf_recipes.data.chat_rows import TemplateArguments, as_rewards_see, for_trl, ready_prompts, ready_texts
from rlhf_recipes.data.loading import DataArguments, load_rows
from rlhf_recipes.data.prompts import encode_prompts
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.reward_modeling.examples import tokenize
from rlhf_recipes.reward_modeling.scored import Texts
from tests.base_tokenizers import base_tokenizer
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

THINKS = CHAT_TEMPLATE.replace(
    "{{ '<|assistant|>' }}{% endif %}",
    "{{ '<|assistant|>' }}{% if think is not false %}<think>\n{% endif %}{% endif %}",
)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture
def chatty():
    return tiny_tokenizer(chat_template=True)


@pytest.fixture
def written(tmp_path):
    """Rows in a file, loaded, with where they come from."""

    def write(rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_rows(str(file), "train"), DataArguments(str(file))

    return write


def prompts(loaded, tokenizer, option=None):
    rows, data = loaded
    return ready_prompts(rows, tokenizer, TemplateArguments(option), data, "train")


def texts(loaded, columns, tokenizer, option=None):
    rows, data = loaded
    return ready_texts(rows, columns, tokenizer, TemplateArguments(option), data, "train")


def test_plain_prompts_stay_as_they_are(written, chatty):
    loaded = written([{"prompt": "The film", "stars": 3}])
    assert prompts(loaded, chatty) is loaded[0]


def test_blocks_become_text_and_other_columns_stay(written, chatty):
    rows = prompts(written([
        {"prompt": [user([{"type": "text", "text": "Good?"}])], "stars": 3}, {"prompt": [user("Bad?")], "stars": 1},
    ]), chatty)  # fmt: skip
    assert rows["prompt"][:] == [[user("Good?")], [user("Bad?")]]
    assert rows["stars"][:] == [3, 1]


def test_the_option_and_the_rows_own_say_what_the_template_is_given(written):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = THINKS
    loaded = written([
        {"prompt": [user("a")], "chat_template_kwargs": {"think": True}},
        {"prompt": [user("b")], "chat_template_kwargs": None},
    ])  # fmt: skip
    rows = prompts(loaded, tokenizer, {"think": False})
    assert rows["chat_template_kwargs"][:] == [{"think": True}, {"think": False}]
    assert rows["answer_opening"][:] == ["<think>\n", ""]  # which rewards are given


def test_the_option_is_refused_where_there_is_no_template_to_give_it_to(written, chatty):
    with pytest.raises(ValueError, match="chat_template_kwargs is given to chat templates.*plain text"):
        prompts(written([{"prompt": "The film"}]), chatty, {"think": False})


def test_the_row_is_that_of_the_file_also_when_others_were_left_out(written, chatty):
    rows, data = written([{"prompt": [user(f"{n}")]} for n in range(3)] + [{"prompt": [user(None), user("x")]}])
    with pytest.raises(
        ValueError, match=r"rows.jsonl \(split 'train'\), row 3, column 'prompt': message 0 .* no content"
    ):
        ready_prompts(rows.select([1, 3]), chatty, TemplateArguments(), data, "train")


def test_an_answer_that_a_prompt_begins_is_learned_with_its_rest(written, chatty):
    begun = [user("Good?"), assistant("Well, ")]
    rows = texts(
        written([
            {"prompt": begun, "chosen": [assistant("yes")], "rejected": [assistant("no")]},
            {"prompt": begun[:1], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
        ]),
        ["chosen", "rejected"],
        chatty,
    )  # fmt: skip
    assert rows["prompt"][:] == [[user("Good?")]] * 2
    assert rows["chosen"][:] == [[assistant("Well, yes")], [assistant("yes")]]
    assert rows["rejected"][:] == [[assistant("Well, no")], [assistant("no")]]


def test_whole_conversations_are_learned_as_they_are(written, chatty):
    talk = [user([{"type": "text", "text": "Good?"}]), assistant("yes")]
    assert texts(written([{"messages": talk}]), ["messages"], chatty)["messages"][0] == [
        user("Good?"),
        assistant("yes"),
    ]


def test_a_missing_prompt_is_named(written, chatty):
    loaded = written([{"prompt": "a", "completion": "b"}, {"prompt": None, "completion": "c"}])
    with pytest.raises(ValueError, match="row 1, column 'prompt': the prompt is None: fill it in"):
        texts(loaded, ["completion"], chatty)


def test_the_texts_count_where_there_are_token_ids_too(written, chatty, caplog):
    rows = texts(written([{"text": "a", "input_ids": [1]}]), ["text"], chatty)
    assert rows.column_names == ["text"]
    assert "both texts (text) and 'input_ids': the texts are learned" in caplog.text


def test_trl_is_given_messages_where_it_reads_them_as_they_are_meant(chatty):
    rows = Dataset.from_dict({"prompt": [[user("Good?")]]})
    assert for_trl(rows, chatty) is rows


def test_trl_is_given_text_where_it_would_close_an_answer_and_rewards_see_messages(chatty):
    rows = Dataset.from_dict({"prompt": [[user("Good?"), assistant("Well, ")], [user("Bad?")]]})
    given = for_trl(rows, chatty)
    assert given["prompt"][:] == ["<|user|>Good?<|assistant|>Well, ", "<|user|>Bad?<|assistant|>"]
    batch = {name: given[name][:] for name in given.column_names} | {"completions": ["yes", "no"]}
    seen = as_rewards_see({"prompts": batch.pop("prompt"), **batch})
    assert seen == {
        "prompts": [[user("Good?")], [user("Bad?")]],
        "completions": [[assistant("Well, yes")], [assistant("no")]],
    }


def test_trl_reads_the_beginning_of_a_sequence_once():
    tokenizer = base_tokenizer("llama3")
    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    rows = for_trl(Dataset.from_dict({"prompt": ["<|begin_of_text|>The film", "The cast"]}), tokenizer)
    assert rows["prompt"][:] == ["The film", "The cast"]
    chats = {"prompt": [[user("Good?")]], "chat_template_kwargs": [{"think": False}]}
    text = for_trl(Dataset.from_dict(chats), tokenizer)["prompt"][0]
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 1


# ---- tools

WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "Of a place.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}}  # fmt: skip
CLOCK = {"type": "function", "function": {"name": "clock", "description": "Now."}}


@pytest.mark.parametrize("as_json", [False, True])
def test_the_tools_of_a_row_reach_the_template_and_those_of_other_rows_do_not(written, as_json):
    """What is right is the template of Qwen3, called by transformers with the tools of the row."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text()
    tools = [[WEATHER], [CLOCK], None]
    given = [json.dumps(own) if as_json and own else own for own in tools]
    rows = [{"prompt": [user(f"Rain in {n}?")], "tools": own} for n, own in enumerate(given)]
    expected = [
        tokenizer.apply_chat_template(row["prompt"], tools=own, tokenize=False, add_generation_prompt=True)
        for row, own in zip(rows, tools, strict=True)
    ]
    assert "weather" in expected[0]
    assert "weather" not in expected[1]
    loaded = written(rows)
    ready = prompts(loaded, tokenizer)
    assert for_trl(ready, tokenizer)["prompt"] == expected
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in expected]
    assert encode_prompts(ready, tokenizer, 9999).ids == wanted
    assert encode_prompts(loaded[0], tokenizer, 9999).ids == wanted  # by whoever calls the trainer himself


def test_feedback_on_conversations_has_its_tools_and_a_text_beside_plain_answers_is_none():
    """So a reward model is trained on what it is given as a reward, where `ready_prompts` hands the tools on."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text()
    talk = [user("Rain?"), {"role": "assistant", "content": "No."}]
    rows = Dataset.from_dict({"prompt": [talk[:1]], "completion": [talk[1:]], "tools": [json.dumps([WEATHER])]})
    ids = tokenize(Texts.of(rows, "completion"), tokenizer, RewardModelSettings())
    text = tokenizer.apply_chat_template(talk, tools=[WEATHER], tokenize=False)
    assert ids == [tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert kwargs_of(Dataset.from_dict({"completion": ["It hits."], "tools": ["a hammer"]})) == [{}]


def test_tools_that_are_none_are_named_with_their_row(written, chatty):
    loaded = written([{"prompt": [user("Why?")], "tools": "[]"}, {"prompt": [user("How?")], "tools": "{a hammer"}])
    with pytest.raises(ValueError, match="row 1, column 'prompt': tools is '{a hammer': give a list"):
        prompts(loaded, chatty)
