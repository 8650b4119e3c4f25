"""The tokenised entries of a mixture as one split."""

import hashlib
from collections.abc import Sequence

from rmtrain.data.token_cache import TokenizedSplit
from rmtrain.data.token_report import TokenReport


def join_splits(parts: Sequence[TokenizedSplit]) -> TokenizedSplit:
    """The parts of a mixture as one split; its fingerprint is computed from theirs."""
    from datasets import concatenate_datasets

    if len(parts) == 1:
        return parts[0]
    report = TokenReport()
    for part in parts:
        report.add(part.report)
    return TokenizedSplit(
        hashlib.sha256(" ".join(part.fingerprint for part in parts).encode()).hexdigest(),
        concatenate_datasets([part.table for part in parts]),
        report.dropped,
        report.identical,
        report.truncated,
        report.omitted,
    )
