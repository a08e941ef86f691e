"""Tokenizers of every kind, saved beside a reward model: what they put around texts when other code calls them."""

import pytest
from transformers import AutoConfig, AutoTokenizer

from rlhf_recipes.modeling.tokenizers.text_ends import adds_eos, ended, ending_tokenizer, ends_texts
from tests.tiny_tokenizers import KINDS

TEXTS = ("The film", " is good.", "", " ", "Nobody could save it.\n\nA dull, dull evening", "caf\u00e9 \u4f60\u597d")
FAST = [name for name in KINDS if KINDS[name].is_fast]
ENDED = [name for name in KINDS if name != "ctrl"]


def saved(name, folder, **settings):
    """A tokenizer of a kind, taught, saved with the configuration of its model, and loaded as a stranger would."""
    kind = KINDS[name]
    tokenizer = kind.make()
    config = AutoConfig.for_model(kind.model)
    wanted = {"append_eos": kind.eos is not None and not ends_texts(tokenizer), "max_length": 12} | settings
    config.save_pretrained(folder)
    ending_tokenizer(tokenizer, config, **wanted).save_pretrained(folder)
    return tokenizer, AutoTokenizer.from_pretrained(folder)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", KINDS)
def test_what_a_kind_adds_by_itself_is_seen(name):
    kind, tokenizer = KINDS[name], KINDS[name].make()
    assert tokenizer("film").input_ids == [
        *tokenizer.convert_tokens_to_ids(kind.before), *ids_of(tokenizer, "film"),
        *tokenizer.convert_tokens_to_ids(kind.after),
    ]  # fmt: skip
    assert ends_texts(tokenizer) is bool(kind.after)
    assert adds_eos(tokenizer) is (kind.eos is not None and kind.eos in kind.after)


@pytest.mark.parametrize("name", ENDED)
def test_the_saved_tokenizer_ends_each_text_once(name, tmp_path):
    kind = KINDS[name]
    tokenizer, again = saved(name, tmp_path)
    before = tokenizer.convert_tokens_to_ids(kind.before)
    after = tokenizer.convert_tokens_to_ids(kind.after or (kind.eos,))
    for text in TEXTS:
        assert again(text).input_ids == [*before, *ids_of(tokenizer, text), *after]
        assert again(text, add_special_tokens=False).input_ids == ids_of(tokenizer, text)


@pytest.mark.parametrize("name", FAST)
def test_a_pair_is_read_as_one_text(name, tmp_path):
    kind = KINDS[name]
    tokenizer, again = saved(name, tmp_path)
    before = tokenizer.convert_tokens_to_ids(kind.before)
    after = tokenizer.convert_tokens_to_ids(kind.after or (kind.eos,))
    read = again("The film", " is good.", return_token_type_ids=True)
    assert read.input_ids == [*before, *ids_of(tokenizer, "The film"), *ids_of(tokenizer, " is good."), *after]
    assert set(read.token_type_ids) == {0}  # as without them, which is how the model was trained


@pytest.mark.parametrize("name", ENDED)
def test_a_long_text_loses_its_beginning_and_keeps_its_ends(name, tmp_path):
    kind = KINDS[name]
    tokenizer, again = saved(name, tmp_path)
    before = tokenizer.convert_tokens_to_ids(kind.before)
    after = tokenizer.convert_tokens_to_ids(kind.after or (kind.eos,))
    text = "A dull script and a tired cast make this a long evening."
    kept = 12 - len(before) - len(after)
    assert again(text, truncation=True).input_ids == [*before, *ids_of(tokenizer, text)[-kept:], *after]
    batch = again(["The film", text], truncation=True, padding=True)
    assert batch.input_ids[0][-1] == again.pad_token_id  # padded on the right
    assert len(batch.input_ids[0]) == 12


@pytest.mark.parametrize("name", ENDED)
def test_what_was_taught_once_is_not_taught_again(name, tmp_path):
    _, once = saved(name, tmp_path / "once")
    assert ends_texts(once)  # so that training from there appends nothing
    config = AutoConfig.for_model(KINDS[name].model)
    config.save_pretrained(tmp_path / "twice")
    ending_tokenizer(once, config, max_length=12).save_pretrained(tmp_path / "twice")
    twice = AutoTokenizer.from_pretrained(tmp_path / "twice")
    assert [twice(text).input_ids for text in TEXTS] == [once(text).input_ids for text in TEXTS]


@pytest.mark.parametrize("name", FAST)
def test_of_rendered_texts_nothing_is_added(name, tmp_path):
    tokenizer, again = saved(name, tmp_path, rendered=True, append_eos=False)
    for text in TEXTS:
        assert again(text).input_ids == ids_of(tokenizer, text)


def test_a_tokenizer_without_a_place_for_it_is_seen_to_end_nothing(tmp_path):
    tokenizer, again = saved("ctrl", tmp_path)
    assert not adds_eos(again)
    for text in TEXTS:
        assert again(text).input_ids == ids_of(tokenizer, text)
    assert (again.truncation_side, again.model_max_length) == ("left", 12)


def test_the_tokenizer_that_was_given_stays_as_it_was():
    tokenizer = KINDS["llama3"].make()
    before = tokenizer("The film", " is good").input_ids, tokenizer.truncation_side, tokenizer.model_max_length
    ending_tokenizer(tokenizer, AutoConfig.for_model("llama"), 12, append_eos=True)
    assert (
        tokenizer("The film", " is good").input_ids,
        tokenizer.truncation_side,
        tokenizer.model_max_length,
    ) == before


def test_special_tokens_with_spaces_and_colons_are_added_too(tmp_path):
    tokenizer = KINDS["gpt2"].make()
    tokenizer.add_special_tokens({"eos_token": "<end: of text>"})
    config = AutoConfig.for_model("gpt2")
    config.save_pretrained(tmp_path)
    ending_tokenizer(tokenizer, config, 12, append_eos=True).save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("film").input_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("text", "append_eos", "adds_it", "expected"),
    [
        ("a", True, False, "a</s>"),
        ("a</s>", True, False, "a</s>"),
        ("a</s>", False, True, "a"),
        ("a", False, True, "a"),
        ("a</s>", False, False, "a</s>"),
        ("", True, False, "</s>"),
        ("a", True, True, "a</s>"),  # as TRL writes it for a tokenizer that adds another one
    ],
)
def test_an_end_is_written_where_the_tokenizer_writes_none(text, append_eos, adds_it, expected):
    assert ended(text, "</s>", append_eos, adds_it) == expected
    assert ended(text, None, False, False) == text
