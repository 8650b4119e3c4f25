"""Notes on curated splits: shared prompts, leaks, checks with benchmarks, weights, and keys that do not apply."""

from array import array
from collections.abc import Iterator, Mapping, Sequence

from rmtrain.data.digests import Digests
from rmtrain.data.split_data import SplitData
from rmtrain.data.splits import Leak, find_leaks
from rmtrain.data.types import PreferenceGroup


def notes_on(splits: Mapping[str, SplitData], leaks: Sequence[Leak]) -> Iterator[str]:
    """The notes on the splits, each once with its entries."""
    by_note: dict[str, list[str]] = {}
    for name, split in splits.items():
        for part, groups in split.by_part():
            section, trains = part.entry.section, name == "train"
            notes = [*part.report.notes]
            notes += _gaps_note(groups) if trains and section.min_gap else []
            notes += _weights_note(groups) if trains and section.preference_weights else []
            for note in notes:
                by_note.setdefault(note, []).append(part.label(name))
    yield from (f"{', '.join(names)}: {note}" for note, names in by_note.items())
    yield from (f"{name}: {check}" for name, split in splits.items() for check in split.report.checks)
    for leak in leaks:
        end = f"rows of {leak.first} with such a prompt: {leak.rows}, {'dropped' if leak.dropped else 'kept'}"
        yield f"prompts in both {leak.first} and {leak.second}: {leak.prompts}; {end}"


def _gaps_note(groups: Sequence[PreferenceGroup]) -> list[str]:
    """To how many preferences the smallest gap does not apply."""
    gapless = sum(preference.gap is None for group in groups for preference in group.preferences)
    return [f"preferences without scores, to which data.min_gap does not apply: {gapless:,}"] if gapless else []


def _weights_note(groups: Sequence[PreferenceGroup]) -> list[str]:
    """What the weights of the preferences are; nothing of an entry that has no group within the limit."""
    if not groups:
        return []
    means, every = array("d"), array("d")
    for group in groups:
        weights = [preference.weight for preference in group.preferences]
        means.append(sum(weights) / len(weights))
        every.extend(weights)
    mean = sum(means) / len(means)
    return [
        f"weights of {len(every):,} preferences: {min(every):g} to {max(every):g}, mean over groups {mean:.4g}; "
        "the loss divides them by the mean over all groups that are trained on"
    ]


def note_shared_prompts(names: Sequence[str], keys: Sequence[Digests]) -> list[str]:
    """A note for each two entries of the training split with common prompts."""
    return [
        f"train: prompts in both {shared.first} and {shared.second}: {shared.prompts}, kept"
        for shared in find_leaks(dict(zip(names, keys, strict=True)), drop=False)
    ]
