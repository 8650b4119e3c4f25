"""A checkpoint on a split: rows, figures, and the files that keep them."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from rmtrain.data.load import SplitData
from rmtrain.data.prepare import require_most, token_notes, tokenize_named
from rmtrain.data.render import Renderer
from rmtrain.data.responses import mark_responses
from rmtrain.data.token_cache import TokenizedSplit
from rmtrain.data.tokenize import OverLength
from rmtrain.data.types import PreferenceGroup
from rmtrain.display import Display
from rmtrain.errors import InputError
from rmtrain.evaluation.results import ScoredRow, scored_row, summarise, write_rows
from rmtrain.files import write_json, writing
from rmtrain.model.checkpoint import Checkpoint
from rmtrain.model.devices import process_state, require_agreement
from rmtrain.model.policy import Policy
from rmtrain.model.published.pair_rm import PairRenderer
from rmtrain.scoring.policy import score_policy
from rmtrain.scoring.score import Progress, score_groups


def score_rows(
    checkpoint: Checkpoint | Policy,
    name: str,
    groups: Sequence[PreferenceGroup],
    tokens_per_batch: int,
    path: Path,
    display: Display,
    write: Callable[[Path, list[ScoredRow]], None] = write_rows,
    split: SplitData | None = None,
    drops: bool = False,
) -> list[ScoredRow]:
    """Score groups and write their rows file, whole; an interrupted scoring goes on where it stopped.

    Args:
        checkpoint: the reward model, or the policy.
        name: of the groups, for the display.
        groups: what to score; longer ones are truncated.
        tokens_per_batch: most tokens through the backbone at once.
        path: of the rows file.
        display: of the main process.
        write: writes that file, on the main process.
        split: that the groups are of; messages say where their rows are.
        drops: leave out the groups that the chat template refuses, up to a fifth of all.

    Returns:
        The rows, on every process.

    Raises:
        InputError: the chat template refuses a group, or with `drops` too many.
        RunFailedError: the processes have read different rows or weights; or as `score_groups`.
        WriteError: the file can't be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)

    def progress(done: int, total: int) -> None:
        display.progress(f"score {name}", done, total)

    def partial_of(tokens: str) -> Path:
        # the name says what is being scored with what, so that nothing else is taken up again
        require_agreement(f"{tokens} {checkpoint.fingerprint}", f"rows or weights for {name}")
        return path.with_name(f".{path.name}-{tokens[:16]}-{checkpoint.fingerprint[:16]}.partial")

    if isinstance(checkpoint.renderer, PairRenderer):
        what = repr([checkpoint.renderer.contract(), groups]).encode("utf-8", "surrogatepass")
        partial = partial_of(hashlib.sha256(what).hexdigest())
        with _kept(partial, display):
            rows = _compared_rows(cast(Checkpoint, checkpoint), groups, tokens_per_batch, partial, progress, display)
    else:
        tokens, rule = tokenize_for(checkpoint, name, groups, display)
        groups = _tokenized(groups, tokens, checkpoint.renderer, name, split, drops, display)
        tokenized, partial = tokens.groups(), partial_of(tokens.fingerprint)
        how = (tokens_per_batch, partial, progress, display.note)
        with _kept(partial, display):
            if isinstance(checkpoint, Policy):
                marked = mark_responses(groups, tokenized, checkpoint.renderer, checkpoint.max_length, rule)
                rewards = score_policy(checkpoint, marked, *how)
            else:
                rewards = score_groups(checkpoint.model, tokenized, checkpoint.renderer.pad_id, *how)
        rows = [
            scored_row(group, values, made.spread([*map(len, made.suffixes)]), made.truncated, sum(made.identical))
            for group, values, made in zip(groups, rewards, tokenized, strict=True)
        ]
    if process_state().is_main_process:
        with _kept(partial, display):
            write(path, rows)
        for left in _partials(partial):
            left.unlink()
    return rows


def _tokenized(
    groups: Sequence[PreferenceGroup],
    tokens: TokenizedSplit,
    renderer: Renderer,
    name: str,
    split: SplitData | None,
    drops: bool,
    display: Display,
) -> Sequence[PreferenceGroup]:
    """The groups that could be tokenised, with what there is to say of the others."""
    place = split.place if split is not None else "group {}".format
    cause, lost = tokens.refused or ("", None)
    if lost and not drops:
        raise InputError(
            f"{place(lost.first)}: {lost.why}", f"every row must be scored; rows that are {cause}: {lost.rows}"
        )
    require_most(tokens, place)
    for note in token_notes(tokens, place, groups, renderer):
        display.note(f"{name}: {note}")
    if not lost:
        return groups
    kept = set(tokens.table["id"])
    return [group for group in groups if group.id in kept]


def _partials(partial: Path) -> list[Path]:
    """The files to which finished batches were written: a policy and its reference have one each."""
    return [left for left in partial.parent.iterdir() if left.name.startswith(partial.name)]


def remove_partials(path: Path) -> None:
    """Take away what interrupted scorings left beside a rows file, of whatever rows and weights they were."""
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name}-") and left.name.endswith(".partial"):
            left.unlink()


@contextlib.contextmanager
def _kept(partial: Path, display: Display) -> Iterator[None]:
    """Say, where scoring ends early, which files it goes on from; empty ones are removed."""
    try:
        yield
    except BaseException:
        if process_state().is_main_process:
            for left in _partials(partial):
                if left.stat().st_size:
                    display.note(f"what is scored so far is in {left}; the same command goes on from it")
                else:
                    left.unlink()
        raise


def _compared_rows(
    checkpoint: Checkpoint,
    groups: Sequence[PreferenceGroup],
    tokens_per_batch: int,
    partial: Path,
    progress: Progress,
    display: Display,
) -> list[ScoredRow]:
    """Rows of PairRM: each preference asked in both orders; the margin is half the difference of the two logits."""
    renderer = cast(PairRenderer, checkpoint.renderer)
    made = [renderer.tokenize_pairs(group) for group in groups]
    asked = [tokenized for tokenized, _ in made if tokenized.suffixes]
    logits = iter(
        score_groups(checkpoint.model, asked, renderer.pad_id, tokens_per_batch, partial, progress, display.note)
    )
    rows = []
    for group, (tokenized, lengths) in zip(groups, made, strict=True):
        found = next(logits) if tokenized.suffixes else ()
        margins = tuple((one - other) / 2 for one, other in zip(found[::2], found[1::2], strict=True))
        places = tokenized.suffix_of
        identical = sum(one == other for one, other in zip(places[::2], places[1::2], strict=True))
        row = scored_row(group, (), lengths, tokenized.truncated, identical)
        rows.append(row._replace(margins=margins))
    return rows


def reading_of(checkpoint: Checkpoint | Policy) -> dict[str, Any]:
    """What a result says of the weights and of how they were read; a policy and its reference may have two dtypes."""
    read: dict[str, Any] = {}
    if isinstance(checkpoint, Policy):
        read["policy"] = {"reference": checkpoint.reference, "log_probabilities": checkpoint.reading}
        read["policy"] |= {"prompt": checkpoint.prompt} if checkpoint.prompt is not None else {}
        dtype = ", ".join(dict.fromkeys(checkpoint.dtypes))
    else:
        read |= {"published": checkpoint.published} if checkpoint.published else {}
        dtype = str(checkpoint.model.module.compute_dtype).removeprefix("torch.")
    return {
        **read,
        "dtype": dtype,
        "max_length": checkpoint.max_length,
        "weights_fingerprint": checkpoint.weights,
    }


def tokenize_for(
    checkpoint: Checkpoint | Policy, name: str, groups: Sequence[PreferenceGroup], display: Display
) -> tuple[TokenizedSplit, OverLength]:
    """Groups by the checkpoint's rendering, length and rule for longer ones, and that rule."""
    rule: OverLength = checkpoint.scoring.over_length
    return tokenize_named(name, groups, checkpoint.renderer, checkpoint.max_length, rule, display), rule


def evaluate_split(
    checkpoint: Checkpoint | Policy, name: str, split: SplitData, tokens_per_batch: int, folder: Path, display: Display
) -> dict[str, Any]:
    """Ranking accuracy on a split, as `eval --json` gives it; writes `<name>.json` and `<name>.rows.jsonl`."""
    path = folder / f"{name}.rows.jsonl"
    rows = score_rows(checkpoint, name, split.groups, tokens_per_batch, path, display, split=split, drops=True)
    result = {
        **summarise(rows, checkpoint.where, name, str(path)),
        "refused": len(split.groups) - len(rows),
        **reading_of(checkpoint),
        "data": split.origin,
    }
    if process_state().is_main_process:
        write_json(folder / f"{name}.json", result)
    return result
