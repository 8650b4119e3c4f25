"""Notes on curated splits: shared prompts, leaks, checks with benchmarks, weights, and keys that do not apply."""

from collections.abc import Iterator, Mapping, Sequence

from rmtrain.data.split_data import SplitData
from rmtrain.data.splits import Leak, find_leaks
from rmtrain.data.types import PreferenceGroup


def notes_on(splits: Mapping[str, SplitData], leaks: Sequence[Leak]) -> Iterator[str]:
    """The notes on the splits, each once with its entries."""
    by_note: dict[str, list[str]] = {}
    for name, split in splits.items():
        for part, groups in split.by_part():
            gapless = sum(preference.gap is None for group in groups for preference in group.preferences)
            ignored = name == "train" and part.entry.section.min_gap and gapless
            told = [f"data.min_gap does not apply to preferences without scores: {gapless:,}"] if ignored else []
            told += _weights_note(groups) if name == "train" and part.entry.section.preference_weights else []
            for note in (*part.report.notes, *told):
                by_note.setdefault(note, []).append(part.label(name))
    yield from (f"{', '.join(names)}: {note}" for note, names in by_note.items())
    yield from (f"{name}: {check}" for name, split in splits.items() for check in split.report.checks)
    for leak in leaks:
        end = f"rows of {leak.first} with one: {leak.rows}, {'dropped' if leak.dropped else 'kept'}"
        yield f"prompts in both {leak.first} and {leak.second}: {leak.prompts}; {end}"


def _weights_note(groups: Sequence[PreferenceGroup]) -> list[str]:
    """What the weights of the preferences are."""
    weights = [[preference.weight for preference in group.preferences] for group in groups]
    every = [weight for own in weights for weight in own]
    mean = sum(sum(own) / len(own) for own in weights) / len(weights)
    return [
        f"weights of {len(every):,} preferences: {min(every):g} to {max(every):g}, mean over groups {mean:.4g}; "
        "the loss divides them by the mean over all groups that are trained on"
    ]


def note_shared_prompts(names: Sequence[str], keys: Sequence[Sequence[bytes]]) -> list[str]:
    """A note for each two entries of the training split with common prompts."""
    return [
        f"train: prompts in both {shared.first} and {shared.second}: {shared.prompts}, kept"
        for shared in find_leaks(dict(zip(names, keys, strict=True)), drop=False)
    ]
