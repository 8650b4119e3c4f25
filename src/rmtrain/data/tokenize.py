"""PreferenceGroup → TokenizedGroup: each prompt's tokens once, then what each completion adds."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.render import Renderer
from rmtrain.data.types import Conversation, Message, Preference, PreferenceGroup
from rmtrain.errors import DataError

Tokens = NDArray[np.int32]
OverLength = Literal["truncate_prompt", "truncate_completion", "drop", "error"]

_CHUNK = 512  # groups tokenised in one call of the fast tokenizer, which works on them in parallel
_CACHE_VERSION = "1"  # raise when this module or rendering changes what tokens come out


class TokenizedGroup(NamedTuple):
    """A group's K sequences, split at their longest common token prefix.

    Sequence k is `prefix` followed by `suffixes[k]`; no suffix is empty, since rewards are read at its last token. The
    split is by tokens, so it is exact whatever the chat template or the tokenizer do at the border of the prompt.
    """

    id: str
    source: str
    prefix: Tokens  # [P]
    suffixes: tuple[Tokens, ...]  # K arrays of at least one token
    preferences: tuple[Preference, ...]
    truncated: bool
    starts: tuple[int, ...] = ()  # K places at which the responses start; only where log-probabilities are asked for

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each whole sequence."""
        return tuple(len(self.prefix) + len(suffix) for suffix in self.suffixes)


def split_prefix(sequences: Sequence[Sequence[int]]) -> tuple[Tokens, tuple[Tokens, ...]]:
    """Split K sequences at their longest common prefix, leaving each at least one token."""
    arrays = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
    shared = min(len(array) for array in arrays) - 1
    for array in arrays[1:]:
        different = np.flatnonzero(array[:shared] != arrays[0][:shared])
        shared = int(different[0]) if len(different) else shared
    return arrays[0][:shared], tuple(array[shared:] for array in arrays)


def tokenize_groups(
    groups: Sequence[PreferenceGroup], renderer: Renderer, max_length: int, over_length: OverLength
) -> Iterator[TokenizedGroup | None]:
    """Tokenise groups in order; None stands for one dropped as over-length.

    All completions of a group keep the same part of their prompt, so that they are judged on the same question.

    Args:
        groups: what to tokenise.
        renderer: the rendering contract.
        max_length: tokens of prompt and one completion.
        over_length: `truncate_prompt` cuts the oldest prompt text first, and a completion only where that is not
            enough; `truncate_completion` cuts the end of long completions, and the prompt only where that is not
            enough; `drop` yields None; `error` raises. Template tokens, BOS and end token always survive.

    Raises:
        DataError: an over-length group under `error`, or a template that alone exceeds max_length.
    """
    for start in range(0, len(groups), _CHUNK):
        chunk = groups[start : start + _CHUNK]
        flat = renderer.tokenize([group.prompt + completion for group in chunk for completion in group.completions])
        position = 0
        for group in chunk:
            sequences = flat[position : position + len(group.completions)]
            position += len(group.completions)
            longest = max(len(sequence) for sequence in sequences)
            truncated = longest > max_length
            if truncated:
                if over_length == "drop":
                    yield None
                    continue
                if over_length == "error":
                    raise DataError(
                        f"group {group.id}: {longest} tokens, more than data.max_length {max_length}",
                        "raise data.max_length or choose another data.over_length",
                    )
                sequences = truncate_group(group, sequences, renderer, max_length, over_length == "truncate_prompt")[1]
            prefix, suffixes = split_prefix(sequences)
            yield TokenizedGroup(group.id, group.source, prefix, suffixes, group.preferences, truncated)


def truncate_group(
    group: PreferenceGroup, sequences: list[list[int]], renderer: Renderer, max_length: int, prompt_first: bool
) -> tuple[Conversation, list[list[int]]]:
    """A group's prompt cut to the length rule, and its sequences with the completions cut too.

    Args:
        group: one that is too long.
        sequences: its rendering.
        renderer: the rendering contract.
        max_length: tokens of prompt and one completion.
        prompt_first: completions are cut only where the prompt is not enough; else the other way round.

    Raises:
        DataError: the template alone exceeds max_length.
    """
    prompt, completions = group.prompt, list(group.completions)
    for cut_prompt in (prompt_first, not prompt_first):
        # each pass takes off the excess measured; tokens that merge anew at the cut can leave one or two for the next
        while max(excess := [len(sequence) - max_length for sequence in sequences]) > 0:
            before = prompt, completions
            if cut_prompt:
                prompt = _cut(renderer, prompt, max(excess), from_start=True)
            else:
                pairs = zip(completions, excess, strict=True)
                completions = [_cut(renderer, completion, over, from_start=False) for completion, over in pairs]
            if (prompt, completions) == before:
                break
            sequences = renderer.tokenize([prompt + completion for completion in completions])
    if max(map(len, sequences)) > max_length:
        raise DataError(
            f"group {group.id}: the chat template alone takes more than data.max_length {max_length} tokens",
            "raise data.max_length",
        )
    return prompt, sequences


def _cut(renderer: Renderer, messages: Conversation, tokens: int, from_start: bool) -> Conversation:
    """Take `tokens` tokens of text off the first messages (or the last), leaving the messages themselves."""
    kept = list(messages)
    order = range(len(kept)) if from_start else reversed(range(len(kept)))
    for index in order:
        content = kept[index].content
        if not content or tokens <= 0:
            continue
        encoded = renderer.tokenizer(content, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = encoded["offset_mapping"]
        if len(spans) <= tokens:
            rest = ""
        elif from_start:
            rest = content[spans[tokens][0] :]
        else:
            rest = content[: spans[len(spans) - tokens][0]]
        if rest == content:  # a cut inside a character's bytes: take the whole character
            rest = content[1:] if from_start else content[:-1]
        kept[index] = Message(kept[index].role, rest)
        tokens -= len(spans)
    return tuple(kept)


class TokenizedSplit(NamedTuple):
    """A split as a memory-mapped table, one row a group."""

    fingerprint: str  # of groups, tokenizer, rendering and length rule
    table: Any  # datasets.Dataset; a row is what group_to_row makes
    over_length_dropped: int
    truncated: int

    def __len__(self) -> int:
        return len(self.table)

    def group(self, index: int) -> TokenizedGroup:
        """The group at a row."""
        return row_to_group(self.table[index])

    def groups(self) -> list[TokenizedGroup]:
        """All groups, in memory."""
        return [row_to_group(row) for row in self.table]

    def lengths(self) -> list[tuple[int, tuple[int, ...]]]:
        """For each row, tokens of the shared prefix and of each suffix: what batch planning needs."""
        prefixes = self.table["prefix_length"]
        return list(zip(prefixes, (tuple(lengths) for lengths in self.table["suffix_lengths"]), strict=True))


def row_to_group(row: dict[str, Any]) -> TokenizedGroup:
    """A row of a TokenizedSplit's table as a group."""
    tokens = np.asarray(row["tokens"], dtype=np.int32)
    borders = np.cumsum([row["prefix_length"], *row["suffix_lengths"]])
    parts = np.split(tokens, borders[:-1])
    gaps = [None if gap is None else float(gap) for gap in row["gaps"]]
    preferences = tuple(Preference(b, w, gap) for (b, w), gap in zip(row["preferences"], gaps, strict=True))
    return TokenizedGroup(row["id"], row["source"], parts[0], tuple(parts[1:]), preferences, row["truncated"])


def group_to_row(group: TokenizedGroup) -> dict[str, Any]:
    """The inverse of row_to_group."""
    return {
        "id": group.id,
        "source": group.source,
        "tokens": np.concatenate([group.prefix, *group.suffixes]),
        "prefix_length": len(group.prefix),
        "suffix_lengths": [len(suffix) for suffix in group.suffixes],
        "preferences": [[p.better, p.worse] for p in group.preferences],
        "gaps": [p.gap for p in group.preferences],
        "truncated": group.truncated,
    }


def tokenize_split(
    groups: Sequence[PreferenceGroup],
    renderer: Renderer,
    max_length: int,
    over_length: OverLength,
    cache: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> TokenizedSplit:
    """Tokenise a split, or take it from the cache.

    The cache key holds the groups, the tokenizer, the rendering contract and the length rule. The first of several
    processes does the work; the others wait for it on a file lock, which no collective's time-out ends.

    Args:
        groups: the split's groups.
        renderer: the rendering contract.
        max_length: tokens of prompt and one completion.
        over_length: what happens to longer ones.
        cache: folder that holds cached splits.
        progress: called with the number of groups done.

    Raises:
        DataError: as tokenize_groups.
    """
    from filelock import FileLock

    rule = [_CACHE_VERSION, renderer.contract(), max_length, over_length]
    digest = hashlib.sha256(json.dumps(rule, sort_keys=True).encode())
    digest.update(renderer.tokenizer.backend_tokenizer.to_str().encode())
    for group in groups:
        digest.update(repr(group).encode("utf-8", "surrogatepass"))
    fingerprint = digest.hexdigest()
    folder = cache / fingerprint[:32]
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{folder.name}.lock"):
        table = _read_table(folder)
        if table is None:
            tokenized = tokenize_groups(groups, renderer, max_length, over_length)
            table = _write_table(folder, tokenized, progress)
    return TokenizedSplit(fingerprint, table, len(groups) - len(table), sum(table["truncated"]))


def _read_table(folder: Path) -> Any:
    """The table in a folder; None where there is none, or one that a crash of the machine left unreadable."""
    from datasets import load_from_disk

    try:
        return load_from_disk(folder)
    except (OSError, ValueError):  # pyarrow's errors are among these
        return None


def _write_table(folder: Path, tokenized: Iterator[TokenizedGroup | None], progress: Callable[[int], None]) -> Any:
    from datasets import Dataset, Features, List, Value, load_from_disk

    features = Features(
        {
            "id": Value("string"),
            "source": Value("string"),
            "tokens": List(Value("int32")),
            "prefix_length": Value("int32"),
            "suffix_lengths": List(Value("int32")),
            "preferences": List(List(Value("int32"))),
            "gaps": List(Value("float64")),
            "truncated": Value("bool"),
        }
    )
    columns: dict[str, list[Any]] = {name: [] for name in features}
    for done, group in enumerate(tokenized, start=1):
        for name, value in (group_to_row(group) if group is not None else {}).items():
            columns[name].append(value)
        progress(done)
    # the caller holds the lock, so what lies in either place was left by a dead writer
    staging = folder.with_name(f".{folder.name}")
    for left in (staging, folder):
        shutil.rmtree(left, ignore_errors=True)
    # left to itself, datasets writes no shard for no rows, and can't read that
    Dataset.from_dict(columns, features=features).save_to_disk(staging, num_shards=1)
    staging.rename(folder)
    return load_from_disk(folder)
