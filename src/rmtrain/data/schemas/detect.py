"""Finding the schema of a source's rows: the recipe's schema, or the one that fits the columns."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from rmtrain.data.schemas.doubts import constant_label, refuse_lists_as_texts, repeated_prompts, unread_columns
from rmtrain.data.schemas.messages import list_in, messages_in, turns
from rmtrain.data.schemas.prompts import alpaca_prompt, prompt_column
from rmtrain.data.schemas.published import PAIR, SCHEMAS, SUBSETS
from rmtrain.data.schemas.ranks import is_rank, refuse_ranks_as_scores
from rmtrain.data.schemas.readers import read_ultrafeedback
from rmtrain.data.schemas.rows import ParsedRow, is_there, named, rename
from rmtrain.data.schemas.schema import Label, RowSchema, label_key
from rmtrain.data.sources import SourceRows
from rmtrain.data.types import Row
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import DataSection

_PROMPTS = ("prompt", "instruction", "question", "context", "conversations", "messages")


class SchemaError(DataError):
    """The columns fit no schema, or not the recipe's schema."""


class SchemaChoice(NamedTuple):
    """How the rows of a source are read."""

    schema: RowSchema
    columns: Mapping[str, str]  # the recipe's renames
    notes: list[str]  # notes for the user, such as on unread columns

    def read(self, row: Row) -> ParsedRow:
        """Read one row of the source.

        Raises:
            RowFault: the row does not fit the schema.
        """
        return self.schema.read(rename(row, self.columns) if self.columns else row)


def choose_schema(source: SourceRows, data: DataSection) -> SchemaChoice:
    """Find the schema of a source's rows.

    Raises:
        SchemaError: no schema fits, a column to rename is missing, or a rename would hide a label.
    """
    every, source = source.rows, source.sample
    columns = {name for row in source.rows for name in row}
    try:
        unseen = [theirs for theirs in data.columns.values() if not is_there(source.rows, theirs)]
        if missing := [theirs for theirs in unseen if not is_there(every, theirs)]:
            ours = next(ours for ours, theirs in data.columns.items() if theirs == missing[0])
            raise DataError(
                f"there is no column {missing[0]!r} to rename to {ours!r}",
                f"correct data.columns; the columns are: {named(columns)}",
            )
        rows = [rename(row, data.columns) for row in source.rows] if data.columns else source.rows
        columns = (columns - {*data.columns.values()}) | data.columns.keys()
        for key, column in (("votes", data.votes), ("preference_weights", data.preference_weights)):
            if column is not None and column not in columns:
                raise DataError(
                    f"there is no column {column!r} with {key.rpartition('_')[2]}",
                    f"correct data.{key}; the columns are: {named(columns)}",
                )
        sample = _sample(rows, columns)
        schema = find_schema(columns, sample, data)
        schema = replace(schema, votes=data.votes or "", weights=data.preference_weights or "")
        refuse_ranks_as_scores(schema, data.columns)
        unread = unread_columns(schema, rows, columns, data)
        if data.row_schema == "auto":
            refuse_lists_as_texts(schema, rows)
        partly = _columns_of_some_files(source, rows, schema)
    except DataError as error:
        raise SchemaError(f"{source.description}: {error.message}", error.hint) from None
    opened = {theirs.partition(".")[0] for theirs in data.columns.values()}  # a key of their objects is read
    unused = [column or "one without a heading" for column in unread if column not in opened]
    notes = [f"columns that are not used: {named(unused)}"] if unused else []
    if not schema.prompt and isinstance(sample.get("chosen"), str):
        notes.append("no column holds a prompt: the shared beginning of chosen and rejected is the prompt, as in TRL")
    notes += [f"columns that only some of the files have: {', '.join(partly)}"] if partly else []
    if schema.name == "answers" and schema.ranked:
        notes.append(f"{', '.join(schema.scores)} taken as ranks: the smallest is the best")
    notes += [*repeated_prompts(schema, rows), *constant_label(schema, rows)]
    if "margin" in columns & schema.columns:
        notes.append("the column margin gives each pair's score gap; the loss subtracts loss.margin times this gap")
    return SchemaChoice(schema, data.columns, notes)


def _sample(rows: Sequence[Row], columns: set[str]) -> Row:
    """The first value of each column."""
    sample: Row = {}
    for row in rows:
        sample |= {name: value for name, value in row.items() if value is not None and name not in sample}
        if len(sample) == len(columns):
            break
    return sample


def _columns_of_some_files(source: SourceRows, rows: Sequence[Row], schema: RowSchema) -> list[str]:
    """The schema's columns that only some of the source's files have.

    Raises:
        DataError: a file lacks a column that the schema needs.
    """
    columns: list[set[str]] = []
    start = 0
    for shard in source.shards:
        columns.append({name for row in rows[start : start + shard.rows] for name in row})
        start += shard.rows
        if lacking := [need for need in schema.needs if need.partition(".")[0] not in columns[-1]]:
            raise DataError(
                f"{shard.name} lacks the column {lacking[0]}, which other files of the source have",
                f"its columns are: {named(columns[-1])}",
            )
    partly = {name for some in columns for name in some if not all(name in others for others in columns)}
    return sorted(partly & schema.columns)


def find_schema(columns: Collection[str], sample: Row, data: DataSection) -> RowSchema:
    """The recipe's schema, or the one that fits the renamed columns; `sample` has a value of each.

    Raises:
        DataError: no schema fits, or several do; the hint says how to choose one.
    """
    if data.answers:
        return _described(columns, sample, data)
    known = [schema for schema in SCHEMAS if data.row_schema in ("auto", schema.name)]
    fitting = [schema for schema in known if all(_has(columns, sample, need) for need in schema.needs)]
    if data.row_schema == "auto":
        fitting = [schema for schema in fitting if schema.when is None or schema.when(sample)]
        fitting = [schema for schema in fitting if not schema.tokens] or fitting  # texts are preferred to token ids
        if not fitting:
            raise _unknown(columns, sample)
    elif not fitting:
        options = sorted(([need for need in schema.needs if need not in columns] for schema in known), key=len)
        raise DataError(
            f"row schema {data.row_schema} needs the column{'s'[: len(options[0]) > 1]} {', '.join(options[0])}; "
            f"the rows have: {named(columns)}",
            "data.columns renames columns, such as `chosen: good_answer`",
        )
    best = [one for one in fitting if not any(_is_stricter(other, one) for other in fitting)]
    # these two first, since pairs are derived from such rows
    best = [schema for schema in best if schema.name in ("ultrafeedback", "completions")] or best
    names = list(dict.fromkeys(schema.name for schema in best))
    if len(names) > 1 and best[0].name not in ("ultrafeedback", "completions"):
        raise DataError(
            f"the columns ({named(columns)}) fit several row schemas: {', '.join(names)}",
            f"name one, such as data.row_schema: {names[0]}",
        )
    return _with_choices(best[0], columns, data)


def _has(columns: Collection[str], sample: Row, need: str) -> bool:
    column, _, key = need.partition(".")
    if not key or column not in columns:
        return column in columns
    entries = list_in(sample.get(column)) or [None]
    return isinstance(entries[0], dict) and key in entries[0]


def _is_stricter(other: RowSchema, one: RowSchema) -> bool:
    """Whether `other` requires all that `one` requires, and more."""
    more = set(other.needs) - set(one.needs) or (other.when is not None and one.when is None)
    return bool(more) and set(one.needs) <= set(other.needs)


def _with_choices(schema: RowSchema, columns: Collection[str], data: DataSection) -> RowSchema:
    """A published schema with the recipe's choice of score or label."""
    if schema.name == "ultrafeedback":
        return replace(schema, reader=partial(read_ultrafeedback, score=data.score))
    if data.label is None:
        return schema
    if schema.label is None or data.label not in columns:
        what = f"row schema {schema.name} has no label" if schema.label is None else "there is no such column"
        raise DataError(
            f"data.label names {data.label}, but {what}",
            f"name the answers with data.answers; the columns are: {named(columns)}",
        )
    label = _label(data.label, data)
    return replace(schema, label=label if label.better else replace(schema.label, columns=(data.label,)))


def _label(column: str, data: DataSection) -> Label:
    better = {label_key(value): answer for value, answer in data.better.items()}
    return Label((column,), better, frozenset(map(label_key, data.ties)))


def _described(columns: Collection[str], sample: Row, data: DataSection) -> RowSchema:
    """The schema given by the recipe's answers, label and scores."""
    needs = [name.partition(".")[0] for name in (*data.answers, *data.scores)] + ([data.label] if data.label else [])
    if lacking := [name for name in needs if name not in columns]:
        raise DataError(
            f"data.answers, data.label and data.scores name the column {lacking[0]}, which does not exist",
            f"the columns are: {named(columns)}",
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
            f"say which, such as data.columns: {{prompt: question}}; the columns are: {named(columns)}",
        )
    ranks = [column for column in data.scores if is_rank(column)]
    if ranks and len(ranks) < len(data.scores):
        raise DataError(
            f"data.scores names ranks, of which the smallest is the best, beside scores: {', '.join(data.scores)}",
            "name columns of one kind",
        )
    alpaca = prompts == ["instruction"]
    return RowSchema(
        "answers",
        tuple(needs),
        tuple(data.answers),
        prompts[0] if prompts else "",
        _label(data.label, data) if data.label else None,
        tuple(data.scores),
        ranked=bool(ranks),
        source=SUBSETS,
        read_prompt=alpaca_prompt if alpaca else prompt_column,
        reads=("input", "history") if alpaca else (),
    )


def _unknown(columns: Collection[str], sample: Row) -> DataError:
    texts = [column for column in sorted({*columns} - {*PAIR}) if isinstance(sample.get(column), (str, list))]
    prompt = f"if {texts[0]} holds the prompt, data.columns: {{prompt: {texts[0]}}}; " if texts else ""
    missing = prompt if {*PAIR} <= {*columns} else ""
    known: dict[str, str] = {}  # the usual ones first
    for schema in sorted(SCHEMAS, key=lambda schema: schema.name not in ("pair", "completions")):
        known.setdefault(schema.name, ", ".join(schema.needs))
    return DataError(
        f"the columns ({named(columns)}) fit no known row schema",
        _other_spelling(columns)
        or f"{missing}data.columns renames columns, as in {{chosen: good}}; data.answers with data.label or data.scores"
        f" describes rows of your own; known: {', '.join(f'{name} ({needs})' for name, needs in known.items())}",
    )


def _other_spelling(columns: Collection[str]) -> str:
    """A hint on columns whose names differ from a schema's only in case or separators."""
    plain = {re.sub(r"[\W_]", "", column).casefold(): column for column in columns}
    for schema in (known for known in SCHEMAS if known.when is None):
        theirs = {need: plain.get(re.sub(r"[\W_]", "", need).casefold()) for need in schema.needs}
        if None not in theirs.values():
            renames = ", ".join(f"{need}: {json.dumps(name)}" for need, name in theirs.items() if need != name)
            return f"data.columns: {{{renames}}} makes them {schema.name} rows"
    return ""
