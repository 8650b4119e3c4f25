"""Notes on tokenised rows: ties of equal tokens, refused rows, omitted texts, and rows of token ids."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from rmtrain.data.omissions import NO_ROLES
from rmtrain.data.render import Renderer
from rmtrain.data.token_report import TokenReport
from rmtrain.data.types import TOKENS, PreferenceGroup


class TokenNote(NamedTuple):
    """A note for the user on some rows."""

    text: str
    rows: int | None = None  # how many; None if the number does not matter
    first: str = ""  # the place of the first row, and its problem

    def __str__(self) -> str:
        count = f": {self.rows}" if self.rows is not None else ""
        return f"{self.text}{count}" + (f"; the first: {self.first}" if self.first else "")


def merge_notes(notes: Iterable[TokenNote]) -> list[TokenNote]:
    """Merge the notes on several parts."""
    merged: dict[str, TokenNote] = {}
    for note in notes:
        before = merged.get(note.text)
        if before is None or before.rows is None or note.rows is None:
            merged[note.text] = before or note
        else:
            merged[note.text] = before._replace(rows=before.rows + note.rows)
    return [*merged.values()]


def token_notes(
    report: TokenReport, place: Callable[[str], str], groups: Sequence[PreferenceGroup], renderer: Renderer | None
) -> list[TokenNote]:
    """Notes on tokenised groups; `place` names the row of a group."""
    notes = [
        TokenNote(f"preferences between completions that are {cause}, kept as ties", n)
        for cause, n in report.identical.items()
    ]
    notes += [
        TokenNote(f"rows {cause}, dropped", lost.rows, f"{place(lost.first)}: {lost.why}")
        for cause, lost in report.refused.items()
    ]
    if renderer is not None:
        notes += _ids_notes(groups, renderer, place)
    for what, omitted in report.omitted.items():
        text = what if what in NO_ROLES else f"{what} text"
        left_out = f"rows whose {text} the chat template leaves out, wholly or in part"
        notes.append(TokenNote(left_out, omitted.rows, f"{place(omitted.first)}: {omitted.words!r}"))
    return notes


def _ids_notes(
    groups: Sequence[PreferenceGroup], renderer: Renderer, place: Callable[[str], str]
) -> Iterator[TokenNote]:
    """The notes on rows of token ids."""
    ids = {
        group.id: [answer[0].content for answer in group.completions if answer[0].role == TOKENS] for group in groups
    }
    if any(ids.values()):
        yield TokenNote(
            "rows hold token ids, which are used without the chat template: make sure that this model's tokenizer made "
            "them"
        )
        ends = tuple(f"{before}{token}]" for token in renderer.ends for before in (" ", "["))
        unended = [name for name, texts in ids.items() if not all(text.endswith(ends) for text in texts)]
        if unended:
            yield TokenNote("rows of token ids without an end token at the end", len(unended), place(unended[0]))
