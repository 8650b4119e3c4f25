"""Judged preferences: rewards of training pairs by reward models, rules that reject pairs, and the remaining rows."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.curation import NONE_LEFT
from rmtrain.data.ledgers import Ledger
from rmtrain.data.splits import leak_key
from rmtrain.data.types import Preference, PreferenceGroup, Row, from_json, has_votes, has_weights, holds_ids
from rmtrain.errors import DataError, InputError
from rmtrain.json_values import JsonObject

Margins = NDArray[np.float64]  # [P, J]: reward of the better completion minus the worse one, NaN without a judgement

KEPT = "kept"
MAJORITY = "most judges reject it"
REFUSED = "refused by the chat template of a judge"

Kind = Literal["majority", "hardest", "easiest", "refused"]


class Rule(NamedTuple):
    """A rule that rejects preferences."""

    kind: Kind
    share: float = 0.0

    @classmethod
    def of(cls, text: str) -> "Rule":
        """`majority`, `refused`, `hardest=SHARE` or `easiest=SHARE`.

        Raises:
            InputError: it is none of these.
        """
        match = re.fullmatch(r"(majority|refused)|(hardest|easiest)=(0?\.\d+)", text)
        if match is None or (match[2] and not float(match[3])):
            raise InputError(
                f"--rule {text}: no such rule", "give majority, refused, or a share such as hardest=0.1 or easiest=0.2"
            )
        return cls(cast(Kind, match[1] or match[2]), float(match[3] or 0))

    @property
    def cause(self) -> str:
        """The cause under which rejected preferences are counted."""
        named = {"majority": MAJORITY, "refused": REFUSED}
        return named.get(self.kind, f"{self.kind} {100 * self.share:g} %")

    def rejects(self, margins: Margins, refused: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each preference is rejected; only `refused` rejects one without judgements.

        `refused` says of each preference whether the chat template of a judge refuses its row.
        """
        if self.kind == "refused":
            return refused
        mean = mean_margins(margins)
        if self.kind == "majority":
            judged = ~np.isnan(margins)
            more: NDArray[np.bool_] = 2 * (judged & (np.nan_to_num(margins) < 0)).sum(1) > judged.sum(1)
            return more
        order = np.argsort(-mean if self.kind == "easiest" else mean, kind="stable")  # NaN comes last
        rejected = np.zeros(len(mean), dtype=np.bool_)
        rejected[order[: round(self.share * int((~np.isnan(mean)).sum()))]] = True
        return rejected


def agreements(margins: Margins) -> NDArray[np.float64]:
    """[P] share of judges that agree, a tie counts 1/2; NaN without judgements."""
    return _means(np.where(np.isnan(margins), np.nan, (np.sign(margins) + 1) / 2))


def mean_margins(margins: Margins) -> NDArray[np.float64]:
    """[P] mean over the judges, each divided by the root mean square of its margins, because scales differ."""
    judged = ~np.isnan(margins)
    squares = np.where(judged, np.nan_to_num(margins) ** 2, 0).sum(0) / judged.sum(0).clip(min=1)
    return _means(margins / np.where(squares > 0, np.sqrt(squares), 1))


def _means(values: Margins) -> NDArray[np.float64]:
    known = ~np.isnan(values)
    counts = known.sum(1)
    return np.where(counts > 0, np.nan_to_num(values).sum(1) / counts.clip(min=1), np.nan)


class Judge(NamedTuple):
    """A judge's results by group id: rewards of the completions, or the reason why its chat template refuses the
    group."""

    name: str
    rewards: Mapping[str, Sequence[float]]
    refused: Mapping[str, str] = {}

    def margins(self, groups: Sequence[PreferenceGroup]) -> NDArray[np.float64]:
        """[P] margins of the preferences of groups; NaN for groups without rewards."""
        margins: list[float] = []
        for group in groups:
            rewards = self.rewards.get(group.id)
            margins += [np.nan if rewards is None else rewards[p.better] - rewards[p.worse] for p in group.preferences]
        return np.array(margins, dtype=np.float64)

    def figures(self, groups: Sequence[PreferenceGroup]) -> JsonObject:
        """Number of judged preferences, share of agreement (a tie counts 1/2), and number of refused rows."""
        margins = self.margins(groups)
        known = margins[~np.isnan(margins)]
        agreement = float(((np.sign(known) + 1) / 2).mean()) if len(known) else None
        return {"ckpt": self.name, "n": len(known), "agreement": agreement, "refused": len(self.refused)}


@dataclass(frozen=True)
class Judged:
    """The groups of a training split, and the judges' margins of all their P preferences in order."""

    groups: Sequence[PreferenceGroup]
    margins: Margins
    verdicts: Sequence[str]  # P: KEPT, or the cause of the first rule that rejects it
    judges: Sequence[Judge]

    @classmethod
    def by(cls, rules: Sequence[Rule], groups: Sequence[PreferenceGroup], judges: Sequence[Judge]) -> "Judged":
        """Apply rules to preferences; the first rule that rejects a preference gives its cause."""
        margins = np.stack([judge.margins(groups) for judge in judges], axis=1)
        names = {name for judge in judges for name in judge.refused}
        refused = np.array([group.id in names for group in groups for _ in group.preferences], dtype=np.bool_)
        verdicts = [KEPT] * len(margins)
        for rule in rules:
            for place in np.flatnonzero(rule.rejects(margins, refused)):
                verdicts[place] = rule.cause if verdicts[place] == KEPT else verdicts[place]
        return cls(groups, margins, verdicts, judges)

    def preferences(self) -> Ledger:
        """The ledger of the preferences."""
        return _ledger(self.verdicts)

    def rows(self) -> Ledger:
        """The ledger of the rows; a row is dropped if none of its preferences is kept."""
        return _ledger([_cause(self.verdicts[part]) for _, part in self._parts()])

    def source(self, mark: bool, weight: float | None = None) -> list[Row]:
        """The rows of the new source, as `completions` rows with the judges' margins of each preference.

        With `mark`, all rows and preferences are kept, and `verdicts` holds the verdicts of the rules. With
        `weight` too; then `weights` holds this weight for rejected preferences, times their own.
        """
        mark = mark or weight is not None
        agreement, mean, rows = agreements(self.margins), mean_margins(self.margins), []
        soft, weighted = has_votes(self.groups), weight is not None or has_weights(self.groups)
        for group, part in self._parts():
            places = [place for place in range(part.start, part.stop) if mark or self.verdicts[place] == KEPT]
            if places:
                left = tuple(self._weighed(group.preferences[place - part.start], place, weight) for place in places)
                row = source_row(group._replace(preferences=left), soft, weighted)
                row["agreement"] = [_number(agreement[place]) for place in places]
                row["margin"] = [_number(mean[place]) for place in places]
                row["margins"] = [[_number(value) for value in self.margins[place]] for place in places]
                row |= {"verdicts": [self.verdicts[place] for place in places]} if mark else {}
                rows.append(row)
        return rows

    def _weighed(self, preference: Preference, place: int, weight: float | None) -> Preference:
        if weight is None or self.verdicts[place] == KEPT:
            return preference
        return preference._replace(weight=preference.weight * weight)

    def _parts(self) -> list[tuple[PreferenceGroup, slice]]:
        ends = np.cumsum([len(group.preferences) for group in self.groups]).tolist()
        starts = [0, *ends]
        return [(group, slice(start, end)) for group, start, end in zip(self.groups, starts, ends, strict=False)]


def _cause(verdicts: Sequence[str]) -> str:
    causes = {*verdicts}
    return KEPT if KEPT in causes else causes.pop() if len(causes) == 1 else NONE_LEFT


def _ledger(verdicts: Sequence[str]) -> Ledger:
    counts = Counter(verdicts)
    return Ledger(len(verdicts), counts.pop(KEPT, 0), dict(counts))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def source_row(group: PreferenceGroup, soft: bool = False, weighted: bool = False) -> Row:
    """A group as a row of the `completions` schema, which reads back as the same group.

    With `soft`, it has a `votes` column for data.votes: the share of raters for the first of two answers or, for more
    answers, a share for each preference. With `weighted`, it has a `weights` column for data.preference_weights.

    Raises:
        DataError: the group holds token ids, which the schema does not allow.
    """
    if holds_ids((group.prompt, *group.completions)):
        raise DataError(f"row {group.id}: rows of token ids can't be curated", "give their texts")
    arguments = from_json(group.arguments)
    beside = {name: arguments.pop(name) for name in ("tools", "documents") if name in arguments}
    beside |= {"chat_template_kwargs": arguments} if arguments else {}
    return {
        "id": group.id,
        "source": group.source,
        "prompt": [message.as_dict() for message in group.prompt],
        "completions": [[message.as_dict() for message in completion] for completion in group.completions],
        "preferences": [[preference.better, preference.worse] for preference in group.preferences],
        **({"votes": _votes(group)} if soft else {}),
        **({"weights": [preference.weight for preference in group.preferences]} if weighted else {}),
        **({"scores": list(group.scores)} if group.scores is not None else {}),
        **beside,
    }


def _votes(group: PreferenceGroup) -> float | list[float]:
    shares = [preference.probability for preference in group.preferences]
    if len(group.completions) > 2:
        return shares
    return shares[0] if group.preferences[0].better == 0 else 1 - shares[0]


def folds_of(groups: Sequence[PreferenceGroup], folds: int, seed: int) -> list[int]:
    """The fold of each group: prompts are assigned in the order of a digest of seed and prompt."""
    keys = [leak_key(group.prompt) for group in groups]
    order = sorted({*keys}, key=lambda key: hashlib.sha256(b"%d:%b" % (seed, key)).digest())
    fold = {key: place % folds for place, key in enumerate(order)}
    return [fold[key] for key in keys]


_BINS = 16


def histogram(judged: Judged) -> dict[str, list[Any]]:
    """Histograms of the mean margins of kept and rejected preferences; the outer bins include all values beyond
    them."""
    mean = mean_margins(judged.margins)
    known = ~np.isnan(mean)
    edges = np.linspace(-2.0, 2.0, _BINS + 1)
    kept = np.array([verdict == KEPT for verdict in judged.verdicts])
    clipped = mean.clip(edges[0], edges[-1])
    counts = [np.histogram(clipped[known & part], edges)[0].tolist() for part in (kept, ~kept)]
    return {"edges": edges.tolist(), "kept": counts[0], "rejected": counts[1]}
