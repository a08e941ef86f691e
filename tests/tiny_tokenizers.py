"""A tiny tokenizer of each kind that models come with, and the special tokens that it puts around a text by itself.

What is added is written down here from what each family does, and not read off the tokenizer.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    ByT5Tokenizer,
    CTRLTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
    XLNetTokenizer,
)

from tests.tiny import SENTENCES


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer.

    Args:
        make (`Callable`): Makes it.
        model (`str`): The `model_type` of a model that comes with it.
        before (`tuple[str, ...]`), after (`tuple[str, ...]`): What it puts around one text.
        eos (`str`, *optional*): Its end-of-sequence token.
        is_fast (`bool`): Whether its files have a place for what it adds; others are written in Python.
    """

    make: Callable[[], PreTrainedTokenizerBase]
    model: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    eos: str | None
    is_fast: bool = True


def _byte_level(specials: list[str]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return backend


def _sentence_piece() -> Tokenizer:
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    specials = ["<unk>", "<s>", "</s>", "<pad>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = list("\u2581abcdefghijklmnopqrstuvwxyz .")
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return backend


def _parts(backend: Tokenizer) -> dict:
    model = json.loads(backend.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def _unigram(specials: list[str]) -> list[tuple[str, float]]:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(SENTENCES * 3, trainer)
    return [tuple(piece) for piece in json.loads(backend.to_str())["model"]["vocab"]]


def _gpt2():
    return GPT2Tokenizer(**_parts(_byte_level(["<|endoftext|>", "<|pad|>"])), pad_token="<|pad|>")


def _qwen2():
    return Qwen2Tokenizer(**_parts(_byte_level(["<|endoftext|>", "<|im_end|>"])), eos_token="<|im_end|>")


def _llama3():
    backend = _byte_level(["<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"])
    begin = [("<|begin_of_text|>", 0)]
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1", special_tokens=begin
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
    )  # fmt: skip


def _llama2(**flags):
    def make():
        return LlamaTokenizer(**_parts(_sentence_piece()), pad_token="<pad>", **flags)

    return make


def _gemma():
    tokenizer = GemmaTokenizer(**_parts(_sentence_piece()))
    tokenizer.add_bos_token = True
    return tokenizer


def _roberta():
    return RobertaTokenizer(**_parts(_byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])))


def _bert():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    )
    return BertTokenizer(vocab=json.loads(backend.to_str())["model"]["vocab"])


def _ctrl():
    letters = "abcdefghijklmnopqrstuvwxyzTFIWN.,!"
    pieces = [f"{letter}{end}" for letter in letters for end in ("", "@@", "</w>")]
    specials = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    vocabulary = {token: place for place, token in enumerate([*specials.values(), *pieces])}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\na b\n")
        return CTRLTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt", **specials)


def _of_unigram(cls):
    return lambda: cls(vocab=_unigram(["<s>", "<pad>", "</s>", "<unk>"]))


KINDS = {
    "gpt2": Kind(_gpt2, "gpt2", (), (), "<|endoftext|>"),
    "qwen2": Kind(_qwen2, "qwen2", (), (), "<|im_end|>"),
    "llama3": Kind(_llama3, "llama", ("<|begin_of_text|>",), (), "<|eot_id|>"),
    "llama2": Kind(_llama2(add_bos_token=True), "llama", ("<s>",), (), "</s>"),
    "llama2, both": Kind(_llama2(add_bos_token=True, add_eos_token=True), "llama", ("<s>",), ("</s>",), "</s>"),
    "llama2, none": Kind(_llama2(add_bos_token=False), "mistral", (), (), "</s>"),
    "gemma": Kind(_gemma, "gemma2", ("<bos>",), (), "<eos>"),
    "bert": Kind(_bert, "bert", ("[CLS]",), ("[SEP]",), None),
    "distilbert": Kind(_bert, "distilbert", ("[CLS]",), ("[SEP]",), None),
    "roberta": Kind(_roberta, "roberta", ("<s>",), ("</s>",), "</s>"),
    "xlm-roberta": Kind(_of_unigram(XLMRobertaTokenizer), "xlm-roberta", ("<s>",), ("</s>",), "</s>"),
    "t5": Kind(_of_unigram(T5Tokenizer), "t5", (), ("</s>",), "</s>"),
    "xlnet": Kind(_of_unigram(XLNetTokenizer), "xlnet", (), ("<sep>", "<cls>"), "</s>"),
    "byt5": Kind(ByT5Tokenizer, "t5", (), ("</s>",), "</s>", is_fast=False),
    "ctrl": Kind(_ctrl, "ctrl", (), (), "</s>", is_fast=False),
}
