"""Which layout the rows of a source have: the one that the recipe describes or states, or that the columns tell."""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

from rmtrain.data.layout import Label, Layout, label_key
from rmtrain.data.layouts import LAYOUTS, PAIR, SUBSETS
from rmtrain.data.prompts import alpaca_prompt, prompt_column
from rmtrain.data.rows import Row
from rmtrain.data.transcripts import list_in, messages_in, turns
from rmtrain.data.ultrafeedback import parse_ultrafeedback
from rmtrain.errors import DataError
from rmtrain.recipe.schema import DataSection

_PROMPTS = ("prompt", "instruction", "question", "context", "conversations", "messages")  # of a recipe's own layout
_LIKE_LABELS = re.compile(
    r"winner(_.*)?|labels?|preference(s|_strength)?|overall_preference|preferred.*|choice|better.*|safer.*|verdict|votes?",
    re.IGNORECASE,
)


def find_layout(columns: Collection[str], sample: Row, data: DataSection) -> Layout:
    """The layout that the recipe describes or states, or that the columns tell.

    Args:
        columns: of the rows, as `data.columns` renames them.
        sample: a value of each column, where there is one.
        data: the recipe's section.

    Raises:
        DataError: no layout fits, or several do; the message says what would.
    """
    if data.answers:
        return _described(columns, sample, data)
    known = [layout for layout in LAYOUTS if data.row_schema in ("auto", layout.name)]
    fitting = [layout for layout in known if all(_has(columns, sample, need) for need in layout.needs)]
    if data.row_schema == "auto":
        fitting = [layout for layout in fitting if layout.when is None or layout.when(sample)]
        fitting = [layout for layout in fitting if not layout.tokens] or fitting  # texts go before their tokens
        if not fitting:
            raise _unknown(columns, sample)
    elif not fitting:
        options = sorted(([need for need in layout.needs if need not in columns] for layout in known), key=len)
        raise DataError(
            f"row schema {data.row_schema} needs the column{'s'[: len(options[0]) > 1]} {', '.join(options[0])}; "
            f"the rows have: {', '.join(sorted(columns))}",
            "data.columns renames columns, such as `chosen: good_answer`",
        )
    best = [one for one in fitting if not any(_outdoes(other, one) for other in fitting)]
    many = [layout for layout in best if layout.name in ("ultrafeedback", "completions")]  # pairs are made of these
    names = list(dict.fromkeys(layout.name for layout in many or best))
    if len(names) > 1 and not many:
        raise DataError(
            f"the columns ({', '.join(sorted(columns))}) are of several row schemas: {', '.join(names)}",
            f"state one, such as data.row_schema: {names[0]}",
        )
    return _bound((many or best)[0], columns, data)


def _has(columns: Collection[str], sample: Row, need: str) -> bool:
    column, _, key = need.partition(".")
    if not key or column not in columns:
        return column in columns
    entries = list_in(sample.get(column)) or [None]
    return isinstance(entries[0], dict) and key in entries[0]


def _outdoes(other: Layout, one: Layout) -> bool:
    """Whether one layout asks for all that another asks for, and for more."""
    more = set(other.needs) - set(one.needs) or (other.when is not None and one.when is None)
    return bool(more) and set(one.needs) <= set(other.needs)


def _bound(layout: Layout, columns: Collection[str], data: DataSection) -> Layout:
    """A layout with what the recipe chooses of it."""
    if layout.name == "ultrafeedback":
        return replace(layout, reader=partial(parse_ultrafeedback, score=data.score))
    if data.label is None:
        return layout
    if layout.label is None or data.label not in columns:
        what = f"row schema {layout.name} has no label" if layout.label is None else "there is no such column"
        raise DataError(
            f"data.label names {data.label}, but {what}",
            f"data.answers names the answers that the label is about; the columns are: {', '.join(sorted(columns))}",
        )
    own = _label(data)
    return replace(layout, label=own if own.better else replace(layout.label, columns=(data.label,)))


def _label(data: DataSection) -> Label:
    better = {label_key(value): answer for value, answer in data.better.items()}
    return Label((str(data.label),), better, frozenset(map(label_key, data.ties)))


def _described(columns: Collection[str], sample: Row, data: DataSection) -> Layout:
    """The layout that the recipe's own answers, label and scores make."""
    needs = [name.partition(".")[0] for name in (*data.answers, *data.scores)] + ([data.label] if data.label else [])
    if lacking := [name for name in needs if name not in columns]:
        raise DataError(
            f"data.answers, data.label and data.scores name the column {lacking[0]}, but there is none of that name",
            f"the columns are: {', '.join(sorted(columns))}",
        )
    prompts = [name for name in _PROMPTS if name in columns and name not in needs]
    if len(prompts) > 1 and "prompt" not in prompts:
        raise DataError(
            f"several columns could hold the prompt: {', '.join(prompts)}",
            f"say which, such as data.columns: {{prompt: {prompts[0]}}}",
        )
    answer = sample.get(data.answers[0])
    if not prompts and isinstance(answer, str) and messages_in(answer) is None and turns(answer) is None:
        raise DataError(
            "no column holds the prompt of the answers that data.answers names",
            f"say which, such as data.columns: {{prompt: question}}; the columns are: {', '.join(sorted(columns))}",
        )
    instruction = prompts == ["instruction"]
    return Layout(
        "answers",
        tuple(needs),
        tuple(data.answers),
        prompts[0] if prompts else "",
        _label(data) if data.label else None,
        tuple(data.scores),
        source=SUBSETS,
        read_prompt=alpaca_prompt if instruction else prompt_column,
        reads=("input", "history") if instruction else (),
    )


def _unknown(columns: Collection[str], sample: Row) -> DataError:
    seen = ", ".join(sorted(columns))
    texts = [column for column in sorted({*columns} - {*PAIR}) if isinstance(sample.get(column), (str, list))]
    prompt = f"if {texts[0]} holds the prompt, data.columns: {{prompt: {texts[0]}}}; " if texts else ""
    missing = prompt if {*PAIR} <= {*columns} else ""
    known: dict[str, str] = {}
    for layout in LAYOUTS:
        known.setdefault(layout.name, ", ".join(layout.needs))
    return DataError(
        f"the columns ({seen}) are of no known row schema",
        f"{missing}data.columns renames columns; data.answers with data.label or data.scores describes rows of your "
        f"own. Known: {'; '.join(f'{name}: {needs}' for name, needs in known.items())}",
    )


def unread(layout: Layout, rows: Sequence[Row], columns: Collection[str], data: DataSection) -> list[str]:
    """The columns that nobody reads.

    Args:
        layout: that reads the rows.
        rows: as `data.columns` renames them.
        columns: their columns, without those that were renamed.
        data: the recipe's section.

    Raises:
        DataError: they say which answer is better, or hold a part of the prompt, and the renames hide it.
    """
    left = sorted(set(columns) - layout.columns)
    renamed = data.columns
    # a column that is renamed to margin says more than by how much: its sign says which answer is better
    labels = [column for column in (*left, renamed.get("margin", "")) if _LIKE_LABELS.fullmatch(column)]
    if labels and renamed.keys() & set(PAIR) and data.row_schema == "auto":
        chosen, rejected = (renamed.get(name, name) for name in PAIR)
        values = sorted({label_key(row.get(labels[0], row.get("margin"))) for row in rows[:1000]})
        whole = {*columns, *renamed.values()}
        native = next((known.name for known in LAYOUTS if known.label and whole >= {*known.needs}), None)
        raise DataError(
            f"data.columns makes {chosen} the better answer of every row, but the column {labels[0]} looks as if it "
            f"said which one is better (its values: {', '.join(values[:6])})",
            f"leave data.columns out: row schema {native} reads these columns"
            if native
            else f"data.answers: [{chosen}, {rejected}], data.label: {labels[0]} and data.better (what its values say) "
            f"read it; data.row_schema: pair says that {chosen} is the better answer all the same",
        )
    parts = [column for column in ("input", "history") if column in left and any(row.get(column) for row in rows)]
    if parts and renamed.get("prompt") == "instruction":
        raise DataError(
            f"data.columns renames instruction to prompt, which leaves out {' and '.join(parts)}, a part of the prompt",
            "leave that rename out: row schema alpaca reads instruction with input, system and history",
        )
    return left
