"""The tokenised entries of a mixture as one split."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from rmtrain.data.token_cache import Lost, Omitted, TokenizedSplit


def join_splits(parts: Sequence[TokenizedSplit]) -> TokenizedSplit:
    """One split of the parts of a mixture, one after another; its fingerprint is over theirs."""
    from datasets import concatenate_datasets

    if len(parts) == 1:
        return parts[0]
    dropped: dict[str, Lost] = {}
    omitted: dict[str, Omitted] = {}
    identical: Counter[str] = Counter()
    for part in parts:
        identical.update(part.identical)
        for cause, lost in part.dropped.items():
            dropped[cause] = dropped[cause].plus(lost) if cause in dropped else lost
        for what, left in part.omitted.items():
            before = omitted.get(what, left._replace(rows=0))
            omitted[what] = before._replace(rows=before.rows + left.rows)
    return TokenizedSplit(
        hashlib.sha256(" ".join(part.fingerprint for part in parts).encode()).hexdigest(),
        concatenate_datasets([part.table for part in parts]),
        dropped,
        dict(identical),
        sum(part.truncated for part in parts),
        omitted,
    )
