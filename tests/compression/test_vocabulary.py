"""Tokenizers of every kind with fewer tokens: the same tokens for texts of those that are left."""

import random
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlhf_recipes.compression.cut import cut
from rlhf_recipes.compression.structure import Structure
from rlhf_recipes.compression.vocabulary import shrink_tokenizer, tokens_in_use
from tests.base_tokenizers import BASES, base_tokenizer
from tests.compression.models import logits, tiny
from tests.tiny import SENTENCES, tiny_tokenizer
from tests.tiny_tokenizers import KINDS

SEEN = SENTENCES[:3]
FAST = [name for name, kind in KINDS.items() if kind.is_fast]


def held_out(count=60):
    """Words of the texts that were seen in other orders, and parts of these words."""
    draw = random.Random(0)
    words = " ".join(SEEN).split()
    texts = [" ".join(draw.choice(words) for _ in range(8)) for _ in range(count)]
    return texts + [text[draw.randrange(9) :] for text in texts]


def check(tokenizer, smaller, vocabulary, texts, at_least):
    """Texts all of whose tokens are kept are read as before, alone and in pairs, and come back as before."""
    kept, compared = set(vocabulary), 0
    for text in texts:
        for given in ((text,), (text, SEEN[0])):
            before = tokenizer(*given)["input_ids"]
            if kept.issuperset(before):
                compared += 1
                after = smaller(*given)["input_ids"]
                assert smaller.convert_ids_to_tokens(after) == tokenizer.convert_ids_to_tokens(before)
                assert [vocabulary[token] for token in after] == before
                assert smaller.decode(after) == tokenizer.decode(before)
    assert compared >= at_least


@pytest.mark.parametrize("name", [*FAST, *(f"base {name}" for name in BASES)])
def test_texts_of_the_words_in_use_are_read_as_before(name, tmp_path):
    tokenizer = base_tokenizer(name[5:]) if name.startswith("base ") else KINDS[name].make()
    vocabulary = tokens_in_use(tokenizer, SEEN)
    smaller = shrink_tokenizer(tokenizer, vocabulary)
    assert len(smaller) == len(vocabulary) <= len(tokenizer)
    check(tokenizer, smaller, vocabulary, [*SEEN, *held_out()], at_least=120)
    assert smaller.special_tokens_map == tokenizer.special_tokens_map
    assert smaller.chat_template == tokenizer.chat_template
    smaller.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in SEEN:
        assert again(text)["input_ids"] == smaller(text)["input_ids"]


def plain_bpe(**options):
    """BPE of letters, whose tokens at the end of a word, or within one, may look different."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", **options))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>"], show_progress=False, **options)
    backend.train_from_iterator(SENTENCES, trainer)
    backend.post_processor = processors.BertProcessing(("<s>", 1), ("<s>", 1))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", cls_token="<s>", sep_token="<s>")


@pytest.mark.parametrize("options", [{}, {"end_of_word_suffix": "</w>"}, {"continuing_subword_prefix": "##"}])
def test_bpe_with_marks_in_its_tokens(options):
    tokenizer = plain_bpe(**options)
    vocabulary = tokens_in_use(tokenizer, SEEN, alphabet=False)
    assert len(vocabulary) < 0.8 * len(tokenizer)
    smaller = shrink_tokenizer(tokenizer, vocabulary)
    check(tokenizer, smaller, vocabulary, [*SEEN, *held_out()], at_least=100)
    assert smaller("good")["input_ids"][0] == smaller.cls_token_id


def test_tokens_on_the_way_are_kept_and_no_others():
    """By hand: a+b, ab+c, x+y are the merges; of "abc" all parts are needed, of "xy" none."""
    words = {token: number for number, token in enumerate(["<unk>", "a", "b", "c", "x", "y", "ab", "xy", "abc"])}
    backend = Tokenizer(models.BPE(words, [("a", "b"), ("x", "y"), ("ab", "c")], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert tokens_in_use(tokenizer, ["abc"], alphabet=False) == (0, 1, 2, 3, 6, 8)
    assert tokens_in_use(tokenizer, ["abc"]) == (0, 1, 2, 3, 4, 5, 6, 8)
    assert tokens_in_use(tokenizer, ["abc", "abc", "xy"], min_count=2, alphabet=False) == (0, 1, 2, 3, 6, 8)


def test_other_texts_are_still_read_in_smaller_pieces():
    tokenizer = tiny_tokenizer()
    smaller = shrink_tokenizer(tokenizer, tokens_in_use(tokenizer, SEEN))
    text = "Zebras, émigrés and 猫: nothing of it was seen."
    assert smaller.decode(smaller(text)["input_ids"]) == text


def test_added_tokens_and_the_chat_template_stay():
    tokenizer = tiny_tokenizer(chat_template=True)
    tokenizer.add_tokens(["<|user|>", "[extra]"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|assistant|>"]})
    smaller = shrink_tokenizer(tokenizer, tokens_in_use(tokenizer, ["A film."]))
    chat = [{"role": "user", "content": "A film."}, {"role": "assistant", "content": " A film."}]
    before = tokenizer.apply_chat_template(chat, return_dict=False)
    after = smaller.apply_chat_template(chat, return_dict=False)
    assert smaller.convert_ids_to_tokens(after) == tokenizer.convert_ids_to_tokens(before)
    assert "<|assistant|>" in smaller.convert_ids_to_tokens(after)
    assert smaller.tokenize("a[extra]b") == ["a", "[extra]", "b"]
    assert smaller.decode(after, skip_special_tokens=True) == tokenizer.decode(before, skip_special_tokens=True)


def test_words_of_the_template_are_in_use():
    tokenizer = base_tokenizer("qwen")
    kept = set(tokens_in_use(tokenizer, [], alphabet=False))
    for role in ("user", "assistant", "system"):
        assert kept.issuperset(tokenizer(role)["input_ids"])


@pytest.mark.parametrize("tied", [True, False])
def test_model_and_tokenizer_shrink_together(tied, tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny("llama", tie_word_embeddings=tied, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    vocabulary = tokens_in_use(tokenizer, SEEN)
    structure = replace(Structure.whole(model), vocabulary=vocabulary)
    smaller, fewer = cut(model, structure), shrink_tokenizer(tokenizer, vocabulary)
    smaller.save_pretrained(tmp_path)
    fewer.save_pretrained(tmp_path)
    again, reader = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.num_parameters() == model.num_parameters() - (1 if tied else 2) * 32 * (400 - len(vocabulary))
    before = logits(model, torch.tensor([tokenizer(SEEN[0])["input_ids"]]))
    after = logits(again, torch.tensor([reader(SEEN[0])["input_ids"]]))
    assert torch.allclose(after, before[..., list(vocabulary)], atol=1e-5)
    assert again.config.eos_token_id == reader.eos_token_id
    assert again.generation_config.eos_token_id == [reader.eos_token_id, reader.pad_token_id]
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) is tied


def test_a_model_keeps_its_special_tokens():
    model = tiny("llama", eos_token_id=2)
    with pytest.raises(ValueError, match="leaves out token 2, which is the model's eos_token_id"):
        cut(model, replace(Structure.whole(model), vocabulary=(0, 1, 7)))
    model = tiny("roberta", pad_token_id=3)
    with pytest.raises(ValueError, match=r"which would become 2: keep all of the 3 tokens before it"):
        cut(model, replace(Structure.whole(model), vocabulary=(0, 2, 3, 7)))


def test_tokenizers_that_cannot_shrink():
    for name in ("byt5", "ctrl"):
        with pytest.raises(ValueError, match="no fast tokenizer"):
            tokens_in_use(KINDS[name].make(), SEEN)
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    with pytest.raises(ValueError, match="WordLevel; BPE"):
        shrink_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), (0,))


def test_a_vocabulary_that_is_none():
    tokenizer = tiny_tokenizer()
    everything = tuple(range(len(tokenizer)))
    with pytest.raises(ValueError, match="special token '<pad>'"):
        shrink_tokenizer(tokenizer, everything[1:])
    with pytest.raises(ValueError, match="tokens in the tokenizer"):
        shrink_tokenizer(tokenizer, (*everything, len(tokenizer)))
    with pytest.raises(ValueError, match="twice"):
        shrink_tokenizer(tokenizer, (*everything, 3))
