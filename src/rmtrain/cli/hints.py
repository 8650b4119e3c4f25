"""Hints in the words of the command at hand."""

import re
from collections.abc import Mapping

_OPTIONS = {  # by the key of a recipe that says the same
    "data.columns": "--columns",
    "data.row_schema": "--row-schema",
    "data.max_length": "--max-length",
    "evaluation.tokens_per_batch": "--tokens-per-batch",
    "model.chat_template": "--prompt",
    "model.dtype": "--dtype",
}
_KEY = re.compile(rf"(?<![\w./-])({'|'.join(map(re.escape, _OPTIONS))})(?![\w-]|\.\w):?")
_OF_RECIPES = re.compile(r"(?<![\w./-])data\.(answers|label|better|ties|scores)\b")  # for which there is no option
_OPTION = re.compile(r"rmtrain [a-z]+ [^;`]*|(?<![\w-])--[a-z][a-z-]*")


def in_words_of(command: str, hint: str, options: Mapping[str, set[str]]) -> str:
    """A hint that names only what a command has.

    Other rooms name a recipe's keys. Where the command has an option of the same meaning, the option is named instead,
    and advice that only a recipe can follow is left out. An option that the command lacks is named with its letters
    (`--label-a`), or with a command that has it.

    Args:
        command: its name.
        hint: the hint.
        options: of every command.
    """
    own = options.get(command, set())

    def has(option: str) -> bool:
        return option in own or f"{option}-a" in own

    def spelled(match: re.Match[str]) -> str:
        option = match[0]
        if option in own or not option.startswith("--"):
            return option
        if has(option):
            return f"{option}-a (or -b)"
        other = next((name for name in ("eval", *options) if option in options.get(name, ())), None)
        return f"rmtrain {other} {option}" if other else option

    if has("--columns"):
        hint = " ".join(part for part in re.split(r"(?<=[.;]) ", hint) if not _OF_RECIPES.search(part))
        hint = re.sub(r"[`{](\w+): ([\w-]+)[`}]", r"\1=\2", hint)
    hint = _KEY.sub(lambda match: _OPTIONS[match[1]] if has(_OPTIONS[match[1]]) else match[0], hint)
    return _OPTION.sub(spelled, hint)
