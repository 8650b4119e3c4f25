"""What speaks against the schema that was found for rows: unread labels, lists written as text, prompts said twice."""

import contextlib
import re
from collections.abc import Collection, Sequence

from rmtrain.data.schemas.messages import list_in
from rmtrain.data.schemas.published import PAIR, SCHEMAS
from rmtrain.data.schemas.rows import RowFault, is_texts
from rmtrain.data.schemas.schema import RowSchema, label_key
from rmtrain.data.types import Row
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import DataSection

_LIKE_LABELS = re.compile(
    r"winner(_.*)?|labels?|preference(s|_strength)?|overall_preference|preferred.*|choice|better.*|safer.*|verdict|votes?",
    re.IGNORECASE,
)
_LIKE_SCORES = re.compile(r"(.*_)?(scores?|ratings?|rank(s|ing|ings)?)", re.IGNORECASE)

_MANY = 20  # rows that would hardly all prefer the answer in the same place


def refuse_lists_as_texts(schema: RowSchema, rows: Sequence[Row]) -> None:
    """Raises DataError if all answers of pairs are texts that hold lists of texts, as a CSV file has lists."""
    cells = [row.get(column) for row in rows for column in schema.answers if set(schema.answers) == {*PAIR}]
    texts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    if texts and len(texts) == len(cells) and all(is_texts(list_in(text)) for text in texts):
        raise DataError(
            "every chosen and rejected is a text that holds a list, such as " + texts[0][:60],
            "if they are lists of answers, save them as lists, in JSON lines or Parquet; if each is one answer, set "
            "data.row_schema: pair",
        )


def repeated_prompts(schema: RowSchema, rows: Sequence[Row]) -> list[str]:
    """A note if most answers are texts that begin with their prompt."""
    if not schema.prompt or schema.tokens or len(schema.answers) != 2:
        return []
    twice = []
    for row in rows:
        cells = [row.get(column) for column in (schema.prompt, *schema.answers)]
        prompt, *answers = [cell.strip() for cell in cells if isinstance(cell, str)] or [""]
        if len(answers) == len(schema.answers):
            twice.append(bool(prompt) and all(answer.startswith(prompt) for answer in answers))
    if sum(twice) * 2 <= len(twice):
        return []
    return [
        f"most answers begin with their prompt, which the model then reads twice: {sum(twice)} of the first "
        f"{len(twice)} rows; to read it once, set data.columns: {{other: {schema.prompt}}} and data.row_schema: pair"
    ]


def constant_label(schema: RowSchema, rows: Sequence[Row]) -> list[str]:
    """A note if the label calls the same answer the better one in each of many rows, as a misread scale does."""
    if schema.label is None or len(schema.answers) < 2:
        return []
    better = []
    for row in rows:
        with contextlib.suppress(RowFault):
            better.append(schema.label.verdict(row, len(schema.answers))[0])
    stated = [schema.answers[answer] for answer in better if answer is not None and answer < len(schema.answers)]
    if len(stated) < _MANY or len({*stated}) > 1:
        return []
    return [
        f"the label {' and '.join(schema.label.columns)} calls {stated[0]} the better answer in each of the first "
        f"{len(stated):,} rows that are no ties: look at what its values mean"
    ]


def unread_columns(schema: RowSchema, rows: Sequence[Row], columns: Collection[str], data: DataSection) -> list[str]:
    """The columns of rows, as `data.columns` renames them, that the schema does not read.

    Raises:
        DataError: the renames hide a column that labels the better answer or holds a part of the prompt.
    """
    unread = sorted(set(columns) - schema.columns)
    renamed = data.columns
    # the sign of a column renamed to margin may say which answer is better
    labels = [column for column in (*unread, renamed.get("margin", "")) if _LIKE_LABELS.fullmatch(column)]
    if labels and renamed.keys() & set(PAIR) and data.row_schema == "auto":
        chosen, rejected = (renamed.get(name, name) for name in PAIR)
        values = sorted({label_key(row.get(labels[0], row.get("margin"))) for row in rows[:1000]})
        original = {*columns, *renamed.values()}
        native = next((known.name for known in SCHEMAS if known.label and original >= {*known.needs}), None)
        raise DataError(
            f"data.columns makes {chosen} the better answer of every row, but the column {labels[0]} seems to say "
            f"which one is better (its values: {', '.join(values[:6])})",
            f"leave data.columns out: row schema {native} reads these columns"
            if native
            else f"to read it, set data.answers: [{chosen}, {rejected}], data.label: {labels[0]}, and data.better, "
            f"which says what its values mean; if {chosen} is always the better answer, set data.row_schema: pair",
        )
    marks = [column for column in unread if _LIKE_LABELS.fullmatch(column) or _LIKE_SCORES.fullmatch(column)]
    if marks and data.row_schema == "auto" and schema.name == "alpaca" and schema.answers == ("output",):
        raise DataError(
            f"alpaca rows have their best answer first in output, but the column {marks[0]} seems to say which is best",
            f"to read it, set data.answers: [output], and data.label or data.scores for {marks[0]}; if the first is "
            "always the best, set data.row_schema: alpaca",
        )
    parts = [column for column in ("input", "history") if column in unread and any(row.get(column) for row in rows)]
    if parts and renamed.get("prompt") == "instruction":
        raise DataError(
            f"data.columns renames instruction to prompt, which leaves out {' and '.join(parts)}, a part of the prompt",
            "leave that rename out: row schema alpaca reads instruction with input, system and history",
        )
    return unread
