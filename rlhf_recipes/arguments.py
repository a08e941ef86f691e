"""From a YAML file and a command line to the dataclasses of a recipe: one YAML is one run, and typed flags win.

Reading, the help and what is written back stand in one file, because all three rest on the types of the same fields.

A preset holds a part of a run: of several `--config` files each wins over those before it.

The file is turned into the flags that a user could have typed, so that there is one set of conversions and one set of
errors. Its scalars are handed on as they are written: `learning_rate: 1e-5` and `eval_strategy: no` mean what they
say, although PyYAML would read a string and `False`. Three things look unlike flags:

- `max_length: null` sets an option to `None` (`--max_length null`). Leave a key out to keep its default.
- `reward_funcs: [{func: my_rewards.py:brevity, weight: 0.5}]`: a mapping stands for the JSON one would have typed.
- `env: {WANDB_PROJECT: ppo}` sets environment variables, as TRL's parser does.

Relative paths in a file are relative to the directory in which the command is run, like those on the command line;
rewards are looked for beside the file as well.
"""

import argparse
import dataclasses
import difflib
import json
import logging
import os
import re
import sys
import types
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from rlhf_recipes.starting.launch import LaunchArguments, check_launch, tell_launcher, watch_deepspeed
from rlhf_recipes.starting.precision import check_precision

logger = logging.getLogger(__name__)

# Inherited options that a reader of --help should see at once; the rest is behind --help_all.
# fmt: off
OFTEN_USED = [
    "model_name_or_path", "model_revision", "dtype", "load_in_4bit", "use_peft", "lora_r", "lora_alpha",
    "lora_target_modules", "output_dir", "resume_from_checkpoint", "learning_rate", "lr_scheduler_type",
    "warmup_steps", "weight_decay", "max_grad_norm", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "max_steps", "bf16", "use_cpu", "seed", "logging_steps",
    "eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit", "report_to", "run_name",
    "push_to_hub", "hub_model_id", "max_length", "center_rewards_coefficient", "dataset_text_field", "loss_type",
    "beta", "num_generations", "steps_per_generation", "num_iterations", "max_completion_length", "temperature",
]

# fmt: on

RESERVED = ("config", "env", "help", "help_all")
NEAR = 0.93  # from this similarity on a key of a recipe's file is a misspelt one

# Options whose value is a path or an id of the Hub. Those under starter/ and runs/ are known as paths by their names.
NAMED_HERE_OR_ON_HUB = ("dataset_name", "name_or_path", "reward_funcs")
LIKE_A_HUB_ID = re.compile(r"(?!starter/|runs/)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SECRETS = re.compile(r"(token|hf_token|hub_token|push_to_hub_token|.*(api_?key|password|secret))", re.IGNORECASE)


class UsageError(ValueError):
    """A mistake of the user's, to be shown below the usage line."""


def text_or_mapping(value: str) -> str | dict[str, Any]:
    """Convert one value of an option that takes a name or a mapping, such as `--reward_funcs`.

    Fields annotated with both `str` and `dict` are converted by it, lists of them element by element.

    Args:
        value (`str`): A JSON object if it starts with `{`, otherwise a name.

    Raises:
        `argparse.ArgumentTypeError`: if it starts with `{` and is not a JSON object.

    Example:
        >>> text_or_mapping("starter/rm"), text_or_mapping('{"func": "my_rewards.py:brevity", "weight": 0.5}')
        ('starter/rm', {'func': 'my_rewards.py:brevity', 'weight': 0.5})
    """
    return _json_mapping(value) if value.lstrip().startswith("{") else value


def _json_mapping(value: str) -> dict[str, Any]:
    try:
        mapping = json.loads(value)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not valid JSON ({error}): {value!r}") from None
    if not isinstance(mapping, dict):
        raise argparse.ArgumentTypeError(f'expected a JSON object such as {{"key": 1}}, got {value!r}')
    return mapping


class RecipeParser(HfArgumentParser):
    """Parse `--config file.yaml` and typed flags into dataclasses, and help whoever mistyped.

    Args:
        dataclass_types (`Iterable[type]`):
            The dataclasses to fill, in the order in which [`~RecipeParser.parse`] returns them. A class attribute
            `help_title` names the group of a class in `--help`; without it the first line of the docstring does.
        description (`str`, *optional*):
            Text that opens the help, shown as it is: a recipe passes its docstring.
        recipe_keys (`Mapping[str, str]`, *optional*):
            For a command whose `--config` may be the file of any recipe: the keys that it reads there, and the options
            that they are about. What the file says is kept apart, in the attribute `recipe`.
        takes_any_recipe (`bool`, *optional*, defaults to `False`):
            For a command that reads a part of the file of any recipe, as if it were its own: keys that no option has
            are for the recipe, and left out.
        kwargs:
            Passed to [`~transformers.HfArgumentParser`].

    Example:
        >>> parser = RecipeParser((DataArguments, PPOConfig, ModelArguments), description=__doc__)
        >>> data_args, training_args, model_args = parser.parse(["--config", "recipes/configs/quickstart_ppo.yaml"])
    """

    def __init__(
        self,
        dataclass_types: type | Iterable[type],
        description: str | None = None,
        recipe_keys: Mapping[str, str] | None = None,
        takes_any_recipe: bool = False,
        **kwargs: Any,
    ) -> None:
        self._recipe_keys = recipe_keys
        self._takes_any_recipe = takes_any_recipe
        self.recipe: dict[str, Any] = {}
        classes = [dataclass_types] if isinstance(dataclass_types, type) else list(dataclass_types)
        trains = "gradient_accumulation_steps"
        training = [cls for cls in classes if trains in _option_hints(cls) and not takes_any_recipe]
        self._training = classes.index(training[0]) if training else None
        classes += [LaunchArguments] if training else []
        self._hints: dict[str, Any] = {}
        self._shown: dict[str, dict[str, Any]] = {}
        for cls in classes:
            for name, hint in _option_hints(cls).items():
                if name in RESERVED or name in self._hints:
                    other = "the parser itself" if name in RESERVED else "another dataclass"
                    raise ValueError(f"{cls.__name__} has a field {name!r}, which {other} has too. Rename the field.")
                self._hints[name] = hint
        settings: dict[str, Any] = {
            "usage": "%(prog)s [--config FILE.yaml] [--OPTION VALUE ...]     (--help lists the options)",
            "add_help": False,  # replaced below, because ours has two lengths
            "allow_abbrev": False,  # or `--num_ppo` would be taken for `--num_ppo_epochs` until a second one appears
            "exit_on_error": False,  # `parse` adds where the mistake stood
        }
        super().__init__(classes, description=description, **(settings | kwargs))  # type: ignore[arg-type]
        self.add_argument("-h", "--help", action=_HelpAction, const=False)
        self.add_argument("--help_all", "--help-all", action=_HelpAction, const=True)
        self.add_argument("--config", action="append")

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        """Add one option. Defaults stay with the dataclasses: only what was given reaches the namespace."""
        hint = self._hints.get(names[0].removeprefix("--"))
        if "help" in kwargs:
            kwargs["help"] = _plain_percent(kwargs["help"]).replace("%", "%%")
        if hint is None:  # `--no_x`, the twin of a switch, or an option of the parser itself
            return super().add_argument(*names, **(kwargs | {"default": argparse.SUPPRESS}))
        members = _members(hint)
        kwargs["type"] = _converter(members, kwargs.get("type", str))
        if bool in members and "nargs" not in kwargs:  # `bool | None`: let the bare flag mean yes here too
            kwargs |= {"nargs": "?", "const": True}
        self._shown[names[0].removeprefix("--")] = dict(kwargs)
        if type(None) in _top_members(hint):
            is_text = bool(members & {str, list, dict}) or "choices" in kwargs
            kwargs["type"] = _or_none(kwargs["type"], ("null",) if is_text else ("none", "null"))
            kwargs |= {"choices": [*kwargs["choices"], None]} if kwargs.get("choices") else {}
        return super().add_argument(*names, **(kwargs | {"default": argparse.SUPPRESS, "required": False}))

    def parse(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Parse a command line and the YAML file it names.

        A mistake of the user's, also one found by the `__post_init__` of a dataclass, ends the process with code 2 and
        one message on stderr: a key or flag that does not exist, an ill-typed value, a file that cannot be read.

        Args:
            argv (`Sequence[str]`, *optional*): The arguments, `sys.argv[1:]` where it is `None`.

        Returns:
            `tuple`: One instance per dataclass, in the order given to the constructor. Where one of them has the
            settings of a training, [`~rlhf_recipes.starting.launch.check_launch`] has logged the size of the batch.

        Raises:
            `ImportError`, `ValueError`: where a model cannot be trained in the precision that was asked for; see
                [`~rlhf_recipes.starting.precision.check_precision`].
        """
        try:
            typed, strangers = self.parse_known_args(_shield_negatives(sys.argv[1:] if argv is None else argv))
            if strangers:
                self._refuse(strangers[0])
            given = vars(typed)
            in_files: dict[str, Any] = {}
            for path in given.pop("config", []):
                in_files |= self._read_config(path)
            if self._recipe_keys is not None:
                self.recipe, in_files = in_files, {}
            given = _without_null_lists(in_files | given)
            if self._training is not None:
                watch_deepspeed(given)
            built = self._build(given)
            if self._training is not None:
                *built, launch = built
                check_launch(built[self._training], launch.expect_processes)
        except (argparse.ArgumentError, ValueError) as error:
            self.error(str(error))
        if self._training is not None:
            for settings in (one for one in built if hasattr(one, "load_in_4bit")):
                check_precision(settings, built[self._training])
        return tuple(built)

    def error(self, message: str) -> NoReturn:
        """End the process with the usage and the message, which a launcher is told too."""
        tell_launcher(f"error: {message}")
        super().error(message)

    def _build(self, given: dict[str, Any]) -> list[Any]:
        missing = []
        for name, shown in self._shown.items():
            if shown.get("required") and name not in given:
                missing.append(f"--{name}")
            elif _has_no_default(self.dataclass_types, name) and name not in given:
                given[name] = shown["default"]  # HfArgumentParser's rule: a `bool` without a default is False
        if missing:
            raise UsageError(f"missing: {', '.join(missing)}. Give it as a flag or in the file of --config.")
        built = []
        for cls in self.dataclass_types:
            try:
                built.append(cls(**{name: given[name] for name in _option_hints(cls) if name in given}))
            except (ValueError, TypeError) as error:
                logger.debug("%s refused its arguments.", cls.__name__, exc_info=True)
                raise UsageError(str(error)) from error
        for args in built:
            if getattr(args, "hub_token", None):
                # Trainers pickle their arguments into training_args.bin, and push that file too.
                os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
        return built

    def _refuse(self, argument: str) -> NoReturn:
        if not argument.startswith("-"):
            raise UsageError(f"unexpected argument {argument!r} on the command line: options are --NAME VALUE.")
        flag = argument.partition("=")[0]
        name = flag.lstrip("-").replace("-", "_")
        raise UsageError(f"unknown option {flag} on the command line. {self._nearest(name, 'config', prefix='--')}")

    def _nearest(self, name: str, *more: str, prefix: str = "") -> str:
        known = [*self._hints, *more]
        near = difflib.get_close_matches(name.lower(), known, n=1) or [k for k in known if k.startswith(name.lower())]
        if not near:
            return "No option has a similar name; --help_all lists them all."
        return f"Did you mean {prefix + near[0]!r}? --help_all lists all options."

    def _read_config(self, path: str) -> dict[str, Any]:
        entries = read_yaml(path)
        environment: dict[str, str] = {}
        given = argparse.Namespace()
        for key, (line, node) in entries.items():
            where = f"{path}, line {line}"
            if key == "env":
                environment = environment_of(node, where)
                continue
            try:
                name = self._option_of(key)
                if name is not None:
                    self._take_entry(name, node, given, path)
            except (argparse.ArgumentError, UsageError) as error:
                raise UsageError(f"{where}: {error}") from None
        os.environ.update(environment)
        return vars(given)

    def _option_of(self, key: str) -> str | None:
        """The option that a key of a file is about; `None` where it is for another command."""
        if self._takes_any_recipe:
            return key if key in self._hints else None
        if self._recipe_keys is None:
            if key not in self._hints:
                raise UsageError(f"unknown key {key!r}. {self._nearest(key, 'env')}")
            return key
        near = difflib.get_close_matches(key, self._recipe_keys, n=1, cutoff=NEAR)
        if near and near[0] != key:
            raise UsageError(f"unknown key {key!r}. Did you mean {near[0]!r}?")
        return self._recipe_keys.get(key)

    def _take_entry(self, name: str, node: yaml.Node, given: argparse.Namespace, path: str) -> None:
        """Hand one entry of a file to argparse as the flag that says the same, or set what no flag can say."""
        hint, many = self._hints[name], self._shown[name].get("nargs") == "+"
        if _is_null(node):
            if type(None) not in _top_members(hint):
                raise UsageError(f"{name} cannot be null. Give it a value, or leave the key out for its default.")
            setattr(given, name, None)
        elif not isinstance(node, yaml.SequenceNode):
            self.parse_known_args([f"--{name}={_as_typed(name, node, hint)}"], given)
        elif list not in _members(hint):
            raise UsageError(f"{name} takes one value, and the file gives a list.")
        elif many and node.value:
            values = [_as_typed(name, element, hint) for element in node.value]
            if any(value.startswith("-") and not _NEGATIVE.fullmatch(value) for value in values):
                raise UsageError(f"{name}: an element of a list cannot start with '-', because no flag could say it.")
            self.parse_known_args([f"--{name}", *_shield_negatives(values)], given)
            if dict in _members(hint):  # such an element may be wrong in ways that only its reader can tell
                lines = [f"{path}, line {element.start_mark.line + 1}" for element in node.value]
                folder = Path(path).expanduser().parent
                setattr(given, name, [located(v, w, folder) for v, w in zip(getattr(given, name), lines, strict=True)])
        else:  # an empty list, or one for an option such as `report_to`, whose flag takes a single value
            setattr(given, name, _python_value(node))

    def format_help(self, all_options: bool = False) -> str:
        """Return the help: the description as it was written, our own options, then those often used.

        Args:
            all_options (`bool`): Show every inherited option too, as `--help_all` does.
        """
        own, often, rest = _sort_options(self.dataclass_types)
        sections = own | often
        left_out = sum(len(names) for names in rest.values())
        if all_options:
            sections |= rest
        # A second parser that only writes: the groups of this one were settled by HfArgumentParser.
        writer = argparse.ArgumentParser(self.prog, usage=self.usage, add_help=False, formatter_class=_Columns)
        group = writer.add_argument_group("This help, and runs in a file")
        group.add_argument("-h", "--help", action="store_true", help="Show the options used most, and exit.")
        group.add_argument("--help_all", action="store_true", help="Show every option, and exit.")
        group.add_argument(
            "--config",
            metavar="FILE.yaml",
            help="Options as `name: value` lines. Flags override them, and so does a further --config, as after a "
            "preset. Paths are relative to the current directory.",
        )
        for title, names in sections.items():
            group = writer.add_argument_group(title)
            for name in names:
                group.add_argument(f"--{name}", **_display(name, self._shown[name]))
        text = writer.format_help()
        if self.description:
            text = f"{self.description.strip()}\n\n{text}"
        if left_out and not all_options:
            text += f"\n{left_out} more options are inherited: --help_all shows them.\n"
        return text


class _HelpAction(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, const: bool, default: Any, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, const=const, default=default, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        assert isinstance(parser, RecipeParser)
        sys.stdout.write(parser.format_help(all_options=bool(self.const)))
        parser.exit()


class _Columns(argparse.HelpFormatter):
    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, **(kwargs | {"max_help_position": 34}))


# --- Fields and their types -----------------------------------------------------------------------


def _option_hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _top_members(hint: Any) -> set[Any]:
    """The alternatives of a union; of `int | None` that is `{int, NoneType}`."""
    return set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}


def _members(hint: Any) -> set[Any]:
    """All types that occur in a hint, those of list elements among them: `list[str | dict[str, int]] | None` gives
    `{list, str, dict, NoneType}`."""
    found: set[Any] = set()
    for member in _top_members(hint):
        origin = get_origin(member) or member
        found.add(origin)
        if origin is list:
            found |= set().union(*map(_members, get_args(member)))
    return found


def _converter(members: set[Any], convert: Any) -> Callable[[str], Any]:
    if dict not in members:
        return convert
    return text_or_mapping if str in members else _json_mapping


def _or_none(convert: Callable[[str], Any], words: Collection[str]) -> Callable[[str], Any]:
    """Let `--max_length null` say on the command line what `max_length: null` says in a file.

    Where a text is possible, `none` is one, as in `--report_to none`.
    """

    def optional(text: str) -> Any:
        return None if text.lower() in words else convert(text)

    optional.__name__ = getattr(convert, "__name__", "optional")  # argparse puts it into "invalid int value"
    return optional


def _without_null_lists(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, with `None` for a list of one null: `--reward_weights null`."""
    for name, value in given.items():
        if isinstance(value, list) and None in value and len(value) > 1:
            raise UsageError(f"--{name}: null stands alone, and means no list at all.")
    return {name: None if value == [None] else value for name, value in given.items()}


def _has_no_default(classes: Iterable[type], name: str) -> bool:
    fields = (cls.__dataclass_fields__.get(name) for cls in classes)  # type: ignore[attr-defined]
    field = next(field for field in fields if field is not None)
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


# --- Reading the file -----------------------------------------------------------------------------

_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def _shield_negatives(arguments: Iterable[str]) -> list[str]:
    """Put a space before negative numbers: argparse takes `-1e-3` for a flag, and `float(" -1e-3")` is the number."""
    return [f" {argument}" if _NEGATIVE.fullmatch(argument) else argument for argument in arguments]


class LocatedText(str):
    """A text of a file, with the place where it stands there, and the file's folder."""

    where: str
    folder: Path | None


class LocatedMapping(dict):
    """A mapping of a file, with the place where it stands there, and the file's folder."""

    where: str
    folder: Path | None


def located(value: Any, where: str, folder: Path | None = None) -> Any:
    """The same text or mapping, with `where` for whoever has to complain of it, and the `folder` to look around in."""
    if not isinstance(value, str | dict):
        return value
    made = LocatedText(value) if isinstance(value, str) else LocatedMapping(value)
    made.where, made.folder = where, folder
    return made


# Whoever writes such values as YAML means what they say, and not where they come from.
yaml.SafeDumper.add_representer(LocatedText, lambda dumper, value: dumper.represent_str(str(value)))
yaml.SafeDumper.add_representer(LocatedMapping, lambda dumper, value: dumper.represent_dict(value))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, in which `1e-5` is a number (YAML 1.2) and not a string (YAML 1.1)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: str) -> dict[str, tuple[int, yaml.Node]]:
    """Read a file that holds one mapping. Returns the line and the unconverted value of each key."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"--config {path}: no such file (looked for {file.absolute()}).")
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{path}{line}: not valid YAML: {problem}") from None
    if not isinstance(root, yaml.MappingNode):
        found = "nothing" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise UsageError(f"{path} must hold `key: value` lines, one per option, and holds {found}.")
    entries: dict[str, tuple[int, yaml.Node]] = {}
    for key_node, value_node in root.value:
        key, line = str(key_node.value).replace("-", "_"), key_node.start_mark.line + 1
        if key in entries:
            raise UsageError(f"{path}, line {line}: key {key!r} again; it stands in line {entries[key][0]} already.")
        _refuse_duplicates(value_node, path)
        entries[key] = (line, value_node)
    return entries


def _refuse_duplicates(node: yaml.Node, path: str) -> None:
    """PyYAML keeps the last of several equal keys without a word."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in seen:
                raise UsageError(f"{path}, line {line}: key {key!r} again; it stands in line {seen[key]} already.")
            seen[key] = line
            _refuse_duplicates(value_node, path)
    elif isinstance(node, yaml.SequenceNode):
        for element in node.value:
            _refuse_duplicates(element, path)


def _is_null(node: yaml.Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null"


def _as_typed(name: str, node: yaml.Node, hint: Any) -> str:
    """The text that stands for a value on the command line: a scalar as it is written, a mapping as JSON."""
    if isinstance(node, yaml.MappingNode):
        if dict not in _members(hint):
            raise UsageError(f"{name} takes no mapping, and the file gives one.")
        return json.dumps(_python_value(node), default=str)
    if isinstance(node, yaml.SequenceNode):
        raise UsageError(f"{name} takes no list within a list, and the file gives one.")
    if _is_null(node):
        raise UsageError(f"{name}: an element of the list is null.")
    if node.tag == "tag:yaml.org,2002:float" and node.value.lower().endswith((".inf", ".nan")):
        return str(_python_value(node))  # YAML's `.inf` is no number to Python
    return node.value


def _python_value(node: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError as error:
        raise UsageError(f"not valid YAML: {error}") from None
    finally:
        loader.dispose()


def environment_of(node: yaml.Node, where: str) -> dict[str, str]:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    scalars = all(isinstance(value, yaml.ScalarNode) and not _is_null(value) for _, value in pairs)
    if not isinstance(node, yaml.MappingNode) or not scalars:
        raise UsageError(f"{where}: `env` must be a mapping from names of environment variables to values.")
    return {key.value: value.value for key, value in pairs}


# --- Writing the help -----------------------------------------------------------------------------

Sections = dict[str, list[str]]


def _sort_options(classes: Iterable[type]) -> tuple[Sections, Sections, Sections]:
    """Split the options into our own, by dataclass, and inherited ones, often used and others, by their origin."""
    own: Sections = {}
    often: Sections = {}
    rest: Sections = {}
    for cls in classes:
        for name in _option_hints(cls):
            declared, origin = _declaring_classes(cls, name)
            source = f"{origin.__module__.partition('.')[0]}.{origin.__name__}"
            if not _is_foreign(declared):
                own.setdefault(_title(cls), []).append(name)
            elif name in OFTEN_USED:
                often.setdefault(f"Often used options of {source}", []).append(name)
            else:
                rest.setdefault(f"Other options of {source}", []).append(name)
    for names in often.values():
        names.sort(key=OFTEN_USED.index)
    often = dict(sorted(often.items(), key=lambda section: OFTEN_USED.index(section[1][0])))
    return own, often, rest


def _declaring_classes(cls: type, name: str) -> tuple[type, type]:
    """The class whose declaration of a field is in force, and the first that ever declared it."""
    holders = [base for base in cls.__mro__ if name in getattr(base, "__dataclass_fields__", {})]
    field = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
    in_force = [base for base in holders if base.__dataclass_fields__[name] is field]  # type: ignore[attr-defined]
    return in_force[-1], holders[-1]


def _is_foreign(cls: type) -> bool:
    # Asked this way round, a dataclass counts as ours also in a recipe that a user copied or a test imported.
    return cls.__module__.partition(".")[0] in ("transformers", "trl")


def _title(cls: type) -> str:
    first_line = (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    if not first_line or first_line.startswith(f"{cls.__name__}("):  # `dataclass` writes the signature where none is
        first_line = cls.__name__
    return getattr(cls, "help_title", None) or re.sub(r"\[?`~?([^`]*)`\]?", r"\1", first_line)


def _display(name: str, shown: Mapping[str, Any]) -> dict[str, Any]:
    """What `add_argument` needs to write an option, not to parse it."""
    default, choices = shown.get("default"), [str(choice) for choice in shown.get("choices", ())]
    text = shown.get("help", "").replace("%%", "%").replace("%(default)s", str(default))
    if len(choices) > 6:
        text += f" One of: {', '.join(choices)}."
    metavar = "{" + ",".join(choices) + "}" if 0 < len(choices) <= 6 else _metavar(shown)
    if default is True:
        text += f" --no_{name} turns it off."
    if shown.get("required"):
        text += " (required)"
    elif default is not None or "default" not in text.lower():
        text += f" (default: {default.value if isinstance(default, Enum) else default})"
    return {"help": text.strip().replace("%", "%%"), "metavar": metavar, "nargs": shown.get("nargs")}


def _metavar(shown: Mapping[str, Any]) -> str:
    words = {
        "int": "INT",
        "float": "FLOAT",
        "string_to_bool": "BOOL",
        "_json_mapping": "JSON",
        "text_or_mapping": "TEXT|JSON",
    }
    return words.get(getattr(shown.get("type"), "__name__", ""), "NAME" if shown.get("choices") else "TEXT")


def _plain_percent(text: str) -> str:
    """Undo argparse's `%%`. Help texts of transformers hold both `10%` and `10%%`, and the first crashes argparse."""
    return text.replace("%%", "%")


# --- Saving what was in force ---------------------------------------------------------------------


def save_config(path: str | os.PathLike[str], *args_dataclasses: Any) -> None:
    """Write the values that differ from their defaults as a YAML file that `--config` accepts.

    A dataset, model or reward of this machine whose name the Hub could have as well gets `./` in front, so that the
    file says which of them it was also to whoever reads it in another folder, as a model card does.

    Values that `__post_init__` would work out again are not written. Secrets are never written: `hub_token`,
    `push_to_hub_token`, and within mappings also keys such as `api_key`.

    Args:
        path (`str` or `os.PathLike`): The file, made with its folder, or replaced.
        args_dataclasses: Instances of the dataclasses of one [`RecipeParser`].

    Raises:
        `TypeError`: if a value that differs from its default has no form in YAML; the option is named.
    """
    values: dict[str, Any] = {}
    for args in args_dataclasses:
        defaults = _defaults(args)
        for name in _option_hints(type(args)):
            value = getattr(args, name)
            if name in getattr(type(args), "old_names", ()):  # the value stands under its new name
                continue
            if name != "local_rank" and not SECRETS.fullmatch(name) and not _equal(value, defaults[name]):
                values[name] = _to_yaml(_local(value) if name.endswith(NAMED_HERE_OR_ON_HUB) else value, name)
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else "{}\n"
    file.write_text(f"# The options that differ from their defaults. Repeat the run with --config.\n{body}", "utf-8")


def _local(value: Any) -> Any:
    if isinstance(value, list):  # of rewards, whose names have no slash
        return [_local(entry) if isinstance(entry, Mapping) or "/" in entry else entry for entry in value]
    if isinstance(value, Mapping):
        return {**value, "func": _local([value["func"]])[0]} if isinstance(value.get("func"), str) else value
    looks_like_one = isinstance(value, str) and LIKE_A_HUB_ID.fullmatch(value)
    return f"./{value}" if looks_like_one and Path(value).exists() else value


def _equal(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default  # of one type, because True == 1


def _defaults(args: Any) -> dict[str, Any]:
    """The values of an instance for which nothing was given, after its `__post_init__`."""
    fields = {field.name: field for field in dataclasses.fields(args) if field.init}
    stated: dict[str, Any] = {}
    for name, field in fields.items():
        stated[name] = field.default
        if field.default_factory is not dataclasses.MISSING:
            stated[name] = field.default_factory()
    required = {name: getattr(args, name) for name, value in stated.items() if value is dataclasses.MISSING}
    # Making TrainingArguments sets up the state that all of a process's TrainingArguments share: with another device
    # or backend, `args` would forget the other processes, and each would train alone.
    required |= {name: getattr(args, name) for name in ("use_cpu", "ddp_backend", "ddp_timeout") if name in fields}
    precision = {name: getattr(args, name) for name in ("bf16", "fp16") if name in fields}
    for given in (required, required | precision):  # TRL's bf16=True raises on a CPU before anything is compared
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plain = type(args)(**given)
        except (ValueError, TypeError):
            continue
        finally:
            if getattr(args, "deepspeed_plugin", None) is not None:
                args.deepspeed_plugin.set_deepspeed_weakref()  # else models are no longer loaded in shares (ZeRO-3)
        return {name: stated[name] if name in given else getattr(plain, name) for name in fields}
    return stated


def _to_yaml(value: Any, name: str) -> Any:
    if isinstance(value, Enum):
        return _to_yaml(value.value, name)
    if isinstance(value, Mapping):
        return {str(k): _to_yaml(v, name) for k, v in value.items() if not SECRETS.fullmatch(str(k))}
    if isinstance(value, list | tuple):
        return [_to_yaml(element, name) for element in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str):
        return str(value)  # and not a text that knows where it stands
    if value is None or isinstance(value, bool | int | float):
        return value
    if hasattr(value, "to_dict"):  # such as accelerate's AcceleratorConfig
        return _to_yaml(value.to_dict(), name)
    raise TypeError(f"{name} holds a {type(value).__name__}, which has no form in YAML: {value!r}")
