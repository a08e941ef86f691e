"""Messages into text through chat templates, the published ones: prompts, answers that have begun, and refusals."""

import copy
from pathlib import Path

import pytest
import trl
from datasets import Dataset

from rlhf_recipes.data.chat import (
    ChatError,
    answered,
    kwargs_of,
    once,
    open_ids,
    opening_of,
    plain_messages,
    read_kwargs,
    render,
    whole,
)
from tests.base_tokenizers import base_tokenizer
from tests.tiny import tiny_tokenizer

# TRL brings the templates of the models along, byte for byte, to know these models by them.
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
PUBLISHED = sorted(path.stem for path in TEMPLATES.glob("*.jinja") if "training" not in path.stem)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


TOKENIZER = tiny_tokenizer()


def of_model(name):
    made = copy.copy(TOKENIZER)
    made.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    return made


@pytest.mark.parametrize("name", PUBLISHED)
def test_blocks_of_text_are_the_text_in_every_template(name):
    tokenizer = of_model(name)
    blocks = [{"type": "text", "text": "Is it "}, {"type": "text", "text": "good?"}]
    text = render(tokenizer, [user(blocks)], is_open=True)
    assert text == render(tokenizer, [user("Is it good?")], is_open=True)
    assert text.count("Is it good?") == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_answer_that_has_begun_is_continued_in_every_template(name):
    tokenizer = of_model(name)
    text = render(tokenizer, [user("Is it good?"), assistant("Well, it")], is_open=True)
    assert text.endswith("Well, it")
    if (
        "</think>" not in tokenizer.chat_template
    ):  # others write one of a finished answer, and none of one that goes on
        assert render(tokenizer, [user("Is it good?"), assistant("Well, it")]).startswith(text)
    # Thoughts that the prompt begins, or has ended, are there as they were given.
    for begun in ("<think>\nLet me see", "<think>\n\n</think>\n\nYes"):
        text = render(tokenizer, [user("Is it good?"), assistant(begun)], is_open=True)
        assert text.endswith(begun)
        assert text.count("<think>") - text[: -len(begun)].count("<think>") == 1


@pytest.mark.parametrize(
    ("name", "begun", "end"),
    [
        ("llama3", "Well,", "<|start_header_id|>assistant<|end_header_id|>\n\nWell,"),
        ("gemma", "Well,", "<start_of_turn>model\nWell,"),
        ("phi3", "Well,", "<|assistant|>\nWell,"),
        ("deepseek_r1_distill", "<think>\nLet me", "<｜Assistant｜><think>\nLet me"),
        ("deepseek_r1_distill", "<think>\n\n</think>\n\n", "<｜Assistant｜><think>\n\n</think>\n\n"),
        ("qwen3", "<think>\nLet me", "<|im_start|>assistant\n<think>\nLet me"),
        ("qwen3", "<think>\n\n</think>\n\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_what_a_policy_reads_before_it_goes_on(name, begun, end):
    assert render(of_model(name), [user("Good?"), assistant(begun)], is_open=True).endswith(end)


def test_options_reach_the_template():
    tokenizer = of_model("qwen3")
    prompts = [render(tokenizer, [user("Good?")], kwargs, is_open=True) for kwargs in ({}, {"enable_thinking": False})]
    assert prompts[0].endswith("<|im_start|>assistant\n")
    assert prompts[1].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("name", "messages", "reason"),
    [
        ("gemma", [{"role": "system", "content": "Be brief."}, user("Good?")], "System role not supported"),
        ("gemma", [user("Good?"), user("Bad?")], "roles must alternate.*The roles are user, user"),
        ("llava_next", [{"role": "narrator", "content": "Once"}], "Only user and assistant roles are supported"),
        ("qwen3", [{"role": "human", "content": "Good?"}], "leaves out the text of the last message.*'human'"),
        ("qwen3", [], "empty"),
        ("qwen3", [user(None)], r"message 0 \(role 'user'\) has no content \(None\)"),
        ("qwen3", [user("Good?"), assistant(None)], r"message 1 \(role 'assistant'\) has no content"),
        ("qwen3", [{"role": None, "content": "Good?"}], "message 0 .* has no role"),
        ("qwen3", [user([{"type": "image"}, {"type": "text", "text": "What?"}])], "content of type image"),
        ("qwen3", [user([{"type": "text", "text": None}])], "no content"),
        ("qwen3", [user(7)], "has a int as content"),
    ],
)
def test_a_conversation_that_cannot_be_read_is_refused_with_what_to_do(name, messages, reason):
    with pytest.raises(ChatError, match=f"(?s){reason}.*(leave|Leave|Change|Name|name|make)") as caught:
        render(of_model(name), messages, is_open=True)
    assert caught.value.__cause__ is None  # nothing of the template's own traceback
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_without_a_template_there_is_none_to_read_messages_with():
    with pytest.raises(ChatError, match="has no chat template.*Take a chat model"):
        render(tiny_tokenizer(), [user("Good?")])


def test_calls_of_tools_need_no_content_and_what_other_rows_have_is_left_out():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    rows = [user("Good?") | {"tool_calls": None}, call]
    assert plain_messages(rows) == [user("Good?"), {"role": "assistant", "tool_calls": call["tool_calls"]}]
    assert '"name": "f"' in render(of_model("qwen3"), rows)


def test_an_answer_that_the_prompt_begins_is_one_message_with_its_rest():
    prompt = [user("Good?"), assistant("Well, ")]
    assert whole(prompt, " yes") == [user("Good?"), assistant("Well,  yes")]
    assert whole(prompt, [assistant("yes")]) == [user("Good?"), assistant("Well, yes")]
    assert whole([user("Good?")], [assistant("yes")]) == [user("Good?"), assistant("yes")]
    assert whole("Good?", "yes") == [user("Good?"), assistant("yes")]
    assert prompt == [user("Good?"), assistant("Well, ")]  # the rows of a dataset stay as they are


def test_rewards_see_the_whole_answer():
    prompts = [[user("Good?"), assistant("Well, ")], [user("Bad?")]]
    seen = answered(prompts, ["yes", "no"])
    assert seen == ([[user("Good?")], [user("Bad?")]], [[assistant("Well, yes")], [assistant("no")]])
    assert answered(["The film"], [" is"]) == (["The film"], [" is"])


def test_what_the_template_writes_of_the_answer_is_told():
    think, none = of_model("deepseek_r1_distill"), of_model("llama3")
    for tokenizer, opening in ((think, "<think>\n"), (none, "")):
        assert opening_of([user("a")], render(tokenizer, [user("a")], is_open=True)) == opening
    begun = [user("a"), assistant("<think>")]
    assert opening_of(begun, render(none, begun, is_open=True)) == ""  # this one is in the completion that rewards see


@pytest.mark.parametrize("kind", ["llama3", "llama2", "llama2_closes", "gemma", "gpt2", "qwen", "mistral"])
def test_prompts_begin_once_and_do_not_end(kind):
    tokenizer = base_tokenizer(kind)
    text = "The film is"
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    first = [tokenizer.bos_token_id] if kind not in ("gpt2", "qwen") else []
    assert open_ids([text], tokenizer) == [first + bare]
    if first:  # rendered by a template already
        assert open_ids([tokenizer.bos_token + text], tokenizer) == [first + bare]
        assert once(tokenizer(tokenizer.bos_token + text)["input_ids"], tokenizer)[:2] == first + bare[:1]
    ends = tokenizer.eos_token + text + tokenizer.eos_token  # what the user wrote stays
    assert open_ids([ends], tokenizer)[0][-1] == tokenizer.eos_token_id
    assert open_ids([], tokenizer) == []


def test_options_of_rows_are_mappings_or_json_without_what_other_rows_have():
    rows = Dataset.from_dict({"chat_template_kwargs": [{"enable_thinking": False}, {"x": 1}, None]})
    assert kwargs_of(rows) == [{"enable_thinking": False}, {"x": 1}, {}]
    assert kwargs_of(Dataset.from_dict({"prompt": ["a", "b"]})) == [{}, {}]
    assert read_kwargs('{"enable_thinking": false}') == {"enable_thinking": False}
    for wrong in ("no", 3, "[1]"):
        with pytest.raises(ChatError, match="give a mapping"):
            read_kwargs(wrong)
