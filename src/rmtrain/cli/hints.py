"""Hints adapted to the options of the current command."""

import re
from collections.abc import Mapping

_OPTIONS = {  # the options by the recipe key that does the same
    "data.columns": "--columns",
    "data.row_schema": "--row-schema",
    "data.max_length": "--max-length",
    "evaluation.tokens_per_batch": "--tokens-per-batch",
    "model.chat_template": "--prompt",
    "model.dtype": "--dtype",
}
_KEY = re.compile(rf"(?<![\w./-])({'|'.join(map(re.escape, _OPTIONS))})(?![\w-]|\.\w):?")
_OF_RECIPES = re.compile(r"(?<![\w./-])data\.(answers|label|better|ties|scores)\b")  # keys without an option
_OPTION = re.compile(r"rmtrain [a-z]+ [^;`]*|(?<![\w-])--[a-z][a-z-]*")


def for_command(command: str, hint: str, options: Mapping[str, set[str]]) -> str:
    """The hint with recipe keys replaced by the command's options.

    Advice that only a recipe can follow is dropped. An option that the command lacks gets the suffix of `compare`
    (`--label-a`), or the name of a command that has it.
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
        other = next((name for name in ("eval", "score", *options) if option in options.get(name, ())), None)
        return f"rmtrain {other} {option}" if other else option

    if has("--columns"):
        hint = " ".join(part for part in re.split(r"(?<=[.;]) ", hint) if not _OF_RECIPES.search(part))
        hint = re.sub(r"[`{](\w+): ([\w-]+)[`}]", r"\1=\2", hint)
    hint = _KEY.sub(lambda match: _OPTIONS[match[1]] if has(_OPTIONS[match[1]]) else match[0], hint)
    return _OPTION.sub(spelled, hint)
