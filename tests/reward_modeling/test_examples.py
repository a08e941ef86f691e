import json
import logging

import pytest
import torch
from datasets import Dataset
from tokenizers import normalizers
from transformers.modeling_outputs import SequenceClassifierOutput

from rlhf_recipes.data.feedback.read import normalize
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.data.preprocessing import split_of
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.modeling.reading import say_plain_reading
from rlhf_recipes.reward_modeling.examples import (
    example_rows,
    in_share,
    load_feedback,
    pair_rows,
    parse_share,
    settings_for,
    tokenize,
)
from rlhf_recipes.reward_modeling.losses.steps import Process
from rlhf_recipes.reward_modeling.scored import Texts
from rlhf_recipes.rewards.learned import LearnedReward
from tests.base_tokenizers import base_tokenizer
from tests.tiny import CHAT_TEMPLATE, tiny_classifier, tiny_tokenizer

MESSAGES = Texts(
    [[{"role": "user", "content": "Hello"}], "Is it good?", []],
    [
        [{"role": "assistant", "content": "Hi"}],
        "Yes, wonderful.",
        [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}],
    ],
)


def write_rows(folder, split, rows):
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataArguments(dataset_name=str(folder))


class Listener(torch.nn.Module):
    """A model that writes down which token ids it is shown."""

    def __init__(self, model):
        super().__init__()
        self.config, self.embeddings = model.config, model.get_input_embeddings()
        self.heard = []

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids, attention_mask):
        self.heard += [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        return SequenceClassifierOutput(logits=torch.zeros(len(input_ids), 1))


@pytest.mark.parametrize("max_length", [6, None])
@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize(
    "texts", [Texts(["The film is", "", "A"], [" good", "What a wonderful little picture!", ""]), None]
)
def test_the_model_is_trained_on_what_the_reward_will_show_it(kind, max_length, texts):
    tokenizer = tiny_tokenizer(kind, chat_template=texts is None)
    model = tiny_classifier(tokenizer, kind)
    if texts is None:  # BERT has no end-of-sequence token that the template could put in
        tokenizer.eos_token = tokenizer.eos_token or "[SEP]"
        texts = MESSAGES
    settings = RewardModelSettings(append_eos=kind == "llama", max_length=max_length)
    listener = Listener(model)
    LearnedReward(listener, tokenizer, settings=settings, batch_size=1)(texts.prompts, texts.completions)
    ids = tokenize(texts, tokenizer, settings)
    assert sorted(ids) == sorted(listener.heard)
    assert max(map(len, ids)) == max_length or max_length is None


def test_rendered_text_begins_once_and_options_and_begun_answers_are_read_alike():
    tokenizer = base_tokenizer("llama3")
    tokenizer.pad_token = "<|reserved_special_token_0|>"
    tokenizer.chat_template = "{{ bos_token }}{{ 'deep ' if think else 'quick ' }}" + CHAT_TEMPLATE
    begun = [{"role": "user", "content": "Good?"}, {"role": "assistant", "content": "Well, "}]
    answer = [{"role": "assistant", "content": "yes"}]
    texts = Texts(
        ["<|begin_of_text|>The film", begun, begun], [" is", answer, answer], [{}, {"think": True}, {"think": False}]
    )
    settings = RewardModelSettings(chat_template_kwargs={"think": False})
    ids = tokenize(texts, tokenizer, settings)
    assert [tokenizer.decode(of_text) for of_text in ids] == [
        "<|begin_of_text|>The film is",
        "<|begin_of_text|>deep <|user|>Good?<|assistant|>Well, yes<|end_of_text|>",
        "<|begin_of_text|>quick <|user|>Good?<|assistant|>Well, yes<|end_of_text|>",
    ]
    listener = Listener(tiny_classifier(tokenizer, "llama"))
    reward = LearnedReward(listener, tokenizer, settings=settings, batch_size=1)
    reward(texts.prompts, texts.completions, chat_template_kwargs=texts.template_kwargs)
    assert sorted(ids) == sorted(listener.heard)


def test_long_texts_lose_their_beginning_and_are_counted(caplog):
    tokenizer = tiny_tokenizer("llama")
    settings = RewardModelSettings(append_eos=True, max_length=4)
    with caplog.at_level(logging.WARNING):
        ids = tokenize(Texts(["", ""], ["abcdefg", "z"]), tokenizer, settings)
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["e", "f", "g", "<eos>"]
    assert tokenizer.convert_ids_to_tokens(ids[1]) == ["z", "<eos>"]
    assert "1 of 2 texts are longer than 4 tokens" in caplog.text
    assert tokenizer.truncation_side == "right"  # the user's own is left as it was


def test_settings_close_a_decoders_texts_and_leave_an_encoders_to_its_tokenizer():
    bert, llama = tiny_tokenizer("bert"), tiny_tokenizer("llama")
    encoder, decoder = tiny_classifier(bert, "bert"), tiny_classifier(llama, "llama")
    assert settings_for(bert, encoder, 1024) == RewardModelSettings(append_eos=False, max_length=256)
    assert settings_for(llama, decoder, 64) == RewardModelSettings(append_eos=True, max_length=64)
    assert settings_for(llama, decoder, None).max_length == 512
    bert.eos_token = "[SEP]"  # what RoBERTa's tokenizer does: the token is there already
    assert not settings_for(bert, encoder, 64).append_eos


def test_without_a_chat_template_messages_are_read_as_the_text_of_a_dialogue(caplog):
    say_plain_reading.cache_clear()
    tokenizer = tiny_tokenizer("llama")
    with caplog.at_level(logging.WARNING):
        ids = tokenize(MESSAGES, tokenizer, RewardModelSettings(append_eos=True))
    assert [tokenizer.decode(of_text) for of_text in ids] == [
        "\n\nHuman: Hello\n\nAssistant: Hi<eos>",
        "Is it good?Yes, wonderful.<eos>",  # text stays what it was
        "\n\nHuman: How?\n\nAssistant: So.<eos>",
    ]
    assert caplog.text.count("has no chat template, so that conversations are read as plain text") == 1


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_raw_dialogues_are_read_as_the_text_that_they_were(kind):
    head = "\n\nHuman: 1+1?\n\nAssistant: 2\n\nHuman: Sure?\n\nAssistant: "
    raw = Dataset.from_dict({"chosen": [f"{head}Yes."], "rejected": [f"{head}No."]})
    tokenizer = tiny_tokenizer(kind)
    settings = RewardModelSettings(append_eos=kind == "llama")
    rows = pair_rows(normalize(raw)[0], tokenizer, settings)
    end = tokenizer.eos_token if kind == "llama" else ""
    assert rows[0]["chosen_ids"] == tokenizer(f"{head}Yes.{end}").input_ids
    assert rows[0]["rejected_ids"] == tokenizer(f"{head}No.{end}").input_ids


@pytest.mark.parametrize(("drops_line_breaks", "mark"), [(False, "\n"), (True, "[SEP]")])
def test_steps_on_an_encoder_that_drops_line_breaks_take_its_separator(drops_line_breaks, mark):
    tokenizer = tiny_tokenizer("bert")
    if drops_line_breaks:
        tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    objective = Process()
    dataset = Dataset.from_dict({"prompt": ["2+3*4?"], "completions": [["12.", "14."]], "labels": [[1.0, 0.0]]})
    rows = example_rows(dataset, objective, tokenizer, RewardModelSettings())
    (ids,) = rows[0]["input_ids"]
    assert tokenizer.decode(ids) == f"2+3*4?12.{mark}14.{mark}"
    (of_mark,) = tokenizer(mark, add_special_tokens=False).input_ids
    assert [ids[int(place)] for place in rows[0]["ends"]] == [of_mark, of_mark]
    assert objective.step_token == mark  # which is saved beside the model


def test_shares_have_no_text_in_common_and_leave_nothing_out():
    texts = [f"text {number}" for number in range(2000)]
    first = {text for text in texts if in_share(text, 0.0, 0.6)}
    second = {text for text in texts if in_share(text, 0.6, 1.0)}
    assert not first & second
    assert first | second == set(texts)
    assert 1120 < len(first) < 1280
    assert all(in_share(f"  {text.upper()} ", 0.0, 0.6) for text in first)  # copies stay together


def test_a_share_is_drawn_apart_from_the_split():
    texts = [f"text {number}" for number in range(4000)]
    of_test = [text for text in texts if split_of(text) == "test"]
    share = sum(in_share(text, 0.0, 0.5) for text in of_test) / len(of_test)
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("share", ["0.6", "a:b", "0.6:0.2", "0:1.1", "-0.1:1", "0.5:0.5", "0:nan", ""])
def test_a_share_is_two_numbers_in_order(share):
    with pytest.raises(ValueError, match="as in 0:0.6"):
        parse_share(share)


def test_feedback_is_loaded_without_blank_rows_and_by_share(tmp_path):
    rows = [{"completion": f"text {number}", "score": number} for number in range(50)]
    data_args = write_rows(tmp_path / "data", "train", [*rows, {"completion": " ", "score": 1}])
    whole = load_feedback(data_args, "train")
    assert len(whole) == 50
    parts = [load_feedback(data_args, "train", share=share)["completion"] for share in ("0:0.6", "0.6:1")]
    assert not set(parts[0]) & set(parts[1])
    assert set(parts[0]) | set(parts[1]) == set(whole["completion"])
    assert len(load_feedback(data_args, "train", count=7)) == 7


def test_rows_of_one_prompt_are_in_one_share(tmp_path):
    rows = [{"prompt": f"p{number % 20}", "chosen": f"c{number}", "rejected": "r"} for number in range(80)]
    data_args = write_rows(tmp_path / "data", "train", rows)
    first, second = (set(load_feedback(data_args, "train", share=share)["prompt"]) for share in ("0:0.5", "0.5:1"))
    assert not first & second


def test_an_empty_share_and_strange_columns_are_refused(tmp_path):
    rows = [{"completion": "text", "score": 1}, {"completion": "other", "score": 2}]
    data_args = write_rows(tmp_path / "data", "train", rows)
    with pytest.raises(ValueError, match="None of the 2 rows of split 'train' is in the share"):
        load_feedback(data_args, "train", share="0:0.0001")
    data_args = write_rows(tmp_path / "other", "train", [{"review": "text", "stars": 1}])
    with pytest.raises(ValueError, match="Feedback needs the columns 'chosen' and 'rejected', or 'completion' and"):
        load_feedback(data_args, "train")


def test_rows_of_ratings():
    tokenizer = tiny_tokenizer("bert")
    dataset = Dataset.from_dict({"completion": ["abc", "z"], "score": [1.0, 3.0], "votes": [[1], [3]]})
    rows = pair_rows(dataset, tokenizer, RewardModelSettings())
    assert rows.column_names == ["chosen_ids", "rejected_ids", "length"]
    assert tokenizer.convert_ids_to_tokens(rows[0]["chosen_ids"]) == ["[CLS]", "z", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(rows[0]["rejected_ids"]) == ["[CLS]", "a", "b", "c", "[SEP]"]
    assert rows["length"] == [5]


def test_rows_of_pairs_keep_their_margin_and_prompt(caplog):
    tokenizer = tiny_tokenizer("llama")
    dataset = Dataset.from_dict(
        {"prompt": ["a", "b"], "chosen": ["c", "same"], "rejected": ["de", "same"], "margin": [0.5, 1.0], "id": [7, 8]}
    )
    with caplog.at_level(logging.WARNING):
        rows = pair_rows(dataset, tokenizer, RewardModelSettings(append_eos=True))
    assert rows.column_names == ["chosen_ids", "rejected_ids", "margin", "length"]
    assert tokenizer.decode(rows[0]["chosen_ids"]) == "ac<eos>"
    assert tokenizer.decode(rows[0]["rejected_ids"]) == "ade<eos>"
    assert rows["margin"] == [0.5]
    assert "Left out 1 pairs whose two texts are the same" in caplog.text


def test_pairs_that_are_all_the_same_are_refused():
    dataset = Dataset.from_dict({"chosen": ["same"], "rejected": ["same"]})
    with pytest.raises(ValueError, match="nothing to learn"):
        pair_rows(dataset, tiny_tokenizer("llama"), RewardModelSettings())
