"""Pushing a saved model to the Hugging Face Hub: what belongs to it, and nothing else of the run's folder.

A list of names says what goes up. All else stays at home: checkpoints, optimizer states, rollouts, logs, and
`training_args.bin`, in which `Trainer` pickles the token that it pushes with.
"""

import fnmatch
import json
import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitInfo, HfApi, get_token, metadata_load, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from rlhf_recipes import filenames
from rlhf_recipes.errors import PushError

logger = logging.getLogger(__name__)

# What a push may hold, as patterns of one level each: no `*` here reaches into a folder.
WEIGHTS = (filenames.MODEL_WEIGHTS, "model-*-of-*.safetensors", "model.safetensors.index.json")
ADAPTER = (filenames.ADAPTER_CONFIG, filenames.ADAPTER_WEIGHTS, "adapter_model.bin")
TOKENIZER = (
    "tokenizer.json",
    filenames.TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "processor_config.json",
    "preprocessor_config.json",
)
CODE = ("configuration_*.py", "modeling_*.py", "tokenization_*.py")  # of models with code of their own
CRITIC = ("critic/*.safetensors", "critic/*.safetensors.index.json", "critic/config.json", "critic/*_config.json")
CARD = (filenames.README, "card/*.png")
ALLOWED = (filenames.MODEL_CONFIG, filenames.GENERATION_CONFIG, *WEIGHTS, *ADAPTER, *TOKENIZER, *CODE, *CRITIC, *CARD)

# Of a reward model besides: how its outputs become a score, what it is worth, and its adapters on their own.
OF_REWARD_MODEL = (
    filenames.REWARD_SETTINGS,
    filenames.METRICS,
    filenames.EVALUATION,
    filenames.BIAS,
    filenames.PAGE,
    "adapter/*.json",
    "adapter/*.jinja",
    "adapter/adapter_model.safetensors",
)

# A push replaces the weights that an earlier one left: adapters beside a whole model would be loaded instead of it.
REPLACED = (*WEIGHTS, *ADAPTER, *CRITIC)


def files_to_push(folder: str | Path, ignore: Sequence[str] = (), more: Sequence[str] = ()) -> list[str]:
    """The files of a folder that [`push_run`] pushes, as paths relative to it, in order.

    Args:
        folder (`str` or `Path`): The folder of a run.
        ignore (`Sequence[str]`, *optional*): Patterns of files to leave out besides, such as `"critic/*"`.
        more (`Sequence[str]`, *optional*): Patterns of files to push besides, such as `OF_REWARD_MODEL`.
    """
    root = Path(folder)
    return sorted(
        {
            file.relative_to(root).as_posix()
            for pattern in (*ALLOWED, *more)
            for file in root.glob(pattern)
            if file.is_file()
            and not any(fnmatch.fnmatchcase(file.relative_to(root).as_posix(), left_out) for left_out in ignore)
        }
    )


def push_run(
    folder: str | Path,
    repo_id: str,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str = "Push the policy",
    ignore: Sequence[str] = (),
    revision: str | None = None,
    endpoint: str | None = None,
    more: Sequence[str] = (),
) -> CommitInfo:
    """Push a saved policy, with its critic, tokenizer and card, to a model repository of the Hub.

    Pushed is what `ALLOWED` names: the policy at the root (a whole model, or adapters), `critic/` beside it, the
    tokenizer, the generation settings, `README.md` and the pictures in `card/`. Weights, critic and pictures of an
    earlier push that are no longer there are removed in the same commit; git keeps them. An absolute path to the base
    model in `adapter_config.json` is pushed as its last part alone. The local folder is only read.

    Args:
        folder (`str` or `Path`): A folder that `save_policy` or a trainer wrote.
        repo_id (`str`): `name` or `owner/name`. The repository is made if there is none.
        token (`str`, *optional*): A token that may write. Default: the one of `HF_TOKEN` or `hf auth login`.
        private (`bool`, *optional*):
            Whether a new repository is private. Default: what its owner has set. An old one stays what it is.
        commit_message (`str`, *optional*): First line of the commit.
        ignore (`Sequence[str]`, *optional*): Patterns of files to leave out besides, such as `"critic/*"`.
        revision (`str`, *optional*): The branch; by default `main`.
        endpoint (`str`, *optional*): Address of the Hub. Default: `HF_ENDPOINT`, or the public one.
        more (`Sequence[str]`, *optional*): Patterns of files to push besides, such as `OF_REWARD_MODEL`.

    Returns:
        [`~huggingface_hub.CommitInfo`]: its `commit_url` says where the files are.

    Raises:
        `FileNotFoundError`: if the folder holds no policy.
        [`PushError`]: if there is no token, the repository cannot be written, or the Hub cannot be reached.
    """
    root = Path(folder)
    names = files_to_push(root, ignore, more)
    _check_policy(root, names)
    token = token or get_token()
    if token is None:
        raise PushError(
            f"There is no token to push {repo_id!r} with. Run `hf auth login`, or set HF_TOKEN, with a token that may "
            f"write (https://huggingface.co/settings/tokens). {_stays(root)}"
        )
    api = HfApi(endpoint=endpoint, token=token)
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        commit = _upload(api, root, names, [*REPLACED, *more], repo.repo_id, commit_message, revision)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # All of them come from the client: networks, answers of the Hub, names that it refuses.
        raise PushError(f"{_reason(error, repo_id, api.endpoint)} {_stays(root)}") from error
    logger.info("Pushed %d files: %s", len(names), commit.commit_url)
    return commit


def license_of(base: str) -> str | None:
    """The license that the card of a base model names, where that card is on this machine; nothing is fetched."""
    card: Any = Path(base) / filenames.README
    try:
        if not card.is_file():
            card = None if _is_local(base) else try_to_load_from_cache(base, filenames.README)
        named = (metadata_load(card) or {}).get("license") if isinstance(card, str | Path) else None
    except (ValueError, yaml.YAMLError):  # no name of a repository, or a card that is no card
        return None
    return named if isinstance(named, str) else None


def _upload(
    api: HfApi,
    root: Path,
    names: Sequence[str],
    replaced: Sequence[str],
    repo_id: str,
    message: str,
    revision: str | None,
) -> CommitInfo:
    # Without a new card the old one stays, and its pictures with it.
    replaced = [*replaced, *(CARD if filenames.README in names else ())]
    with tempfile.TemporaryDirectory(prefix="push-") as stage:
        _stage(root, names, Path(stage))
        return api.upload_folder(
            repo_id=repo_id, folder_path=stage, commit_message=message, revision=revision, delete_patterns=replaced
        )


def _check_policy(root: Path, names: Sequence[str]) -> None:
    adapter = filenames.ADAPTER_CONFIG in names
    whole = any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in WEIGHTS)
    if not adapter and not whole:
        raise FileNotFoundError(
            f"{str(root)!r} holds no model: neither {filenames.ADAPTER_CONFIG} nor model*.safetensors. Name the "
            "folder in which a trainer or save_policy saved one."
        )
    if adapter and whole:
        raise FileExistsError(
            f"{str(root)!r} holds adapters and a whole model, and whoever loads it would get only the adapters. Keep "
            "each in a folder of its own and push one, or leave one out with ignore, such as ignore=['adapter_*']."
        )


def _stage(root: Path, names: Sequence[str], stage: Path) -> None:
    """Link the files into an empty folder, so that what is there is what is pushed, whatever comes into the run's."""
    for name in names:
        target = stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if Path(name).name == filenames.ADAPTER_CONFIG:  # of the policy, and of a critic with adapters of its own
            target.write_text(
                _without_local_base(root / name, warn=name == filenames.ADAPTER_CONFIG), encoding="utf-8"
            )
        else:
            target.symlink_to((root / name).resolve())


def _without_local_base(file: Path, warn: bool) -> str:
    text = file.read_text(encoding="utf-8")
    config = json.loads(text)
    base = str(config.get("base_model_name_or_path") or "")
    if not _is_local(base):
        return text
    if warn:
        logger.warning(
            "The adapters' base model is the local folder %r, which others do not have: they need to be told which "
            "model it is. Push a merged model (save_policy(..., merge=True)) or train from a model id of the Hub.",
            base,
        )
    if not re.match(r"[~/\\]|[A-Za-z]:[/\\]", base):
        return text
    return json.dumps(config | {"base_model_name_or_path": re.split(r"[/\\]", base.rstrip("/\\"))[-1]}, indent=2)


def _is_local(name: str) -> bool:
    return bool(re.match(r"[~/\\.]|[A-Za-z]:[/\\]", name)) or name.count("/") > 1 or Path(name).is_dir()


def _stays(root: Path) -> str:
    return f"Nothing is lost: the files are in {str(root)!r}, and rlhf_recipes.hub.push_run pushes them from there."


def _reason(error: Exception, repo_id: str, endpoint: str) -> str:
    """What went wrong and what to do, in two sentences. `error` may be the end of a chain."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    answer = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, so {repo_id!r} was not pushed. Unset it to push."
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} is no name of a repository ({error}). Give `name` or `owner/name`."
    if answer is not None and answer.response.status_code != 400:  # that one says best itself what it minds
        return _refusal(answer, repo_id, endpoint)
    if answer is None and any(isinstance(cause, HTTPError | ConnectionError | TimeoutError) for cause in causes):
        return (
            f"{endpoint} cannot be reached, so {repo_id!r} was not pushed ({causes[-1] or type(error).__name__}). "
            "Look at the network, the proxy settings and HF_ENDPOINT."
        )
    return f"{repo_id!r} was not pushed: {' '.join(str(error).split()).rstrip('.')}."


def _refusal(error: HfHubHTTPError, repo_id: str, endpoint: str) -> str:
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{repo_id!r} has no branch of the name that was given as revision (hub_revision). Make it first "
            "(HfApi.create_branch), or push to main."
        )
    said = f" ({error.server_message})" if error.server_message else ""
    if status == 401:
        return (
            f"{endpoint} does not accept the token{said}, so {repo_id!r} was not pushed. Make a new one that may "
            "write (https://huggingface.co/settings/tokens) and give it with HF_TOKEN or `hf auth login`."
        )
    if status in (403, 404):
        return (
            f"The token may not write to {repo_id!r}{said}. Look at the owner's name, and give a token that may write "
            "there (hub_model_id names the repository, HF_TOKEN the token)."
        )
    return f"{endpoint} refused the push to {repo_id!r} with code {status}{said}. Try again later, or see its message."
