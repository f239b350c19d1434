"""Recipes and command lines, read by the dataclasses that they fill."""

import difflib
from argparse import Action, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

RECIPES = Path(__file__).parent / "recipes"
RENAMED = {  # names of transformers 4, of TRL and of earlier versions -> the setting today
    "group_by_length": "train_sampling_strategy: group_by_length",
    "warmup_ratio": "warmup_steps, which takes a share below 1",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "max_seq_length": "max_seconds, nothing is truncated",
    "max_length": "max_seconds, nothing is truncated",
    "use_peft": "lora_groups",
    "lora_r": "lora_rank",
    "lora_target_modules": "lora_groups",
    "model_name_or_path": "model",
    "tokenizer_name_or_path": "model",
    "dataset_name": "dataset, and dataset_config for its configuration",
    "dataset_train_split": "dataset_split",
    "dataset_test_split": "eval_split",
    "text_column": 'columns: {"its name": "text"}',
    "audio_column": 'columns: {"its name": "audio"}',
    "dataset_text_field": 'columns: {"its name": "text"}',
}


def find_recipe(path: str | Path) -> Path:
    """The file itself, or the packaged recipe of that name, with or without `.yaml`.

    Raises:
        ValueError: there is neither; with the packaged ones.
    """
    path = Path(path).expanduser()
    packaged = RECIPES / path.with_suffix(".yaml").name
    if path.is_file():
        return path
    if len(path.parts) == 1 and packaged.is_file():
        return packaged
    known = ", ".join(sorted(recipe.name for recipe in RECIPES.glob("*.yaml")))
    raise ValueError(f"There is no recipe {str(path)!r}. Give a file, or one of the packaged ones: {known}.")


def read_recipe(path: str | Path, classes: Sequence[type]) -> dict[str, Any]:
    """The settings of a YAML recipe.

    Raises:
        ValueError: no such file, no YAML, no mapping, a key twice, or unknown keys, each with the nearest valid one.
    """
    path = find_recipe(path)
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=_RecipeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings. Write one `key: value` per line.")
    check_keys(settings, classes, str(path))
    return settings


class _RecipeLoader(yaml.SafeLoader):
    """YAML says that keys are unique; PyYAML silently keeps the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ValueError(f"{key.value} stands twice (line {key.start_mark.line + 1}). Remove one of the two.")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def check_keys(names: Sequence[str], classes: Sequence[type], source: str) -> None:
    """Raises a ValueError that names keys which no field has, and the nearest that one has."""
    known = sorted({item.name for cls in classes for item in fields(cls) if item.init})
    unknown = []
    for name in names:
        if name not in known:
            near = RENAMED.get(name) or difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            unknown.append(f"{name} (did you mean {near}?)")
    if unknown:
        raise ValueError(f"{source}: unknown setting {', '.join(unknown)}. `--help all` lists all.")


def parse(
    classes: Sequence[type],
    arguments: Sequence[str],
    prog: str,
    description: str = "",
    example: str = "",
    first: Sequence[str] = (),
    hidden: Sequence[str] = (),
) -> tuple[Any, ...]:
    """
    Dataclasses filled from `--config recipe.yaml` and from options, which win over the recipe.

    A setting of the recipe is an option that stands earlier on the command line, so both are checked alike.

    Args:
        classes: dataclasses without a name in common.
        arguments: the command line without the command.
        prog: the command, for messages.
        description, example: before and after the options in `--help`, which exits.
        first: settings that `--help` shows; all others come by group with `--help all`. Without, it shows all.
        hidden: settings that no help shows, being refused.

    Raises:
        ValueError: unknown or missing settings, or values that do not fit.
    """
    parser = _Parser(list(classes), prog=prog, description=description, epilog=example)
    parser.add_argument("--config", metavar="RECIPE", help="YAML file of settings, or the name of a packaged recipe.")
    arguments = list(arguments)
    if "--help" in arguments or "-h" in arguments:
        print(parser.help_of(classes, () if "all" in arguments else first, hidden))
        parser.exit()
    named = [word[2:].split("=")[0].replace("-", "_") for word in arguments if word.startswith("--")]
    known = {name for action in parser._actions for name in (option[2:] for option in action.option_strings)}
    check_keys([name for name in named if name not in known], classes, prog)
    recipe, arguments = _take_recipe(arguments, classes, prog)
    words = parser.take_settings(recipe)
    *filled, namespace = parser.parse_args_into_dataclasses(args=[*words, *arguments], look_for_args_file=False)
    return tuple(filled)


def _take_recipe(arguments: list[str], classes: Sequence[type], prog: str) -> tuple[dict[str, Any], list[str]]:
    """The recipe that `--config FILE` or `--config=FILE` names, and the other arguments."""
    rest, path = [], None
    words = iter(arguments)
    for word in words:
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] or next(words, None)
            if path is None:
                raise ValueError(f"{prog}: --config needs a file.")
        else:
            rest.append(word)
    return ({} if path is None else read_recipe(path, classes)), rest


class _HelpFormatter(RawDescriptionHelpFormatter):
    """Options in one spelling, with their help beside them where it fits."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=119)

    def _format_action_invocation(self, action: Action) -> str:
        value = "" if action.nargs == 0 else " " + self._format_args(action, action.dest.upper())
        return next((name for name in action.option_strings if name.startswith("--")), "") + value


class _Parser(HfArgumentParser):
    """Raises what argparse would print before it exits, and takes settings of a recipe."""

    def __init__(self, classes: list[type], **kwargs: Any):
        super().__init__(classes, formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs)
        self.usage = f"{self.prog} [--config RECIPE] [--setting VALUE ...]"

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}.")

    def help_of(self, classes: Sequence[type], first: Sequence[str], hidden: Sequence[str]) -> str:
        """The help: the settings of `first`, or all but the hidden ones, by the class that they come from."""
        actions = {action.dest: action for action in reversed(self._actions)}  # `--x` comes before `--no_x`
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        if first:
            groups = {"settings that people set first": list(first)}
        else:
            groups = grouped_settings(classes, hidden)
        for title, names in {"": ["config"], **groups}.items():
            formatter.start_section(title or "recipe")
            formatter.add_arguments([actions[name] for name in names])
            formatter.end_section()
        if first:
            count = sum(len(names) for names in grouped_settings(classes, hidden).values())
            formatter.add_text(f"All {count} settings, by group: {self.prog} --help all")
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def take_settings(self, settings: dict[str, Any]) -> list[str]:
        """The settings as options; those that a command line cannot say become defaults."""
        actions = {action.dest: action for action in reversed(self._actions)}  # `--x` comes before `--no_x`
        words = []
        for name, value in settings.items():
            action = actions[name]
            in_words = isinstance(value, (str, int, float)) and action.nargs in (None, "?")
            if action.nargs == "+" and isinstance(value, (str, int, float)):
                value = [value]
            if isinstance(value, list) and value and action.nargs == "+":
                words += [f"--{name}", *(_word(part) for part in value)]
            elif in_words:
                words.append(f"--{name}={_word(value)}")
            else:
                if value is not None and action.nargs == "+" and not isinstance(value, list):
                    raise ValueError(f"{self.prog}: {name} is a list. Write it as [{value}].")
                if isinstance(value, (list, dict)) and action.type not in (str, dict) and action.nargs != "+":
                    raise ValueError(f"{self.prog}: {name} takes one value, not {value!r}.")
                action.default, action.required = value, False
        return words


GROUP_TITLES = {  # class: what its settings are about
    "DataArguments": "data",
    "ModelSettings": "model",
    "ScriptArguments": "adapters and evaluation data",
    "LaunchArguments": "launch",
    "SpeechTrainingConfig": "speech training: what is trained, batches, cache, augmentation",
    "SFTConfig": "TRL",
    "TrainingArguments": "transformers",
}


def grouped_settings(classes: Sequence[type], hidden: Sequence[str] = ()) -> dict[str, list[str]]:
    """Settings by the class that brought them in, ours first, those of transformers and TRL last."""
    groups: dict[str, list[str]] = {}
    for cls in classes:
        names = [item.name for item in fields(cls) if item.init and item.name not in hidden]
        for name in names:
            owner = next(base for base in reversed(cls.__mro__) if name in base.__dict__.get("__annotations__", {}))
            title = GROUP_TITLES.get(owner.__name__, "the command's own")
            groups.setdefault(title, []).append(name)
    last = [title for title in ("TRL", "transformers") if title in groups]
    return {title: groups[title] for title in [*(t for t in groups if t not in last), *last]}


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


__all__ = ["check_keys", "find_recipe", "parse", "read_recipe"]
