"""Tokenizers as base models bring them: which token pads, room for it in the model, and prompts that stay open."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlhf_recipes.modeling.loading import ModelArguments, ensure_pad_token, load_policy, load_policy_tokenizer
from rlhf_recipes.modeling.tokenizers.padding import ends_of, fit_model, leave_open, name_end, require_end, spare_token
from rlhf_recipes.ppo.run.inputs import resolve_tokenizer
from rlhf_recipes.rewards import LearnedReward
from tests.base_tokenizers import BASES, base_model, base_tokenizer, byte_level, save_base
from tests.tiny import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer


@pytest.mark.parametrize("kind", BASES)
def test_each_base_is_loaded_and_saved_so_that_other_code_pads_alike(kind, tmp_path):
    args = ModelArguments(str(save_base(tmp_path / "base", kind)), dtype="float32")
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = load_policy_tokenizer(args, padding_side="left")
    model = load_policy(args, tokenizer=tokenizer)
    save_tiny(tmp_path / "out", model, tokenizer)

    again, theirs = (
        AutoTokenizer.from_pretrained(tmp_path / "out"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
    )
    assert (again.pad_token, again.eos_token) == (BASES[kind].pads, BASES[kind].names["eos_token"])
    assert theirs.config.pad_token_id == theirs.generation_config.pad_token_id == again.pad_token_id
    rows = theirs.get_input_embeddings().weight.shape[0]
    assert rows == before.get_input_embeddings().weight.shape[0] + BASES[kind].grows
    assert again("The film").input_ids == tokenizer("The film").input_ids
    ids = torch.tensor([again("The film").input_ids])
    known = min(rows, before.config.vocab_size)
    torch.testing.assert_close(theirs(ids).logits[..., :known], before(ids).logits[..., :known])


@pytest.mark.parametrize(
    ("names", "added", "spare"),
    [
        ({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}, ["<|endoftext|>"], "<|endoftext|>"),  # SmolLM2, chat
        ({"eos_token": "<eos>"}, ["<|image_pad|>", "<|video_pad|>", "<|audio_pad|>"], None),  # places of pictures
        ({"eos_token": "<eos>"}, ["<extra_id_0>", "<mask>", "<tool_call>"], None),  # these stand for something
        ({"eos_token": "<eos>"}, ["<|dummy_0|>", "<｜▁pad▁｜>"], "<｜▁pad▁｜>"),
        ({"eos_token": "<eos>"}, ["<SPECIAL_20>", "<SPECIAL_21>"], "<SPECIAL_20>"),
        ({"eos_token": "<eos>"}, ["[unused7]"], "[unused7]"),
        ({"eos_token": "<eos>"}, ["<fim_pad>", "<reserved_1>"], "<fim_pad>"),
        ({"eos_token": "<pad>"}, ["<|padding|>"], "<|padding|>"),
    ],
)
def test_a_token_is_spare_that_says_pad_or_stands_for_nothing(names, added, spare):
    backend = byte_level([*dict.fromkeys(names.values()), *added])
    assert spare_token(PreTrainedTokenizerFast(tokenizer_object=backend, **names)) == spare


def test_an_unknown_token_that_occurs_in_texts_does_not_pad():
    assert spare_token(base_tokenizer("llama2")) == "<unk>"  # what is not known is written in bytes
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "film": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    assert spare_token(tokenizer) is None


def test_the_choice_is_said_in_one_line(caplog):
    caplog.set_level("INFO")
    ensure_pad_token(base_tokenizer("qwen"))
    ensure_pad_token(base_tokenizer("gpt2"))
    assert "pads with '<|endoftext|>', which ends texts too: '<|fim_pad|>' pads now, spare in its" in caplog.text
    assert "has no pad token: '<pad>' pads now, added to its vocabulary" in caplog.text
    assert len(caplog.records) == 2


def test_the_row_of_an_added_token_is_the_mean_so_that_it_is_hardly_ever_sampled():
    tokenizer = base_tokenizer("gpt2")
    model = base_model("gpt2", tokenizer, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(50)  # a model that is sure of something
    whole = copy.deepcopy(model)
    fit_model(model, ensure_pad_token(tokenizer))
    pad, ids = tokenizer.pad_token_id, torch.arange(40).view(2, 20)
    assert model.config.vocab_size == pad + 1 == whole.config.vocab_size + 1
    for weight, before in ((model.lm_head.weight, whole.lm_head.weight),
                           (model.model.embed_tokens.weight, whole.model.embed_tokens.weight)):  # fmt: skip
        torch.testing.assert_close(weight[pad], before.mean(dim=0))
        assert torch.equal(weight[:pad], before)
    probabilities = model(ids).logits.softmax(dim=-1)
    assert probabilities[..., pad].max() <= 1 / whole.config.vocab_size
    torch.testing.assert_close(model(ids).logits[..., :pad], whole(ids).logits)
    fit_model(model, tokenizer)  # once is enough
    assert model.config.vocab_size == pad + 1


def test_ids_that_the_model_cannot_know_are_no_reason_to_make_room():
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer)
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.add_special_tokens({"pad_token": "<c>"})
    fit_model(model, tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) - 3


def test_a_pad_token_at_which_the_model_stops_is_replaced(tmp_path):
    """As Qwen2.5's chat models: they pad with `<|endoftext|>`, and their generation stops at it too."""
    tokenizer = base_tokenizer("qwen")
    tokenizer.eos_token = "<|im_end|>"
    model = base_model("qwen", tokenizer)
    stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.eos_token_id = stops
    save_tiny(tmp_path, model, tokenizer)
    assert load_policy_tokenizer(ModelArguments(str(tmp_path))).pad_token == "<|fim_pad|>"
    resolved = resolve_tokenizer(tokenizer, model)
    assert (resolved.pad_token, tokenizer.pad_token) == ("<|fim_pad|>", "<|endoftext|>")  # the user's stays as it is
    assert ends_of(model.generation_config, model.config) == {*stops, model.config.eos_token_id}


def test_an_end_that_the_configuration_alone_names_is_taken(tmp_path, caplog):
    caplog.set_level("INFO")
    tokenizer = tiny_tokenizer()
    model, end = tiny_causal_lm(tokenizer), tokenizer.eos_token_id
    tokenizer.eos_token = None
    save_tiny(tmp_path, model, tokenizer)
    assert load_policy_tokenizer(ModelArguments(str(tmp_path))).eos_token_id == end
    assert "the model's configuration does: '<eos>'" in caplog.text
    name_end(tokenizer, [10**6])  # no token of its
    with pytest.raises(ValueError, match="no completion could end. Name one .* tokenizer_config.json"):
        require_end(tokenizer)


@pytest.mark.parametrize("form", ["template", "sequence", "flag"])
def test_a_tokenizer_that_closes_each_text_is_kept_from_it_and_saved_so(tmp_path, form):
    tokenizer = base_tokenizer("llama2_closes")
    if form == "sequence":
        backend = tokenizer.backend_tokenizer
        backend.post_processor = processors.Sequence([processors.ByteLevel(), backend.post_processor])
    elif form == "flag":
        tokenizer.add_bos_token = tokenizer.add_eos_token = True
    closed = tokenizer("The film").input_ids
    assert (closed[0], closed[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    leave_open(tokenizer)
    assert tokenizer("The film").input_ids == closed[:-1]
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("The film").input_ids == closed[:-1]


@pytest.mark.parametrize("kind", ["gpt2", "pythia", "qwen", "llama3"])
def test_a_reward_model_on_a_base_tokenizer_reads_each_text_to_its_end(kind, tmp_path):
    """Its head reads the last token that does not pad, which no end-of-sequence token may be taken for."""
    tokenizer = base_tokenizer(kind)
    model = tiny_classifier(tokenizer, kind="llama")
    end = tokenizer.eos_token
    texts = ["The film", "The film is a quiet and funny one" + end, "The film" + end]
    alone = []
    for text in texts:
        hidden = model.model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state
        alone.append(float(model.score(hidden)[0, -1, 0]))
    scores = LearnedReward(model, processing_class=tokenizer)(prompts=[""] * 3, completions=texts)
    assert scores == pytest.approx(alone, abs=1e-5)
    assert abs(scores[0] - scores[2]) > 1e-3
