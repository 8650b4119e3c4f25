"""Groups of a scoring task → tokens; groups that the chat template refuses are dropped or reported."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rmtrain.data.prepare import require_few_refusals, tokenize_named
from rmtrain.data.responses import count_responses
from rmtrain.data.template import TemplateRefusalError
from rmtrain.data.token_notes import token_notes
from rmtrain.data.tokenize import Tokenization, TokenizedGroup, tokenize_groups
from rmtrain.data.types import PreferenceGroup
from rmtrain.errors import InputError
from rmtrain.scoring.scorer import GroupScore, ScoringTask


@dataclass(frozen=True)
class TokenizedTask:
    """The tokenised groups of a task."""

    groups: Sequence[PreferenceGroup]  # those that the chat template accepts
    tokens: Sequence[TokenizedGroup]  # those of each group
    fingerprint: str  # digest of the groups, the rendering and the rules
    # tokens of each completion after its prompt, by group; None if not asked for
    counts: Sequence[tuple[int, ...]] | None = None

    def scores(self, rewards: Sequence[Sequence[float]], task: ScoringTask) -> list[GroupScore | None]:
        """Scores of all groups of the task from the rewards of the tokenised ones; None for refused groups."""
        counts = self.counts if self.counts is not None else [()] * len(self.tokens)
        scores = (
            GroupScore(
                tuple(values),
                lengths,
                tokens.truncated,
                sum(tokens.identical),
                omitted=tokens.omitted,
                tokens=tokens.spread(tokens.lengths),
            )
            for tokens, values, lengths in zip(self.tokens, rewards, counts, strict=True)
        )
        kept = {group.id for group in self.groups}
        return [next(scores) if group.id in kept else None for group in task.groups]


def _tokenize_alone(task: ScoringTask, how: Tokenization) -> TokenizedTask:
    """Tokenise a task without the token cache and without other processes."""
    refused: dict[str, TemplateRefusalError] = {}
    tokenized = [*tokenize_groups(task.groups, how, refused)]
    if refused and not task.drop_refused:
        first = next(group.id for group in task.groups if group.id in refused)
        raise type(refused[first])(f"{task.place(first)}: {refused[first].message}", refused[first].hint)
    task.refusals.update({name: error.message for name, error in refused.items()})
    kept = [(group, tokens) for group, tokens in zip(task.groups, tokenized, strict=True) if tokens is not None]
    return TokenizedTask([group for group, _ in kept], [tokens for _, tokens in kept], "")


def tokenize_task(task: ScoringTask, how: Tokenization) -> TokenizedTask:
    """Tokenise the groups of a task.

    Raises:
        InputError: the chat template refuses a group, or with `drop_refused` more than a fifth of all.
    """
    tokenized = _tokenize_alone(task, how) if task.alone else _tokenize_together(task, how)
    if not task.counts:
        return tokenized
    return replace(tokenized, counts=count_responses(tokenized.groups, tokenized.tokens, how))


def _tokenize_together(task: ScoringTask, how: Tokenization) -> TokenizedTask:
    """Tokenise a task through the token cache, once for all processes."""
    tokenized = tokenize_named(task.name, task.groups, how, task.display)
    refused = tokenized.report.refused
    for cause, lost in refused.items() if not task.drop_refused else ():
        raise InputError(
            f"{task.place(lost.first)}: {lost.why}", f"every row must be scored; rows that are {cause}: {lost.rows}"
        )
    require_few_refusals(tokenized, task.place)
    for note in token_notes(tokenized.report, task.place, task.groups, how.renderer):
        task.display.note(f"{task.name}: {note}")
    kept = set(tokenized.table["id"]) if refused else None
    groups = task.groups if kept is None else [group for group in task.groups if group.id in kept]
    return TokenizedTask(groups, tokenized.groups(), tokenized.fingerprint)
