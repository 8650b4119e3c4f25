"""All escaping of text from data for terminal, Markdown and HTML, and the formats of figures."""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, TypeGuard

MISSING = "n/a"  # shown for an unknown figure

_ESCAPE_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_].*?(?:\x1b\\|\x07|$)"  # OSC and its kin, up to their terminator: titles, links
    r"|\x1b[ -/]*[0-~]",
    re.DOTALL,
)
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MARKUP = re.compile(r"([\\`*_\[\](){}<>&|~!#$:@^])")  # characters with a meaning in Markdown


def plain(value: Any) -> str:
    """Text from data on one line, without characters that control a terminal, reorder text or can't be encoded."""
    return _clean(str(value)).strip()


def block(value: Any) -> str:
    """The same for several lines; keeps line breaks and indentation."""
    return "\n".join(_clean(line).rstrip() for line in str(value).splitlines())


def shortened(text: str, most: int) -> str:
    """The text, or the beginning and the end of one that has more characters."""
    return text if len(text) <= most else f"{text[: most // 2]} […] {text[-most // 2 :]}"


def _clean(text: str) -> str:
    return "".join(_harmless(character) for character in _ESCAPE_SEQUENCE.sub("", text))


def _harmless(character: str) -> str:
    category = unicodedata.category(character)
    if character.isspace() or category in ("Zl", "Zp"):
        return " "
    if category == "Cs":
        return "\N{REPLACEMENT CHARACTER}"
    return "" if category == "Cc" or character in _DIRECTION else character


def markdown(value: Any) -> str:
    """Text from data for Markdown prose or a table cell, escaped: no markup, link, cell or HTML."""
    text = _MARKUP.sub(r"\\\1", plain(value))
    for character, entity in (("\\&", "&amp;"), ("\\<", "&lt;"), ("\\>", "&gt;")):
        text = text.replace(character, entity)
    return re.sub(r"(?i)www\.", lambda match: match[0][:-1] + "\\.", text)  # GitHub would make it a link


def python_literal(value: Any) -> str:
    """Text from data as a Python string literal that can't end a fenced block or an HTML element."""
    text = ascii(plain(value))
    text = f'"{text[1:-1]}"' if text[0] == "'" and '"' not in text else text
    return "".join(f"\\x{ord(c):02x}" if c in "`<>" else c for c in text)


def percent(fraction: Any, digits: int = 1) -> str:
    """A fraction as a percentage, such as `72.3 %`."""
    return f"{points(fraction, digits)} %" if is_figure(fraction) else MISSING


def points(fraction: Any, digits: int = 2, sign: str = "") -> str:
    """A fraction in per cent without the sign, for columns whose heading has it."""
    if not is_figure(fraction):
        return MISSING
    # processors add in different orders: 3.75 or 0 must not be printed as its neighbour on one of them
    return f"{round(100 * fraction, 9) + 0.0:{sign}.{digits}f}"


def dash(low: Any, high: Any, digits: int = 2) -> str:
    """Both ends of an interval in such a column: `70.12-74.40`."""
    return f"{points(low, digits)}-{points(high, digits)}" if is_figure(low) and is_figure(high) else MISSING


def interval(low: Any, high: Any, digits: int = 1) -> str:
    """Both ends of an interval of a fraction, such as `70.1 to 74.4 %`."""
    return f"{points(low, digits)} to {points(high, digits)} %" if is_figure(low) and is_figure(high) else MISSING


def decimal(value: Any, digits: int = 3) -> str:
    """A number with a fixed number of decimals."""
    return f"{value:.{digits}f}" if is_figure(value) else MISSING


def count(value: Any) -> str:
    """A whole number with thousands separators."""
    return f"{value:,.0f}" if is_figure(value) else MISSING


def scientific(value: Any) -> str:
    """A number in its shortest form, such as `5e-05` or `0.03`."""
    return f"{value:g}" if is_figure(value) else MISSING


def duration(seconds: Any) -> str:
    """A duration in its two largest units, such as `1 h 12 min`."""
    if not is_figure(seconds):
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def is_figure(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 10**300 if isinstance(value, int) else math.isfinite(value)


def render(
    template: str, shown: Callable[[Any], str], values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]]
) -> str:
    """Fill in one of this folder's templates, which may include others.

    `shown` turns each value into text; a missing value gives no text.
    """
    from jinja2 import ChainableUndefined, Environment, FunctionLoader
    from markupsafe import Markup

    folder = files(__package__)
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=ChainableUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else shown(value),
    )
    environment.filters.update({form.__name__: form for form in (percent, interval, decimal, count)}, **filters)
    return environment.get_template(template).render(values)
