"""What a split loses when it is tokenised, what is kept as a tie, and what the chat template leaves out."""

from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple

from rmtrain.data.template import REFUSED, TOO_LONG, UNKNOWN, TemplateRefusalError
from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.data.types import PreferenceGroup

OVER_LENGTH = "over length"
IDENTICAL = ("identical after rendering", "identical after truncation")  # the cause in a whole group, and in a cut one


class Lost(NamedTuple):
    """What tokenisation dropped from a split for one cause."""

    rows: int
    completions: int
    preferences: int
    first: str  # id of the first group
    why: str = ""  # details on the first group


class Omitted(NamedTuple):
    """What a chat template leaves out of a split's rows."""

    rows: int
    first: str  # id of the first group
    words: str  # the beginning of its omitted text


@dataclass
class TokenReport:
    """What happened to the groups and preferences of a split."""

    drop_identical: bool = False
    dropped: dict[str, Lost] = field(default_factory=dict)  # by cause
    identical: dict[str, int] = field(default_factory=dict)  # preferences kept between the same tokens, by cause
    truncated: int = 0  # groups
    omitted: dict[str, Omitted] = field(default_factory=dict)  # by what the chat template leaves out of kept groups

    @property
    def refused(self) -> dict[str, Lost]:
        """The rows that the renderer refused, by cause."""
        return {cause: self.dropped[cause] for cause in (REFUSED, UNKNOWN, TOO_LONG) if cause in self.dropped}

    def keep(
        self, group: PreferenceGroup, tokens: TokenizedGroup | None, refusal: TemplateRefusalError | None
    ) -> TokenizedGroup | None:
        """Count a group, and return its kept part."""
        if tokens is None:
            cause, why = (refusal.cause, refusal.message) if refusal else (OVER_LENGTH, "")
            self._lose(cause, Lost(1, len(group.completions), len(group.preferences), group.id, why))
            return None
        if identical := sum(tokens.identical):
            cause = IDENTICAL[tokens.truncated]
            if not self.drop_identical:
                self.tie(cause, identical)
            else:
                left = tuple(compress(tokens.preferences, (not same for same in tokens.identical)))
                rows, completions = (0, 0) if left else (1, len(group.completions))
                self._lose(cause, Lost(rows, completions, identical, group.id))
                if not left:
                    return None
                tokens = tokens._replace(preferences=left)
        self.truncated += tokens.truncated
        for omission in tokens.omitted:
            self.omit(omission.what, Omitted(1, group.id, omission.words))
        return tokens

    def tie(self, cause: str, preferences: int) -> None:
        """Count preferences between completions of the same tokens that are kept."""
        self.identical[cause] = self.identical.get(cause, 0) + preferences

    def omit(self, what: str, omitted: Omitted) -> None:
        """Count what the chat template leaves out of further groups."""
        before = self.omitted.get(what, omitted._replace(rows=0))
        self.omitted[what] = before._replace(rows=before.rows + omitted.rows)

    def _lose(self, cause: str, lost: Lost) -> None:
        before = self.dropped.get(cause, lost._replace(rows=0, completions=0, preferences=0))
        self.dropped[cause] = before._replace(
            rows=before.rows + lost.rows,
            completions=before.completions + lost.completions,
            preferences=before.preferences + lost.preferences,
        )

    def add(self, other: "TokenReport") -> None:
        """Count what another report counts, of groups that come after those of this one."""
        for cause, lost in other.dropped.items():
            self._lose(cause, lost)
        for cause, count in other.identical.items():
            self.tie(cause, count)
        self.truncated += other.truncated
        for what, omitted in other.omitted.items():
            self.omit(what, omitted)
