"""Rows that no chat template can read, through each recipe: file, row and what to do, before a model is loaded."""

import pytest
from transformers import AutoConfig

from tests.recipes.tiny_runs import flags, load_main, write_rows
from tests.tiny import CHAT_TEMPLATE, tiny_causal_lm, tiny_tokenizer

# As Gemma's: no system turn, and the user and the assistant take turns.
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
) + CHAT_TEMPLATE


def user(content):
    return {"role": "user", "content": content}


ANSWER = [{"role": "assistant", "content": "yes"}]
PICTURE = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
BAD = {
    "system": ([{"role": "system", "content": "Be brief."}, user("Good?")], "System role not supported"),
    "alternation": ([user("Good?"), user("Bad?")], "must alternate"),
    "no content": ([user(None), *ANSWER, user("Bad?")], r"message 0 .* has no content \(None\)"),
    "picture": ([user(PICTURE)], "content of type image"),
}
COLUMNS = {
    "ppo": {}, "grpo": {}, "rloo": {}, "evaluate": {}, "best_of_n": {},
    "sft": {"completion": ANSWER},
    "dpo": {"chosen": ANSWER, "rejected": [{"role": "assistant", "content": "no"}]},
    "reward": {"chosen": ANSWER, "rejected": [{"role": "assistant", "content": "no"}]},
}  # fmt: skip


TWO_BY_DEFAULT = [
    pytest.param(name, marks=[] if name in ("ppo", "sft") else pytest.mark.slow)
    for name in COLUMNS
    if name != "reward"
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tokenizer and a configuration; there are no weights, so that loading the model would be another error."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = STRICT
    tokenizer.save_pretrained(folder)
    tiny_causal_lm(tokenizer).config.save_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).vocab_size == len(tokenizer)
    return folder


def run(recipe, model, folder, rows, *more):
    write_rows(folder / "rows/train.jsonl", rows)
    others = [{"prompt": [user(f"Is play {n} bad?")], **COLUMNS[recipe]} for n in range(3)]
    write_rows(folder / "rows/test.jsonl", others if recipe == "reward" else rows)
    options = {"dataset_name": folder / "rows", "model_name_or_path": model, "output_dir": folder / "out"}
    if not COLUMNS[recipe]:
        options["reward_funcs"] = "TokenCount"
    load_main(recipe)(flags(options, *([] if recipe in ("evaluate", "best_of_n") else ["--use_cpu"]), *more))


@pytest.mark.parametrize(("bad", "recipe"), [
    pytest.param(bad, recipe, marks=[] if recipe == "ppo" or bad == "system" else pytest.mark.slow)
    for bad in BAD for recipe in COLUMNS
])  # fmt: skip
def test_a_row_that_cannot_be_read_is_named(model, tmp_path, bad, recipe):
    prompt, reason = BAD[bad]
    good = [{"prompt": [user(f"Is film {n} good?")], **COLUMNS[recipe]} for n in range(3)]
    with pytest.raises(ValueError, match=rf"(?s)rows \(split '\w+'\), row 2, column 'prompt'.*{reason}.*eave"):
        run(recipe, model, tmp_path, [*good[:2], {"prompt": prompt, **COLUMNS[recipe]}, good[2]])


@pytest.mark.parametrize("recipe", TWO_BY_DEFAULT)
def test_messages_without_a_template_are_refused(model, tmp_path, recipe):
    plain = tmp_path / "plain"
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(plain)
    AutoConfig.from_pretrained(model).save_pretrained(plain)
    with pytest.raises(ValueError, match="row 0.* has no chat template.*Take a chat model"):
        run(recipe, plain, tmp_path, [{"prompt": [user("Good?")], **COLUMNS[recipe]}])


@pytest.mark.parametrize("recipe", TWO_BY_DEFAULT)
@pytest.mark.parametrize(("nothing", "said"), [(None, "None"), ([], "empty")])
def test_a_row_without_a_prompt_is_named(model, tmp_path, nothing, said, recipe):
    rows = [{"prompt": [user("Good?")], **COLUMNS[recipe]}, {"prompt": nothing, **COLUMNS[recipe]}]
    with pytest.raises(ValueError, match=rf"rows \(split '\w+'\), row 1, column .prompt.: .*{said}.*eave the row"):
        run(recipe, model, tmp_path, rows)
