"""A trained sequence classifier as a reward: any encoder or decoder with a head, with its own tokenizer.

Text comes in, so the policy's tokenizer need not be the reward model's. What the model was trained to see (an
end-of-sequence token, a length) and how its logits become ratings stands in `reward_config.json` beside it.
"""

import copy
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import AutoPeftModelForSequenceClassification, PeftConfig
from safetensors import safe_open
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from rlhf_recipes.compat import loaded_whole
from rlhf_recipes.modeling.loading import check_model_path, ensure_pad_token, load_tokenizer
from rlhf_recipes.rewards.base import Text
from rlhf_recipes.rewards.calibration import LogisticCalibration

logger = logging.getLogger(__name__)

SETTINGS_FILE = "reward_config.json"


@dataclass(frozen=True)
class RewardModelSettings:
    """What a reward model needs besides its weights and tokenizer, as `reward_config.json` in its folder.

    Args:
        calibration ([`LogisticCalibration`], *optional*):
            The map from logits to ratings. `None` leaves logits as they are.
        append_eos (`bool`, *optional*, defaults to `False`):
            Whether each plain text ends with the tokenizer's end-of-sequence token, as TRL's `RewardTrainer` trains.
            (A chat template ends its turns itself.)
        max_length (`int`, *optional*):
            Tokens the model was trained to read. `None` means as many as it can.
    """

    calibration: LogisticCalibration | None = None
    append_eos: bool = False
    max_length: int | None = None

    def save(self, folder: str | Path) -> Path:
        """Write the settings into a model's folder, which is made if needed, and return the file's path."""
        data = asdict(self)
        if self.calibration is not None:
            data["calibration"] = {"kind": "logistic", **data["calibration"]}
        path = Path(folder) / SETTINGS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "RewardModelSettings":
        """Read the settings of a folder or of a model id of the Hub; the defaults where it has none.

        Raises:
            `ValueError`: if the file is not JSON, or holds keys or values that are not known.
        """
        path = _find_file(str(folder), SETTINGS_FILE)
        if path is None:
            return cls()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            calibration = data.pop("calibration", None)
            if calibration is not None:
                kind = calibration.pop("kind", None)
                if kind != "logistic":
                    raise ValueError(f"the calibration is of kind {kind!r}, but only 'logistic' is known")
                _refuse_unknown(calibration, LogisticCalibration)
                calibration = LogisticCalibration(**calibration)
            _refuse_unknown(data, cls)
            settings = cls(calibration=calibration, **data)
            if not isinstance(settings.append_eos, bool):
                raise ValueError(f"append_eos must be true or false, not {settings.append_eos!r}")
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"Cannot read the reward model's settings in {path}: {error}.") from error
        return settings


class LearnedReward:
    """The score that a sequence classifier gives to prompt and completion, read as one text.

    Plain text is the prompt followed by the completion; of messages, the model's chat template makes the text. Texts
    are padded on the right and go through the model in batches of similar length, without gradients. A text that is
    longer than `max_length` loses its beginning, because what is judged is the completion; how many do is logged
    once. An empty or blank completion is scored as it stands, with the prompt; where there is no token at all,
    a single special token is read.

    Args:
        model (`str`, `Path` or `torch.nn.Module`):
            A folder or a model id of the Hub, or a model that is loaded already. The folder may be that of a LoRA
            adapter with its head.
        processing_class (`str`, `Path` or `PreTrainedTokenizerBase`, *optional*):
            The model's tokenizer, or where it lies. Default: that of `model`. It is copied, never changed.
        batch_size (`int`, *optional*, defaults to 32):
            Texts in one forward pass.
        max_length (`int`, *optional*):
            Tokens of a text that the model reads. Default: what `reward_config.json` says, else all that it can.
        label (`int` or `str`, *optional*):
            Which logit is the score, by index or by name. Needed only where the model has several labels.
        name (`str`, *optional*):
            What logs show. Default: the last part of the folder or of the model id.
        calibrate (`bool`, *optional*, defaults to `True`):
            Whether to turn logits into ratings, where the settings hold a calibration.
        device (`str` or `torch.device`, *optional*):
            Where to put the model. Default: a model that is given stays; one that is loaded goes to this process's
            GPU, or to the CPU where there is none.
        dtype (`str` or `torch.dtype`, *optional*):
            Precision to load in. Default: that of the files on a GPU, float32 on a CPU.
        settings ([`RewardModelSettings`], *optional*):
            Instead of those in the folder; for a model that is given, whose folder is not known.

    Raises:
        `FileNotFoundError`: if there is no model where a path points.
        `ValueError`: if a weight of the model was not in its files, so that it would judge at random; if its tokenizer
            gives ids that it has no embedding for; if it has several labels and none is chosen.

    Example:

    ```python
    reward = LearnedReward("runs/quickstart/reward", batch_size=64)
    reward(prompts=["The film is"], completions=[" a delight."])  # [2.3]
    ```
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        processing_class: str | Path | PreTrainedTokenizerBase | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        label: int | str | None = None,
        name: str | None = None,
        calibrate: bool = True,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        settings: RewardModelSettings | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be 1 or more.")
        self._arguments = (
            model, processing_class, batch_size, max_length, label, name, calibrate, device, dtype, settings
        )  # fmt: skip
        source = None if isinstance(model, torch.nn.Module) else check_model_path(str(model))
        self.tokenizer = _own_tokenizer(processing_class, source)
        self.model: Any
        if isinstance(model, torch.nn.Module):
            self.model = model if device is None else model.to(device)
        else:
            self.model = _load_model(str(source), torch.device(device or _default_device()), dtype)
            self.model.requires_grad_(False)
        _check_vocabulary(self.model, self.tokenizer)
        # A decoder's head reads the last token that is not this one.
        self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.model.eval()
        self.settings = settings or (RewardModelSettings() if source is None else RewardModelSettings.load(source))
        self.calibration = self.settings.calibration if calibrate else None
        self.batch_size = batch_size
        self.max_length = _read_limit(self.model, self.tokenizer, max_length, self.settings.max_length)
        self.label = _label_index(self.model.config, label)
        self.truncated = 0  # texts so far that were longer than max_length
        self.__name__ = name or (Path(source).name if source is not None else type(self).__name__)
        if self.settings.append_eos and self.tokenizer.eos_token is None:
            raise ValueError(f"{SETTINGS_FILE} says append_eos, but the tokenizer has no end-of-sequence token.")

    def __reduce__(self) -> tuple[Any, ...]:
        # Made anew from where it was loaded: a pickle stays small, and the device is found where it is opened.
        return type(self), self._arguments

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float]:
        """Score each prompt with its completion. `(B,)`"""
        texts = [self._render(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        truncated_before = self.truncated
        token_ids = [self._encode(text, special) for text, special in texts]
        if truncated_before == 0 and self.truncated:
            logger.warning(
                "Reward model %r: %d of %d texts are longer than its max_length of %d tokens, so their beginning is "
                "cut off. This is said once; the attribute `truncated` counts on.",
                *(self.__name__, self.truncated, len(texts), self.max_length),
            )
        return self._score_ids(token_ids)

    @torch.inference_mode()
    def _score_ids(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """Score texts that are encoded already, the longest first so that each batch holds similar lengths. `(B,)`"""
        was_training = self.model.training
        self.model.eval()
        device = next(self.model.parameters()).device
        logits = torch.empty(len(token_ids), dtype=torch.float32)
        order = sorted(range(len(token_ids)), key=lambda row: -len(token_ids[row]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = [torch.tensor(token_ids[row]) for row in rows]
            input_ids = pad_sequence(batch, batch_first=True, padding_value=self._pad_id)  # (b, L)
            lengths = torch.tensor([len(ids) for ids in batch])
            mask = torch.arange(input_ids.shape[1]) < lengths[:, None]  # (b, L)
            output = self.model(input_ids=input_ids.to(device), attention_mask=mask.long().to(device))
            logits[rows] = output.logits[:, self.label].float().cpu()
        self.model.train(was_training)
        return logits.tolist() if self.calibration is None else self.calibration(logits.numpy()).tolist()

    def __repr__(self) -> str:
        return f"LearnedReward(name={self.__name__!r}, max_length={self.max_length}, calibration={self.calibration})"

    @property
    def _pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    def _render(self, prompt: Text, completion: Text) -> tuple[str, bool]:
        """One text, and whether the tokenizer has yet to add special tokens to it."""
        if isinstance(prompt, str) and isinstance(completion, str):
            text = prompt + completion
            if self.settings.append_eos and not text.endswith(self.tokenizer.eos_token):
                text += self.tokenizer.eos_token
            return text, True
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"The rows are conversations, but the tokenizer of the reward model {self.__name__!r} has no chat "
                "template to make text of them. Set `chat_template` on the tokenizer and give it as processing_class, "
                "or score plain text."
            )
        messages = [*_as_messages(prompt, "user"), *_as_messages(completion, "assistant")]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False)), False

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False).input_ids
        if self.max_length is not None and len(ids) > self.max_length:
            self.truncated += 1
            ids = self.tokenizer(
                text, add_special_tokens=add_special_tokens, truncation=True, max_length=self.max_length
            ).input_ids
        return ids or [self._blank_id]

    @property
    def _blank_id(self) -> int:
        tokenizer = self.tokenizer
        candidates = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        return next(token for token in candidates if token is not None)


def _own_tokenizer(
    processing_class: str | Path | PreTrainedTokenizerBase | None, source: str | None
) -> PreTrainedTokenizerBase:
    """A tokenizer that nobody else holds, since its padding and truncation are set here."""
    if processing_class is None and source is None:
        raise ValueError("A model was given without its tokenizer: give the tokenizer as processing_class.")
    if isinstance(processing_class, PreTrainedTokenizerBase):
        tokenizer = ensure_pad_token(copy.deepcopy(processing_class))
    else:
        folder = str(processing_class or source)
        adapter = Path(folder) / "adapter_config.json"
        if adapter.is_file() and not (adapter.parent / "tokenizer_config.json").is_file():
            folder = str(PeftConfig.from_pretrained(folder).base_model_name_or_path)
        tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "left"
    return tokenizer


def _load_model(source: str, device: torch.device, dtype: str | torch.dtype | None) -> torch.nn.Module:
    with loaded_whole():
        return _load_whole(source, dtype or ("auto" if device.type == "cuda" else "float32")).to(device)


def _load_whole(source: str, dtype: str | torch.dtype) -> torch.nn.Module:
    if (Path(source) / "adapter_config.json").is_file():
        return AutoPeftModelForSequenceClassification.from_pretrained(
            source, dtype=dtype, num_labels=_labels_of_adapter(Path(source))
        )
    model, info = AutoModelForSequenceClassification.from_pretrained(source, dtype=dtype, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(
            f"The files of {source!r} lack {', '.join(sorted(info['missing_keys']))}, so these weights would be "
            "random, and so would be the reward. Give a trained sequence classifier; `recipes/reward.py` makes one."
        )
    return model


def _labels_of_adapter(folder: Path) -> int:
    """Number of labels of the head that was saved with an adapter; its configuration does not tell."""
    path = folder / "adapter_model.safetensors"
    heads = PeftConfig.from_pretrained(str(folder)).modules_to_save or []
    if path.is_file():
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - no mapping, it has only this method
                parts = key.split(".")
                if parts[-1] == "weight" and set(parts) & set(heads):
                    labels = tensors.get_slice(key).get_shape()[0]
                    if parts[-2] in ("score", "classifier", "out_proj"):
                        return labels
    raise ValueError(
        f"The adapter in {folder} holds no trained head (modules_to_save: {', '.join(heads) or 'none'}), so it would "
        "judge at random. Train it with task type SEQ_CLS, as `recipes/reward.py` does, and save it again."
    )


def _default_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def _check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    embeddings = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values())
    if highest >= embeddings:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} gives ids up to {highest}, but the reward model has embeddings "
            f"for ids up to {embeddings - 1}: they do not belong together. Give the reward model's own tokenizer as "
            "processing_class, or resize the model's embeddings and train it with this one."
        )


def _read_limit(model: Any, tokenizer: PreTrainedTokenizerBase, asked: int | None, trained: int | None) -> int | None:
    """Tokens of a text to read: what was asked for, else what the model was trained on, else what it can."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if asked is not None:
        if asked < 1 or (positions is not None and asked > positions):
            raise ValueError(f"max_length is {asked}, but must be from 1 to {positions}, all that the model can read.")
        return asked
    # A tokenizer without a limit says 10**30.
    known = [limit for limit in (positions, tokenizer.model_max_length) if limit is not None and limit < 10**9]
    return trained or min(known, default=None)


def _label_index(config: Any, label: int | str | None) -> int:
    names = [config.id2label[index] for index in range(config.num_labels)]
    if label is None and len(names) > 1:
        raise ValueError(f"The model has {len(names)} labels, {', '.join(names)}: say which is the reward by label.")
    index = names.index(label) if label in names else (label or 0)
    if isinstance(index, str) or not 0 <= index < len(names):
        raise ValueError(f"The model has no label {label!r}. It has {', '.join(names)} (0 to {len(names) - 1}).")
    return index


def _as_messages(value: Text, role: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _find_file(source: str, filename: str) -> Path | None:
    if Path(source).is_dir():
        path = Path(source) / filename
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, filename))
    except EntryNotFoundError:
        return None


def _refuse_unknown(data: Mapping[str, Any], owner: type) -> None:
    known = [item.name for item in fields(owner)]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"unknown {', '.join(unknown)}; known are {', '.join(known)}")
