"""Process reward models: they read prompt and answer with a mark after each step, and judge the step there."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from rlhf_recipes.modeling.frozen import FrozenModel, check_batch_size, warn_of_truncation
from rlhf_recipes.modeling.heads import LabelScore, RewardModelSettings
from rlhf_recipes.modeling.reading import first_special, joined, model_outputs, pad_id_of
from rlhf_recipes.rewards.model_reward import ModelReward
from rlhf_recipes.texts import Text

Span: TypeAlias = tuple[int, int]  # first character, and the one after the last
LINE_BREAK = "\n"  # behind each step, unless another mark is given
logger = logging.getLogger(__name__)


class StepModel(ModelReward):
    """A process reward model, of one of two kinds:

    - A token classifier, as TRL's `PRMTrainer` trains: after each step stands `step_token`, and what the classifier
      says of it is the step's score. Prompt, steps and marks are encoded apart and put together, as in training.
    - A causal language model with `good_token` and `bad_token`, as Math-Shepherd (Wang et al., arXiv 2312.08935): the
      score is `p(good) / (p(good) + p(bad))` for what follows the mark. Marks are written into the text, which is
      encoded whole. For the model of that paper: `step_token=" ки"`, `good_token="+"`, `bad_token="-"`.

    Args:
        model (`str`, `Path` or `torch.nn.Module`):
            A folder, a model id of the Hub, or a model that is loaded already.
        step_token (`str`, *optional*):
            The mark, as in the model's training. Default: what `reward_config.json` beside the model says, else a line
            break, or the separator of a tokenizer that drops line breaks.
        label (`int` or `str`, *optional*):
            The classifier's output that is the score, such as that of correct steps (1 for TRL's).
        labels (`dict`, *optional*):
            Instead, what each label counts: `{"good": 1.0, "bad": -1.0}` (PRM800K, Lightman et al., arXiv 2305.20050,
            has a third, neutral).
        probabilities (`bool`, *optional*):
            Whether the classifier's logits become probabilities first. Default: what `reward_config.json` beside the
            model says, else yes.
        good_token, bad_token (`str`, *optional*):
            One token each, of a causal model. Both or neither.
        processing_class, batch_size, max_length, device, dtype, load_in_4bit: as in [`ModelReward`]. A longer text
            loses its beginning; steps whose mark is cut off with it are not judged.

    Raises:
        `ValueError`: if a mark or token is not known to the tokenizer as it must be, or options do not fit together.
    """

    def __init__(
        self,
        model: str | Path | Any,
        step_token: str | None = None,
        label: int | str | None = None,
        labels: Mapping[int | str, float] | None = None,
        probabilities: bool | None = None,
        good_token: str | None = None,
        bad_token: str | None = None,
        processing_class: str | Path | PreTrainedTokenizerBase | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        device: Any = None,
        dtype: Any = None,
        load_in_4bit: bool = False,
    ) -> None:
        check_batch_size(batch_size)
        self.is_causal = good_token is not None
        if (good_token is None) != (bad_token is None):
            raise ValueError("good_token and bad_token belong together: give both for a causal model, or neither.")
        if self.is_causal and (label is not None or labels is not None or probabilities is False):
            raise ValueError(
                "label, labels and probabilities are for a token classifier, good_token and bad_token for a causal "
                "language model. Give what belongs to one of them."
            )
        self.template_kwargs: Mapping[str, Any] | None = None
        if isinstance(model, (str, Path)):
            settings = RewardModelSettings.load(model)
            self.template_kwargs = settings.chat_template_kwargs
            step_token = settings.step_token if step_token is None else step_token
            max_length = settings.max_length if max_length is None else max_length
            if probabilities is None and settings.step_token is not None:
                probabilities = settings.probabilities
        probabilities = True if probabilities is None else probabilities
        from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

        kind = AutoModelForCausalLM if self.is_causal else AutoModelForTokenClassification
        self.reader = FrozenModel(
            kind, model, processing_class, max_length, device, dtype, load_in_4bit, needs_offsets=self.is_causal
        )
        self.step_token = own_mark(LINE_BREAK if step_token is None else step_token, self.reader.tokenizer)
        self.mark = plain_ids(self.step_token, self.reader.tokenizer)
        if not self.mark:
            raise ValueError(f"The tokenizer makes no token of step_token {step_token!r}; give the model's own mark.")
        self.candidates = [self._single("good_token", good_token), self._single("bad_token", bad_token)]
        self.head = None if self.is_causal else LabelScore(self.reader.model.config, label, labels, probabilities)
        self.batch_size = batch_size

    def scores(
        self, prompts: Sequence[Text], completions: Sequence[Text], spans: Sequence[Sequence[Span]], name: str
    ) -> list[list[float | None]]:
        """The score of each step of each row; `None` for one whose mark was cut off.

        Args:
            spans: for each row, the characters of its completion in which each step stands.
            name: the reward's, for what is logged.
        """
        before = self.reader.truncated
        rows = [row for row, own in enumerate(spans) if own]
        marked = [self._encode(prompts[row], completions[row], spans[row]) for row in rows]
        if before == 0 and self.reader.truncated:
            warn_of_truncation(name, self.reader.truncated, len(marked), self.reader.max_length)
        result: list[list[float | None]] = [[] for _ in spans]
        pad_id = pad_id_of(self.reader.tokenizer)
        for batch, output in model_outputs(self.reader.model, [ids for ids, _ in marked], self.batch_size, pad_id):
            for index, number in enumerate(batch):
                places = marked[number][1]
                values = iter(self._read(output.logits[index, [place for place in places if place >= 0]]))
                result[rows[number]] = [next(values) if place >= 0 else None for place in places]
        return result

    def __repr__(self) -> str:
        return f"StepModel(model={self.reader.source!r}, step_token={self.step_token!r})"

    def _read(self, logits: Any) -> list[float]:
        if self.head is not None:
            return self.head(logits).tolist()
        return logits[:, self.candidates].float().softmax(dim=-1)[:, 0].tolist()

    def _encode(self, prompt: Text, completion: Text, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
        """Token ids, and the last one of each mark."""
        reader = self.reader
        start, text, special = joined(prompt, completion, reader.tokenizer, self.template_kwargs)
        if self.is_causal:
            ids, places = self._whole(start, text, special, spans)
        else:
            steps = [text[begin:end] for begin, end in spans]
            ids, places = encode_steps(start, steps, special, self.mark, reader.tokenizer)
        if reader.max_length is None or len(ids) <= reader.max_length:
            return ids or [first_special(reader.tokenizer)], places
        reader.truncated += 1
        return cut_beginning(ids, places, reader.max_length, reader.tokenizer.bos_token_id)

    def _whole(self, start: str, text: str, special: bool, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
        """As [`encode_steps`], but with the marks written into the text, which is encoded whole."""
        written, ends, last = start, [], 0
        for _, end in spans:
            written += text[last:end] + self.step_token
            ends.append(len(written))
            last = end
        said = self.reader.tokenizer(written, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        token_ends = [end for _, end in said.offset_mapping]
        # White space after a mark may be part of its token, so that the token ends later than the mark.
        last_of_text = max(place for place, end in enumerate(token_ends) if end > 0)
        places = [next((place for place, end in enumerate(token_ends) if end >= mark), last_of_text) for mark in ends]
        return list(said.input_ids), places

    def _single(self, what: str, token: str | None) -> int:
        if token is None:
            return -1
        ids = plain_ids(token, self.reader.tokenizer)
        if len(ids) != 1:
            raise ValueError(f"{what} {token!r} is {len(ids)} tokens of the model's tokenizer, but must be one.")
        return ids[0]


def plain_ids(text: str, tokenizer: Any) -> list[int]:
    """The token ids of a text, without special tokens."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def own_mark(step_token: str, tokenizer: Any) -> str:
    """The mark behind each step; the separator of a tokenizer that drops line breaks, as most encoders' do."""
    if step_token != LINE_BREAK or plain_ids(step_token, tokenizer):
        return step_token
    own = tokenizer.sep_token or tokenizer.eos_token
    if own is None:
        return step_token
    logger.info("The tokenizer drops line breaks, so that %r stands behind each step.", own)
    return str(own)


def encode_steps(
    start: str, steps: Sequence[str], special: bool, mark: Sequence[int], tokenizer: Any
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and steps with a mark behind each, and the place of the last token of each mark.

    Each part is encoded on its own, so that a mark is the same tokens wherever it stands; training and scoring both
    read this.

    Args:
        start (`str`): The prompt as text.
        steps (`Sequence[str]`): The steps.
        special (`bool`): Whether a beginning-of-sequence token is yet to be put in front, if there is one.
        mark (`Sequence[int]`): The tokens of the mark.
        tokenizer (`PreTrainedTokenizerBase`): The model's.
    """
    bos = tokenizer.bos_token_id
    ids = ([bos] if special and bos is not None else []) + plain_ids(start, tokenizer)
    places = []
    for step in steps:
        ids += plain_ids(step, tokenizer) + list(mark)
        places.append(len(ids) - 1)
    return ids, places


def cut_beginning(ids: list[int], places: Sequence[int], limit: int, bos: int | None) -> tuple[list[int], list[int]]:
    """The last `limit` tokens, the first of them BOS if that was; the place of a mark that was cut off is -1."""
    kept = 1 if ids[0] == bos and limit > 1 else 0
    dropped = len(ids) - limit
    return ids[:kept] + ids[kept + dropped :], [place - dropped if place >= kept + dropped else -1 for place in places]
