"""From a name or a folder to a tokenizer and a model that are safe to train with.

Three things go wrong in silence when models are loaded by hand, and are settled here once:

1. A pad token that is also the end-of-sequence token: the end is masked out, so it is never learned and never scored.
2. A precision that the machine does not have (bfloat16 on an old CPU) or that nobody chose.
3. Dropout left on, so that a policy and its reference disagree before a single update.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.utils import logging as transformers_logging
from trl import ModelConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

from rlhf_recipes import filenames
from rlhf_recipes.modeling.decoders import check_decoder_name
from rlhf_recipes.modeling.tokenizers.padding import (
    embedding_rows,
    ensure_pad_token,
    fit_model,
    leave_open,
    name_end,
    require_end,
    saved_ends,
)
from rlhf_recipes.starting.options import option
from rlhf_recipes.starting.precision import check_quantization, steady_8bit

logger = logging.getLogger(__name__)

# Names (patterns) of what stands between a backbone and a score. It is often new and then trained whole, which 4 bit
# cannot be. By itself transformers keeps out the last weight alone, and puts the head of every encoder in 4 bit.
NOT_IN_4_BIT = ("score", "classifier", "pre_classifier", "classification_head", "head", "lm_head", r".*\bpooler")


@dataclass
class ModelArguments(ModelConfig):
    """TRL's [`~trl.ModelConfig`] and one more choice, which layers get adapters."""

    help_title = "Model"

    lora_num_layers: int | None = option(
        None, "Adapt only the last N layers; those below need no backward pass. Default: all layers."
    )


def check_model_path(name_or_path: str) -> str:
    """Return the name; raise `FileNotFoundError` where it can only be a local path and there is nothing there."""
    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    path = Path(name_or_path).expanduser()
    if path.exists():
        if not (path / filenames.MODEL_CONFIG).is_file() and not (path / filenames.ADAPTER_CONFIG).is_file():
            raise FileNotFoundError(
                f"{name_or_path!r} exists but holds neither config.json nor adapter_config.json, so it is no model "
                "folder. Name the folder in which a model was saved, or a model id of the Hugging Face Hub."
            )
        return str(path)
    if looks_local or name_or_path.split("/")[0] in ("starter", "runs"):
        raise FileNotFoundError(
            f"No model at {name_or_path!r} (looked in {path.absolute()}). Give a folder with a saved model or a model "
            "id of the Hugging Face Hub. The folders under starter/ are made by `python -m rlhf_recipes.data.starter`."
        )
    return name_or_path


def is_adapter(folder: str | Path) -> bool:
    """Whether adapters lie in a folder, in the form of peft."""
    return (Path(folder) / filenames.ADAPTER_CONFIG).is_file()


def find_file(source: str, filename: str) -> Path | None:
    """A file of a model's folder or of a model id of the Hub; `None` where it has none of that name."""
    if Path(source).is_dir():
        path = Path(source) / filename
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, filename))
    except EntryNotFoundError:
        return None


def load_tokenizer(name_or_path: str, padding_side: str = "right", **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer whose pad token is not its end-of-sequence token (see [`ensure_pad_token`])."""
    name = check_model_path(_required(name_or_path))
    from transformers import AutoTokenizer

    return ensure_pad_token(AutoTokenizer.from_pretrained(name, padding_side=padding_side, **kwargs))


def load_policy_tokenizer(
    args: ModelArguments, padding_side: str = "right", must_end: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model that writes.

    Where it names no end-of-sequence token, the one of the model's configuration is taken. One that closes each text
    is kept from it, because a prompt is to be continued. Padding is none of the tokens at which the model stops.

    Raises:
        `ValueError`: with `must_end`, if neither tokenizer nor model names an end-of-sequence token.
    """
    name = check_model_path(_required(args.model_name_or_path))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, padding_side=padding_side, revision=args.model_revision)
    ends = saved_ends(name, revision=args.model_revision)
    name_end(tokenizer, ends)
    if must_end:
        require_end(tokenizer)
    leave_open(tokenizer)
    return ensure_pad_token(tokenizer, ends)


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout probability to zero: a policy must give the same log-probabilities each time it is asked."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        # Many attentions keep theirs as a plain number, which no Dropout module shows (Llama: attention_dropout).
        for name, value in vars(module).items():
            if ("dropout" in name or name == "layerdrop") and isinstance(value, float):
                setattr(module, name, 0.0)


def keep_gradients_of_4bit(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on a CPU, and from reading 8-bit weights in two ways there.

    On CPUs with AVX512-BF16 its layers, once used in evaluation mode, turn their weights into a layout whose product
    has no gradient, and stay so: a policy that has sampled a rollout would then learn nothing, without an error (seen
    with bitsandbytes 0.50.2; torch warns of `gemv_4bit`).

    Raises:
        `ValueError`: if a layer of the model has been repacked already.
    """
    steady_8bit(model)
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            state = getattr(getattr(module, "weight", None), "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                raise ValueError(
                    f"The 4-bit layer {name} was used in evaluation mode on this CPU, and bitsandbytes has repacked "
                    "it so that it gives no gradient. Load the model anew and hand it over before it is used."
                )
            module.support_avx512bf16_for_cpu = False


def load_policy(
    args: ModelArguments, is_trainable: bool = True, tokenizer: PreTrainedTokenizerBase | None = None
) -> "PreTrainedModel | PeftModel":
    """Load a causal language model, quantized and with adapters where asked for.

    Args:
        args ([`ModelArguments`]):
            `model_name_or_path` is a model, or a folder with saved LoRA adapters, which are loaded on their base.
        is_trainable (`bool`):
            Whether to prepare it for training: new adapters where `use_peft` says so, and saved ones unfrozen.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The model's, as [`load_tokenizer`] gives it: the model learns which token pads, and gets room for it.

    Raises:
        `ValueError`: if it is an encoder-decoder, or no language model at all.
    """
    name = check_model_path(_required(args.model_name_or_path))
    from peft import AutoPeftModelForCausalLM, PeftConfig
    from transformers import AutoModelForCausalLM

    kwargs = _loading_arguments(args, is_trainable)
    if is_adapter(name):
        check_decoder_name(str(PeftConfig.from_pretrained(name).base_model_name_or_path))
        model = AutoPeftModelForCausalLM.from_pretrained(name, is_trainable=is_trainable, **kwargs)
    else:
        check_decoder_name(name, revision=args.model_revision)
        model = AutoModelForCausalLM.from_pretrained(name, revision=args.model_revision, **kwargs)
    if tokenizer is not None:
        fit_model(model, tokenizer)
    if args.use_peft and is_trainable and not is_adapter(name):
        model = add_adapters(model, args)
    disable_dropout(model)
    keep_gradients_of_4bit(model)
    return model


def fit_reference(trainer: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """[`fit_model`] for the reference that a trainer of TRL has loaded by the policy's name.

    Raises:
        `ValueError`: if it lacks the pad token, and DeepSpeed or FSDP has divided it.
    """
    reference = getattr(trainer, "ref_model", None)
    if reference is None:
        return
    reference = trainer.accelerator.unwrap_model(reference)
    if embedding_rows(reference) <= (tokenizer.pad_token_id or 0) and (
        trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    ):
        raise ValueError(
            f"{tokenizer.name_or_path!r} has no embedding for a pad token, and the reference is divided among "
            "processes already. Save a model that has one first : `args = "
            "ModelArguments(name); tokenizer = load_policy_tokenizer(args); model = load_policy(args, "
            "tokenizer=tokenizer)`, then `save_pretrained` of both into one folder, and name that folder."
        )
    fit_model(reference, tokenizer)


def load_reward_model(
    args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    is_trainable: bool = True,
    labels: Sequence[str] = ("reward",),
    token_level: bool = False,
    adapter_seed: int | None = None,
) -> "PreTrainedModel | PeftModel":
    """Load an encoder or a decoder with a head; a new head where the model has none, or one of another size.

    The pad token is that of the tokenizer, because a decoder's head reads the last token that is not padding.

    Args:
        args ([`ModelArguments`]): Which model, and how.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's.
        is_trainable (`bool`): Whether to put adapters on it, where `use_peft` asks for them.
        labels (`Sequence[str]`): Names of the outputs; one for a scalar score.
        token_level (`bool`): Whether the head reads each token, for a process reward model.
        adapter_seed (`int`, *optional*): Of the adapters, where a new head is not to depend on it.
    """
    name = check_model_path(_required(args.model_name_or_path))
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

    config = AutoConfig.from_pretrained(name, num_labels=len(labels), revision=args.model_revision)
    if tuple(labels) != ("reward",) or token_level:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    auto = AutoModelForTokenClassification if token_level else AutoModelForSequenceClassification
    with _quiet_loading():
        model, report = auto.from_pretrained(
            name,
            config=config,
            revision=args.model_revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a head of another size is replaced, and named below
            **_loading_arguments(args, is_trainable),
        )
    new = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if new:
        logger.info("New weights, drawn at random and to be trained: %s.", ", ".join(new))
    fit_model(model, tokenizer)
    if args.use_peft and is_trainable:
        task = "TOKEN_CLS" if token_level else "SEQ_CLS"
        # PEFT itself trains and saves score and classifier, and would leave a pooler that is new as it was drawn.
        whole = [*(args.lora_modules_to_save or []), *_modules_of(new)]
        if adapter_seed is not None:
            set_seed(adapter_seed)
        model = add_adapters(model, dataclasses.replace(args, lora_task_type=task, lora_modules_to_save=whole))
    disable_dropout(model)
    keep_gradients_of_4bit(model)
    return model


def _modules_of(new: Sequence[str]) -> list[str]:
    """The modules that hold new weights, but for those that PEFT knows as heads and whatever is inside of them."""
    modules = sorted({name.rpartition(".")[0] for name in new})
    return [name for name in modules if name.split(".")[0] not in ("score", "classifier")]


def readable_tokens(model: torch.nn.Module) -> int | None:
    """How many tokens a text may have at most; `None` where the model sets no limit.

    RoBERTa and its relatives count positions from behind that of the pad token: of 514 they can use 512.
    """
    config: Any = model.config
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    unused = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return None if positions is None else positions - max(unused, default=0)


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Leave out transformers' table of new and unused weights: for a new head it is no news, yet reads as an error."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def add_adapters(model: "PreTrainedModel", args: ModelArguments) -> "PeftModel":
    """Wrap the model with fresh LoRA adapters as `args` describes them (arXiv 2106.09685).

    Without `lora_target_modules` they go where PEFT puts them by default, and on all linear layers of a model that it
    has no default for.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN_TARGETS
    from trl import get_peft_config

    if args.lora_target_modules is None and model.config.model_type not in KNOWN_TARGETS:
        args = dataclasses.replace(args, lora_target_modules=["all-linear"])
    config = get_peft_config(args)
    assert isinstance(config, LoraConfig), "adapters without use_peft"
    if config.task_type == "TOKEN_CLS" and config.target_modules == "all-linear":
        config.exclude_modules = ["score", "classifier"]  # PEFT itself leaves them out for SEQ_CLS alone
    if args.lora_num_layers is not None:
        layers = model.config.get_text_config().num_hidden_layers
        if not 1 <= args.lora_num_layers <= layers:
            raise ValueError(
                f"lora_num_layers is {args.lora_num_layers}, but {args.model_name_or_path} has {layers} layers: "
                f"give a number from 1 to {layers}, or leave it out to adapt them all."
            )
        config.layers_to_transform = list(range(layers - args.lora_num_layers, layers))
    adapted = get_peft_model(model, config)
    name_base(adapted, args)
    return adapted


def name_base(model: Any, args: ModelArguments) -> None:
    """Let fresh adapters name their base so that they load from any folder, and of the Hub in the same revision."""
    if not args.model_name_or_path:  # a model that was made in memory
        return
    name = args.model_name_or_path
    for config in model.peft_config.values():
        if Path(name).is_dir():
            config.base_model_name_or_path = str(Path(name).resolve())
        else:
            config.base_model_name_or_path, config.revision = name, args.model_revision


def _required(name: str | None) -> str:
    if not name:
        raise ValueError("No model was named: give --model_name_or_path, a folder or a model id of the Hub.")
    return name


def _loading_arguments(args: ModelArguments, is_trainable: bool) -> dict[str, Any]:
    from trl import get_quantization_config

    check_quantization(args, is_trainable)
    kwargs: dict[str, Any] = {"dtype": args.dtype}
    if args.attn_implementation is not None:
        kwargs["attn_implementation"] = args.attn_implementation
    quantization = get_quantization_config(args)
    if quantization is not None:
        # Outliers set apart (arXiv 2208.07339) would make what is said of a token depend on all others in the batch.
        quantization.llm_int8_threshold = 0.0
        quantization.llm_int8_skip_modules = list(NOT_IN_4_BIT)  # its name says 8 bit, and it is that of 4 bit too
        kwargs["quantization_config"] = quantization
        kwargs["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    return kwargs


def freeze_lower_layers(model: "PreTrainedModel", count: int) -> None:
    """Freeze the embeddings and the lowest `count` layers; nothing if `count` is 0.

    Raises:
        `ValueError`: if the model has fewer layers, has adapters (which freeze the base anyway), or has no list of
            layers to be found.
    """
    if count == 0:
        return
    from peft import PeftModel

    if isinstance(model, PeftModel):
        raise ValueError(
            f"num_frozen_layers is {count}, but with adapters the whole base is frozen already. To adapt the upper "
            "layers alone, give lora_num_layers."
        )
    total = model.config.get_text_config().num_hidden_layers
    if not 0 < count <= total:
        raise ValueError(f"num_frozen_layers is {count}, but the model has {total} layers: give 0 to {total}.")
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == total
    ]
    if not stacks:
        raise ValueError(f"{type(model).__name__} has no list of {total} layers, so none can be frozen by its number.")
    frozen = tuple(f"{stacks[0]}.{layer}." for layer in range(count))
    # Parameters come in the order in which a model was put together: those before the first layer are embeddings.
    below = True
    for name, parameter in model.named_parameters():
        below = below and not name.startswith(f"{stacks[0]}.")
        if below or name.startswith(frozen):
            parameter.requires_grad_(False)
