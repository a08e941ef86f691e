"""Which words moved the score of a neural reward model: a heat map of a text.

Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365, equation 1) on the word embeddings `e_i` of a
text, against a baseline `b_i` in which every token is the mask, or the pad:

```
a_i = (e_i - b_i) . integral_0^1  d score / d e_i  at  b + t (e - b)  dt          one number for each token
```
They are complete: `sum_i a_i = score(e) - score(b)`. The integral is a sum over steps here, so that what is left of
this equation is measured and told with each map. The same holds for each piece of the way from `b` to `e`. So the
pieces with the largest error are halved until the whole is near enough: the score of a decoder hardly moves on most of
the way and jumps where its first token changes, where no even steps are fine enough.

An attribution says what the model did with a word in this text. It does not say that the model is right, nor what it
would do with the word elsewhere.

```python
heat = attribute(LearnedReward("runs/quickstart/reward"), "", "A warm, funny film.")
save_html([heat], "heat.html")
```
"""

import bisect
import functools
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_recipes import filenames
from rlhf_recipes.imports import optional
from rlhf_recipes.modeling.frozen import require_offsets
from rlhf_recipes.modeling.reading import evaluating
from rlhf_recipes.modeling.tokenizers.padding import embedding_rows
from rlhf_recipes.report.heat import HeatMap, WordAttribution
from rlhf_recipes.rewards.learned import LearnedReward
from rlhf_recipes.texts import Text
from rlhf_recipes.words import EMOJI, GRAPHEME, JOINER, RUN

logger = logging.getLogger(__name__)
SHORTEST, HEAT_LIMIT = 20, 300  # characters of a text with a map: shorter ones say little, longer ones nobody reads
Baseline = Literal["mask", "pad"] | int
NEGLIGIBLE = 1e-6  # below this an error is float32's rounding


def attribute(
    reward: LearnedReward,
    prompt: Text,
    completion: Text,
    baseline: Baseline | None = None,
    steps: int = 16,
    tolerance: float = 0.01,
    max_steps: int = 1024,
    batch_size: int = 16,
) -> HeatMap:
    """Attribute the score of one text to its words, with captum's IntegratedGradients on the embeddings.

    Special tokens (`[CLS]`, an end-of-sequence token, a template's marks) stay in the baseline and so get 0.

    Args:
        reward ([`~rlhf_recipes.rewards.learned.LearnedReward`]): An encoder or decoder with a head. It is not changed.
        prompt, completion (`str` or messages): The row. A text without a token is read as a single special one.
        baseline (`"mask"`, `"pad"` or `int`, *optional*):
            What stands in place of each token: the mask, the pad, or a token id. Default: the mask, where the
            tokenizer has one, else the pad. Attributions depend on it: look at more than one. Do not take one whose
            embedding is near zero (the pad of some decoders is): layers that normalize then jump at the baseline, and
            no number of steps is enough.
        steps (`int`, *optional*, defaults to 16), max_steps (`int`, *optional*, defaults to 1024):
            Steps of each piece of the way, and the most in all.
        tolerance (`float`, *optional*, defaults to 0.01):
            Largest error, added up over the pieces whatever its sign, as a share of the sum of all absolute
            attributions. Where `max_steps` do not reach it, the log warns.
        batch_size (`int`, *optional*, defaults to 16): Steps in one pass.

    Raises:
        `ValueError`: if a setting is out of range, the baseline's token does not exist, or the tokenizer cannot tell
            which characters a token stands for.
    """
    if not 1 <= steps <= max_steps or tolerance <= 0 or batch_size < 1:
        raise ValueError(
            f"steps is {steps}, max_steps {max_steps}, tolerance {tolerance}, batch_size {batch_size}: steps must be "
            "1 or more and at most max_steps, the tolerance above 0, batch_size 1 or more."
        )
    text, ids, spans = _read(reward, prompt, completion)
    special = _kept(reward.tokenizer)
    blank = _baseline_token(reward, baseline)
    device = next(reward.model.parameters()).device
    input_ids = torch.tensor([ids], device=device)
    blank_ids = torch.tensor([[token if token in special else blank for token in ids]], device=device)
    with evaluating(reward.model):
        way = _Way(reward, input_ids, blank_ids, steps, batch_size)
        values = _added_up(way, steps, tolerance, max_steps)
    score, baseline_score = way.score(1.0), way.score(0.0)
    missed = float(values.sum()) - (score - baseline_score)
    tokens = zip(reward.tokenizer.convert_ids_to_tokens(ids), values.tolist(), strict=True)
    words = _as_words(text, spans, values.tolist(), [token in special for token in ids])
    return HeatMap(text, words, tuple(tokens), score, baseline_score, missed, way.taken, reward.__name__)


def _added_up(way: "_Way", steps: int, tolerance: float, max_steps: int) -> Tensor:
    """The attributions `(L,)` of the whole way; its worst pieces are halved until all of them are exact enough."""
    pieces = [way.piece(0.0, 1.0)]
    while True:
        values = torch.stack([piece.values for piece in pieces]).sum(dim=0)
        error = math.fsum(abs(piece.error) for piece in pieces)
        allowed = tolerance * float(values.abs().sum()) + NEGLIGIBLE
        if error <= allowed or (len(pieces) + 1) * steps > max_steps:
            break
        worst = max(pieces, key=lambda piece: abs(piece.error))
        middle = (worst.start + worst.end) / 2
        pieces.remove(worst)
        pieces += [way.piece(worst.start, middle), way.piece(middle, worst.end)]
    if not error <= allowed:
        logger.warning("The attributions of a text miss its score by up to %.3g after %d steps.", error, way.taken)
    return values


def _read(reward: LearnedReward, prompt: Text, completion: Text) -> tuple[str, list[int], list[tuple[int, int]]]:
    """What the reward model reads: the text, its token ids, and the characters that each stands for."""
    require_offsets(reward.tokenizer)
    text, special = reward.render(prompt, completion)
    ids = reward.encode_text(text, special)
    limit = {"truncation": True, "max_length": reward.max_length} if reward.max_length is not None else {}
    said = reward.tokenizer(
        text, add_special_tokens=special, return_offsets_mapping=True, return_token_type_ids=False, **limit
    )
    spans = [(start, end) for start, end in said.offset_mapping]
    return text, ids, spans if len(spans) == len(ids) else [(0, 0)] * len(ids)


def _baseline_token(reward: LearnedReward, baseline: Baseline | None) -> int:
    tokenizer = reward.tokenizer
    size = embedding_rows(reward.model)
    tokens = {"mask": tokenizer.mask_token_id, "pad": tokenizer.pad_token_id}
    if baseline is None:
        baseline = "pad" if tokens["mask"] is None else "mask"
    token = tokens.get(baseline, -1) if isinstance(baseline, str) else baseline
    if token is None:
        raise ValueError(f"The tokenizer {tokenizer.name_or_path!r} has no {baseline} token to be a baseline.")
    if not 0 <= token < size:
        raise ValueError(f"The baseline is 'mask', 'pad' or a token id from 0 to {size - 1}, not {baseline!r}.")
    return int(token)


def _kept(tokenizer: Any) -> set[int]:
    """Special tokens, which the baseline keeps. The unknown token stands for words, unless it is another one too."""
    roles = ("bos", "eos", "cls", "sep", "pad", "mask")
    others = {getattr(tokenizer, f"{role}_token_id") for role in roles}
    return {token for token in tokenizer.all_special_ids if token in others or token != tokenizer.unk_token_id}


@dataclass(frozen=True, eq=False)
class _Piece:
    """A piece of the way from the baseline (0) to the text (1), and what its attributions miss."""

    start: float
    end: float
    values: Tensor  # (L,)
    error: float


class _Way:
    """The straight way from the embeddings of a baseline to those of a text, and the score along it.

    The model is given the ids of the text all the way, and a hook puts the embeddings in their place: a decoder's head
    reads the last id that is no pad, and would look elsewhere in a baseline of pads.
    """

    def __init__(
        self, reward: LearnedReward, input_ids: Tensor, blank_ids: Tensor, steps: int, batch_size: int
    ) -> None:
        self.reward = reward
        self.input_ids = input_ids
        self.steps = steps
        self.batch_size = batch_size
        self.taken = 0
        self.layer = reward.model.get_input_embeddings()
        with torch.no_grad():
            self.start, self.end = self.layer(blank_ids), self.layer(input_ids)  # (1, L, H)
        self.scores: dict[float, float] = {}

    def at(self, place: float) -> Tensor:
        return self.start + place * (self.end - self.start)

    def score(self, place: float) -> float:
        if place not in self.scores:
            with torch.no_grad():
                self.scores[place] = float(self.forward(self.at(place))[0])
        return self.scores[place]

    def forward(self, embeddings: Tensor) -> Tensor:
        """The scores of texts with these embeddings. `(b, L, H) -> (b,)`"""
        ids = self.input_ids.expand(len(embeddings), -1)
        hook = self.layer.register_forward_hook(lambda *_: embeddings)
        try:
            scores: Tensor = self.reward.head(
                self.reward.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            )
        finally:
            hook.remove()
        return scores

    def piece(self, start: float, end: float) -> _Piece:
        captum = optional("captum.attr", "attribute", package="captum", extra="feedback")
        found = captum.IntegratedGradients(self.forward).attribute(
            self.at(end), baselines=self.at(start), n_steps=self.steps, internal_batch_size=self.batch_size
        )
        self.taken += self.steps
        values = found[0].detach().double().sum(dim=-1).cpu()  # (1, L, H) -> (L,)
        return _Piece(start, end, values, float(values.sum()) - (self.score(end) - self.score(start)))


def _as_words(
    text: str, spans: Sequence[tuple[int, int]], values: Sequence[float], special: Sequence[bool]
) -> tuple[WordAttribution, ...]:
    """Add up tokens word by word: a token belongs to the word in which its first visible character stands.

    A token of white space alone belongs to the word that comes next, and at the end to the last one. The marks of
    special tokens in the text are no words.
    """
    marks = [span for span, is_special in zip(spans, special, strict=True) if is_special and span[0] < span[1]]
    marked = {position for start, end in marks for position in range(start, end)}
    found = [match.span() for match in _words().finditer(text) if match.start() not in marked]
    ends = [end for _, end in found]
    first_read = min((start for start, end in spans if start < end), default=0)
    sums: list[float | None] = [None if end <= first_read else 0.0 for end in ends]
    for (start, end), value, is_special in zip(spans, values, special, strict=True):
        if start == end or is_special or not found:
            continue
        visible = next((position for position in range(start, end) if not text[position].isspace()), end)
        word = min(bisect.bisect_right(ends, visible), len(found) - 1)
        sums[word] = (sums[word] or 0.0) + value
    return tuple(
        WordAttribution(text[start:end], start, end, value) for (start, end), value in zip(found, sums, strict=True)
    )


@functools.cache
def _words() -> Any:
    """Words of any script as in `rlhf_recipes.words`, and every other sign, with their places in the text."""
    pattern = "|".join((EMOJI, rf"{RUN}(?:{JOINER}{RUN})*", GRAPHEME, r"\S"))
    return optional("regex", "attribute").compile(f"(?V1){pattern}")


# --- Heat maps of a saved model ----------------------------------------------------------------------------


def heat_maps(folder: str | Path, reward: LearnedReward | None = None, count: int = 3) -> tuple[list[HeatMap], str]:
    """Maps of a text of high, of middle and of low score; else why there are none.

    Args:
        folder (`str` or `Path`): A reward model, with the `predictions.jsonl` that `measure` has written.
        reward ([`~rlhf_recipes.rewards.learned.LearnedReward`], *optional*):
            The model, where it is in memory already. Default: it is loaded.
        count (`int`, *optional*, defaults to 3): How many. Each needs captum, and some seconds.
    """
    root = Path(folder)
    if count < 1:
        return [], ""
    texts = _texts_to_map(root / filenames.PREDICTIONS, count)
    if not texts:
        return [], "predictions.jsonl has no text of a size that can be shown."
    try:
        loaded = reward or LearnedReward(root, calibrate=False)
        return [attribute(loaded, "", text) for text in texts], ""
    except (ImportError, ValueError) as error:
        logger.info("No heat maps on the card: %s", error)
        return [], str(error)


def _texts_to_map(path: Path, count: int) -> list[str]:
    """Texts of the test split, spread evenly over the scores, none of them long."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8", errors="surrogatepass").splitlines()]
    short = [row for row in rows if row.get("split") == "test" and SHORTEST <= len(row["text"]) <= HEAT_LIMIT]
    ordered = sorted({(row["logit"], row["text"]) for row in short}, reverse=True)
    if len(ordered) <= count:
        return [text for _, text in ordered]
    last = len(ordered) - 1
    places = [round(last * (0.02 + 0.96 * place / max(count - 1, 1))) for place in range(count)]
    return [ordered[place][1] for place in places]
