"""Reward models that other projects trained: how their folders differ from what transformers loads by itself.

| trained by | head | where it lies | what a plain text ended with |
|---|---|---|---|
| TRL's `RewardTrainer` | `score` | with the weights | the end-of-sequence token, from 0.24 on |
| TRL's `AutoModelForCausalLMWithValueHead` | `v_head.summary.*` | with the weights | what its script wrote |
| LLaMA-Factory | `v_head.summary.*` | `value_head.safetensors` or `.bin` | its templates write all text |
| OpenRLHF | `value_head.weight`, later `score.weight` | with the weights | a space and the end-of-sequence token |

Their forms were read from their sources: `RewardTrainer._prepare_dataset` and `modeling_value_head.py` of TRL,
`fix_valuehead_checkpoint` of LLaMA-Factory, `get_llm_for_sequence_regression` and `RewardDataset` of OpenRLHF.
"""

import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rlhf_recipes import filenames
from rlhf_recipes.modeling.loading import find_file

VALUE_HEADS = ("value_head.safetensors", "value_head.bin")
WEIGHTS = (
    "model.safetensors.index.json",
    filenames.MODEL_WEIGHTS,
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)

# The names of a head, and who writes it. A `score` is foreign in a model that is no classifier by its configuration,
# which then does not say that there is one output.
HEADS = {"v_head.summary": "TRL", "value_head": "OpenRLHF", "score": "OpenRLHF"}
TRL_APPENDS_EOS = (0, 24)


@dataclass(frozen=True)
class ForeignHead:
    """A head that transformers would draw at random, because it has another name or lies in another file.

    Args:
        project (`str`): Who writes it so.
        weight (`Tensor` of shape `(1, H)`), bias (`Tensor` of shape `(1,)`, *optional*): What it is.
    """

    project: str
    weight: Tensor
    bias: Tensor | None


def foreign_head(source: str) -> ForeignHead | None:
    """The head of a reward model that LLaMA-Factory, OpenRLHF or an old TRL saved; `None` of any other model.

    Args:
        source (`str`): A folder, that of an adapter too, or a model id of the Hub.

    Raises:
        `ValueError`: if there is a file for a head, and no head in it.
    """
    for name in VALUE_HEADS:
        if (path := find_file(source, name)) is not None:
            return _summary(dict(_tensors(path, ("v_head.summary.",))), path)
    if not _may_be_foreign(source):
        return None
    for name in WEIGHTS:
        if (path := find_file(source, name)) is not None:
            return _among_weights(source, path)
    return None


def _may_be_foreign(source: str) -> bool:
    """Only the files of a model that is no classifier by its configuration, or of an adapter, are looked through."""
    path = find_file(source, filenames.MODEL_CONFIG)
    if path is None:
        return find_file(source, filenames.ADAPTER_CONFIG) is not None
    names = json.loads(path.read_text(encoding="utf-8")).get("architectures") or [""]
    return not any(name.endswith(("ForSequenceClassification", "ForTokenClassification")) for name in names)


def _among_weights(source: str, path: Path) -> ForeignHead | None:
    names = _names(path)
    for head, project in HEADS.items():
        if f"{head}.weight" not in names:
            continue
        files = {names[name] for name in names if name.rpartition(".")[0] == head}
        found: dict[str, Tensor] = {}
        for name in files:
            place = path if name is None else find_file(source, name)
            found |= dict(_tensors(place, (f"{head}.",))) if place is not None else {}
        weight = found.get(f"{head}.weight")
        if weight is None or (head == "score" and len(weight) != 1):  # of several classes: transformers' own
            return None
        return ForeignHead(project, weight, found.get(f"{head}.bias"))
    return None


def _names(path: Path) -> dict[str, str | None]:
    """The names of all weights, and the file of each where there are several."""
    if path.name.endswith(".index.json"):
        return dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys())
    return dict.fromkeys(torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def _tensors(path: Path, prefixes: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """The weights of one file whose names begin so."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as tensors:
            yield from ((name, tensors.get_tensor(name)) for name in tensors.keys() if name.startswith(prefixes))  # noqa: SIM118 - no mapping
        return
    state = torch.load(path, map_location="cpu", weights_only=True)
    yield from ((name, tensor) for name, tensor in state.items() if name.startswith(prefixes))


def _summary(found: dict[str, Tensor], path: Path) -> ForeignHead:
    weight = found.get("v_head.summary.weight")
    if weight is None:
        raise ValueError(
            f"{path} should hold the head of a reward model of LLaMA-Factory, v_head.summary.weight, but does not. "
            "Export the model again."
        )
    return ForeignHead("LLaMA-Factory", weight, found.get("v_head.summary.bias"))


def load_with_head(source: str, head: ForeignHead, kwargs: dict[str, Any]) -> Any:
    """The model of a folder, or an adapter on its base, as a classifier with that head.

    Raises:
        `ValueError`: if it has weights besides the head that were not in its files, or a head of another size.
    """
    from peft import PeftConfig, PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification

    adapter = PeftConfig.from_pretrained(source) if find_file(source, filenames.ADAPTER_CONFIG) is not None else None
    base = source if adapter is None else str(adapter.base_model_name_or_path)
    revision = None if adapter is None else adapter.revision
    config = AutoConfig.from_pretrained(base, num_labels=1, revision=revision)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        base,
        config=config,
        revision=revision,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # of the head alone, which is put in below
        key_mapping={r"^pretrained_model\.": ""},  # before the names of what ZeRO-3 put together for TRL
        **kwargs,
    )
    mismatched = [name for name, *_ in info["mismatched_keys"]]
    missing = sorted(name for name in (*info["missing_keys"], *mismatched) if not name.startswith("score."))
    if missing:
        raise ValueError(
            f"The files of {base!r} lack {len(missing)} weights besides the head ({missing[0]}, ...), so these would "
            "be random, and so would be the reward. Give the folder that the project exported, weights and head."
        )
    if adapter is not None:
        adapter.task_type = None  # it was that of a language model, whose wrapper wants one inside
        model = PeftModel.from_pretrained(model, source, config=adapter)
    _put(model.get_base_model() if adapter is not None else model, head, source)
    return model


def _put(model: Any, head: ForeignHead, source: str) -> None:
    old = getattr(model, "score", None)
    if not isinstance(old, nn.Linear) or old.weight.shape != head.weight.shape:
        raise ValueError(
            f"{source!r} has a head of {head.project} with weights of shape {tuple(head.weight.shape)}, which does "
            f"not fit {type(model).__name__}. It can be read for decoders with one output."
        )
    new = nn.Linear(old.in_features, 1, bias=head.bias is not None, device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(head.weight)
        if head.bias is not None:
            new.bias.copy_(head.bias)
    model.score = new


def foreign_scale(source: str) -> tuple[float, float] | None:
    """Mean and standard deviation of the scores, if OpenRLHF was told to normalize them (`normalize_reward`)."""
    path = find_file(source, filenames.MODEL_CONFIG)
    config = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    if config.get("normalize_reward") is not True or "mean" not in config or "std" not in config:
        return None
    return float(config["mean"]), float(config["std"])


def trl_appended_eos(source: str) -> bool:
    """Whether TRL's `RewardTrainer` trained a model, in a version that ends each plain text with EOS.

    Its arguments lie beside the model, pickled: the names in them are read, and nothing of it is run. Else the model
    card tells, which stands in the output folder alone.
    """
    arguments = find_file(source, "training_args.bin")
    if arguments is not None and zipfile.is_zipfile(arguments):
        words = _pickled_words(arguments)
        # The option came together with the end-of-sequence token.
        return {"trl.trainer.reward_config", "RewardConfig", "eos_token"} <= words
    card = find_file(source, filenames.README)
    text = "" if card is None else card.read_text(encoding="utf-8", errors="replace")
    front = text.split("\n---", 1)[0]
    if not re.search(r"^\s*- reward-trainer\s*$", front, re.MULTILINE):
        return False
    version = re.search(r"^- TRL: (\d+)\.(\d+)", text, re.MULTILINE)
    return version is None or tuple(map(int, version.groups())) >= TRL_APPENDS_EOS


def _pickled_words(path: Path) -> set[str]:
    """All texts in the pickle of a file that `torch.save` wrote."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        pickled = archive.read(names[0]) if names else b"."
    words: set[str] = set()
    for _, argument, _ in pickletools.genops(pickled):
        if isinstance(argument, str):
            words |= {argument, *argument.split(" ")}  # the module and the class are one text, with a space between
    return words
