"""The words that are in use, and a tokenizer that has no others.

A smaller tokenizer gives the same tokens for a text all of whose tokens it has kept: of BPE, every token on the way
to one that is kept is kept too, and merges keep their order; of WordPiece, the longest piece that fits is still the
longest; of Unigram, the best split of a text is still the best among fewer. (Where WordPiece says [UNK] for a word,
fewer pieces can have a split of it.) Nothing here touches weights: `cut` drops the rows of embeddings and head.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_recipes.compression.structure import check_indices

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
ASKED = [{"role": "user", "content": "?"}]
CHATS = (ASKED, [*ASKED, {"role": "assistant", "content": "!"}], [{"role": "system", "content": "."}, *ASKED])


def tokens_in_use(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], min_count: int = 1, alphabet: bool = True
) -> tuple[int, ...]:
    """The tokens of some texts, with all that the tokenizer cannot be without: a vocabulary for a structure.

    These are special tokens, tokens that were added to the tokenizer, those of its chat template, and
    those from which BPE makes others.

    Args:
        texts (`Iterable[str]`): As a model will read and write them.
        min_count (`int`): How often a token must be there.
        alphabet (`bool`): Whether to keep all single characters and bytes, so that other texts can be read too, in
            more tokens. Without them what is not known becomes the unknown token, or nothing where there is none.

    Returns:
        `tuple[int, ...]`: ids, ascending.

    Raises:
        `ValueError`: if the tokenizer is not a fast one, of BPE, WordPiece or Unigram.
    """
    model = _read(tokenizer)["model"]
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(tokenizer(text, verbose=False)["input_ids"])
    used = {token for token, count in counts.items() if count >= min_count}
    used |= {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for text in _chats(tokenizer):
        used |= set(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    known = _pieces(model)
    prefix = model.get("continuing_subword_prefix") or ""
    if alphabet:
        letters = {piece for piece in known if len(piece.removeprefix(prefix)) == 1}
        used |= {known[piece] for piece in known if piece in BYTES or piece in letters}
    if model["type"] == "Unigram":  # what is not known costs a fixed sum more than the rarest piece
        used.add(min(range(len(model["vocab"])), key=lambda place: model["vocab"][place][1]))
    if model["type"] == "BPE":
        used |= _on_the_way(used, model)
    return tuple(sorted(used))


def shrink_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary: Sequence[int]) -> PreTrainedTokenizerBase:
    """The tokenizer without the tokens that are not kept; those that are get their places in `vocabulary` as ids.

    Special tokens, what is put around a text, added tokens that are kept, and the chat template stay. The original
    stays as it is.

    Args:
        vocabulary (`Sequence[int]`): As [`tokens_in_use`] gives it.

    Raises:
        `ValueError`: if the tokenizer is not a fast one of BPE, WordPiece or Unigram; if ids have no token, or are
            there twice, or a special token is not among them.
    """
    backend = _read(tokenizer)
    kept = sorted(vocabulary)
    check_indices(kept, len(tokenizer), "vocabulary", "tokens in the tokenizer")
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(kept)]
    places = {name: place for place, name in enumerate(names)}
    gone = [token for token in tokenizer.all_special_tokens if token not in places]
    if gone:
        raise ValueError(f"The vocabulary leaves out the special token {gone[0]!r}. Keep it: see `tokens_in_use`.")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        smaller = _fewer(backend, places)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(smaller), encoding="utf-8")
        _renumber_added(Path(folder) / "tokenizer_config.json", places)
        result = type(tokenizer).from_pretrained(folder)
    found = result.convert_ids_to_tokens(list(range(len(names))))
    if len(result) != len(names) or found != names:
        raise ValueError(
            f"A {type(tokenizer).__name__} does not load with fewer tokens: it puts tokens of its own at places of "
            f"its own ({len(result)} tokens where {len(names)} are kept)."
        )
    result.name_or_path = tokenizer.name_or_path
    return result


def _read(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A fast tokenizer as its file has it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is no fast tokenizer, and only those can be made smaller.")
    read: dict[str, Any] = json.loads(backend.to_str())
    if read["model"]["type"] not in ("BPE", "WordPiece", "Unigram"):
        raise ValueError(
            f"The tokenizer is of type {read['model']['type']}; BPE, WordPiece and Unigram can be made smaller."
        )
    return read


def _pieces(model: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the pieces of a tokenizer's model."""
    words = model["vocab"]
    return dict(words) if isinstance(words, dict) else {piece: place for place, (piece, _) in enumerate(words)}


def _chats(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the chat template writes itself."""
    from jinja2 import TemplateError

    texts = []
    for messages in CHATS if tokenizer.chat_template else ():
        try:
            texts.append(str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)))
        except TemplateError:  # some have no place for a system prompt
            continue
    return texts


# ---- BPE


def _on_the_way(used: Iterable[int], model: Mapping[str, Any]) -> set[int]:
    """The tokens that BPE makes before those that are used.

    What becomes one token in a text becomes it in the same steps when it stands alone: a merge across its ends, which
    would come in between, would have ended in another token. A token that does not come about alone is never merged.
    """
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(_merges(model))))}
    words: dict[str, int] = model["vocab"]
    pieces = {token: piece for piece, token in words.items()}
    found = {step for token in used if token in pieces for step in _steps(pieces[token], ranks, model)}
    return {words[piece] for piece in found if piece in words}


def _steps(piece: str, ranks: Mapping[tuple[str, str], int], model: Mapping[str, Any]) -> set[str]:
    """All that BPE makes of the letters of a piece until it has the piece."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    end = suffix if suffix and piece.endswith(suffix) else ""
    start = prefix if prefix and piece.startswith(prefix) else ""
    letters = piece[len(start) : len(piece) - len(end)]
    parts = [(prefix if number else start) + letter for number, letter in enumerate(letters)]
    if not parts:
        return set()
    parts[-1] += end
    steps = set(parts)
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda place: ranks.get((parts[place], parts[place + 1]), len(ranks)))
        if (parts[best], parts[best + 1]) not in ranks:
            break
        parts[best : best + 2] = [_merged(parts[best], parts[best + 1], prefix)]
        steps.add(parts[best])
    return steps


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """In older files a pair is one text with a space in it."""
    split = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in split]


def _merged(left: str, right: str, prefix: str) -> str:
    return left + right.removeprefix(prefix)


# ---- what is written


def _fewer(backend: Mapping[str, Any], places: Mapping[str, int]) -> dict[str, Any]:
    """A tokenizer's file with the pieces that have places."""
    model = dict(backend["model"])
    if model["type"] == "Unigram":
        unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else None
        model["vocab"] = sorted((piece for piece in model["vocab"] if piece[0] in places), key=lambda p: places[p[0]])
        model["unk_id"] = None if unknown is None else places.get(unknown)
    else:
        model["vocab"] = {piece: places[piece] for piece in model["vocab"] if piece in places}
    if model["type"] == "BPE":
        prefix, words = model.get("continuing_subword_prefix") or "", model["vocab"]
        model["merges"] = [
            [left, right]
            for left, right in _merges(model)
            if left in words and right in words and _merged(left, right, prefix) in words
        ]
    added = [
        {**token, "id": places[token["content"]]} for token in backend["added_tokens"] if token["content"] in places
    ]
    padding = backend.get("padding")
    return {
        **backend,
        "model": model,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "post_processor": _renumbered(backend["post_processor"], places),
        "padding": padding and {**padding, "pad_id": places[padding["pad_token"]]},
    }


def _renumbered(processor: Any, places: Mapping[str, int]) -> Any:
    """What is put around a text, with new ids: names and ids stand side by side."""
    if isinstance(processor, list):
        if len(processor) == 2 and isinstance(processor[0], str) and isinstance(processor[1], int):
            return [processor[0], places[processor[0]]]
        return [_renumbered(part, places) for part in processor]
    if not isinstance(processor, dict):
        return processor
    if "ids" in processor and "tokens" in processor:
        return {**processor, "ids": [places[token] for token in processor["tokens"]]}
    return {name: _renumbered(part, places) for name, part in processor.items()}


def _renumber_added(file: Path, places: Mapping[str, int]) -> None:
    """Older files list added tokens by id a second time."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    listed = settings.get("added_tokens_decoder")
    if listed:
        settings["added_tokens_decoder"] = {
            str(places[token["content"]]): token for token in listed.values() if token["content"] in places
        }
        file.write_text(json.dumps(settings), encoding="utf-8")
