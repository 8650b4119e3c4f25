"""What a split loses when it is tokenised, what is kept as a tie, and what the chat template leaves out."""

from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple

from rmtrain.data.template import REFUSED, UNKNOWN, TemplateRefusalError
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

    def plus(self, other: "Lost") -> "Lost":
        """The sum of both; the first group is this one's."""
        rows, completions = self.rows + other.rows, self.completions + other.completions
        return self._replace(rows=rows, completions=completions, preferences=self.preferences + other.preferences)


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
    def refused(self) -> tuple[str, Lost] | None:
        """Why the renderer refused rows (one cause for texts, another for token ids), and these; None: it took all."""
        return next(((cause, self.dropped[cause]) for cause in (REFUSED, UNKNOWN) if cause in self.dropped), None)

    def keep(
        self, group: PreferenceGroup, tokens: TokenizedGroup | None, refusal: TemplateRefusalError | None
    ) -> TokenizedGroup | None:
        """Count a group, and return its kept part."""
        if tokens is None:
            cause, why = (refusal.cause, refusal.message) if refusal else (OVER_LENGTH, "")
            self._lose(cause, group, len(group.preferences), whole=True, why=why)
            return None
        if identical := sum(tokens.identical):
            cause = IDENTICAL[tokens.truncated]
            if not self.drop_identical:
                self.identical[cause] = self.identical.get(cause, 0) + identical
            else:
                left = tuple(compress(tokens.preferences, (not same for same in tokens.identical)))
                self._lose(cause, group, identical, whole=not left)
                if not left:
                    return None
                tokens = tokens._replace(preferences=left)
        self.truncated += tokens.truncated
        for omission in tokens.omitted:
            before = self.omitted.get(omission.what, Omitted(0, group.id, omission.words))
            self.omitted[omission.what] = before._replace(rows=before.rows + 1)
        return tokens

    def _lose(self, cause: str, group: PreferenceGroup, preferences: int, whole: bool, why: str = "") -> None:
        before = self.dropped.get(cause, Lost(0, 0, 0, group.id, why))
        self.dropped[cause] = before._replace(
            rows=before.rows + whole,
            completions=before.completions + whole * len(group.completions),
            preferences=before.preferences + preferences,
        )

    def add(self, other: "TokenReport") -> None:
        """Count what another report counts, of groups that come after those of this one."""
        for cause, lost in other.dropped.items():
            self.dropped[cause] = self.dropped[cause].plus(lost) if cause in self.dropped else lost
        for cause, count in other.identical.items():
            self.identical[cause] = self.identical.get(cause, 0) + count
        self.truncated += other.truncated
        for what, omitted in other.omitted.items():
            before = self.omitted.get(what, omitted._replace(rows=0))
            self.omitted[what] = before._replace(rows=before.rows + omitted.rows)
