"""Datasets of the Hugging Face hub, read at one commit, with the hub's errors told in one line; and absent models."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from rmtrain.errors import DataError

_HUB_SECONDS = 5.0  # to connect, and then to answer
_MODEL_FILES = ("config.json", "adapter_config.json", "tokenizer_config.json", "tokenizer.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubDataset(NamedTuple):
    """A hub dataset in the cache, at one commit."""

    name: str
    commit: str
    splits: dict[str, Any]  # a `datasets.Dataset` for each split


def why_absent(name: str, revision: str | None = None) -> str | None:
    """Why a model is neither in a folder nor on the hub; None where it is, or may be. The hub has seconds to answer."""
    from huggingface_hub import HfApi, constants, errors, try_to_load_from_cache
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if os.path.isdir(name):
        return None
    path = os.path.abspath(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or os.path.isfile(name):
        return "no such folder" if name == path else f"no such folder: {path}"
    try:
        validate_repo_id(name)
        if any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in _MODEL_FILES):
            return None
        HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
    except errors.HFValidationError:
        return f"no folder {path}, and no id of the hub"
    except errors.GatedRepoError:
        return None
    except errors.RevisionNotFoundError:
        return f"no revision {revision!r} of it on {constants.ENDPOINT}"
    except errors.RepositoryNotFoundError:
        return f"no folder {path}, and no such model on {constants.ENDPOINT}"
    except errors.OfflineModeIsEnabled:
        return f"no folder {path}, and not in the cache of the hub, while offline mode is on"
    except Exception as error:
        if type(error).__name__ in _UNREACHABLE:
            return f"no folder {path}, and {constants.ENDPOINT} can't be reached ({type(error).__name__})"
    return None


def resolve_commit(dataset: str, revision: str | None) -> str | None:
    """The commit that a branch, tag or short commit (None: the default branch) stands for now.

    None in offline mode without a revision. A full commit is taken as it stands.

    Raises:
        DataError: no such dataset or revision, no access, or the hub can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    try:
        return HfApi().dataset_info(dataset, revision=revision).sha
    except OfflineModeIsEnabled:
        if revision is None:
            return None
        raise DataError(
            f"{dataset}@{revision}: offline mode can't tell which commit {revision!r} stands for",
            "give the full commit (40 hexadecimal digits), or none for the newest copy in the cache",
        ) from None
    except Exception as error:
        raise _explain(error, dataset, revision) from error


def load_hub(dataset: str, config: str | None, commit: str | None) -> HubDataset:
    """Download a dataset, or find it in the cache, through `datasets.load_dataset`.

    `commit` None takes the newest copy in the cache, which is all that offline mode can offer. When the hub fails it,
    `datasets` falls back on whatever commit is in the cache; that is refused here.

    Raises:
        DataError: as `resolve_commit`; also no such configuration, damaged data, or another commit than asked for.
    """
    from datasets import load_dataset

    try:
        # the prefix keeps a local folder of the same name from standing in for the hub's dataset
        splits = {
            str(name): table
            for name, table in load_dataset(f"hf://datasets/{dataset}", config, revision=commit).items()
        }
    except Exception as error:
        raise _explain(error, dataset, commit) from error
    found = _commit_of(splits.values())
    if found is None or commit not in (None, found):
        raise DataError(
            f"{dataset}: commit {commit} could not be read; the cache holds {found or 'no known commit'}",
            "leave offline mode, or name the commit that is in the cache",
        )
    return HubDataset(dataset, found, splits)


def rows_of(dataset: HubDataset, split: str) -> tuple[list[dict[str, Any]], str]:
    """All rows of a split as plain values, and SHA-256 over them as JSON: a damaged cache can load without a word.

    Raises:
        DataError: the cached data is damaged.
    """
    digest = hashlib.sha256()
    rows: list[dict[str, Any]] = []
    try:
        for batch in dataset.splits[split].iter(batch_size=1000):
            columns = list(batch)
            for values in zip(*batch.values(), strict=True):
                row = dict(zip(columns, values, strict=True))
                digest.update(json.dumps(row, sort_keys=True, default=str).encode())
                rows.append(row)
    except Exception as error:
        raise _explain(error, dataset.name, dataset.commit) from error
    return rows, digest.hexdigest()


def _commit_of(tables: Iterable[Any]) -> str | None:
    """The commit in the path of the cached arrow files: .../<config>/<version>/<commit>/<file>."""
    paths = [file["filename"] for table in tables for file in table.cache_files]
    commits = {part for path in paths for part in re.split(r"[\\/]", path)[:-1] if _COMMIT.fullmatch(part)}
    return commits.pop() if len(commits) == 1 else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _explain(error: BaseException, dataset: str, revision: str | None) -> DataError:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/datasets/{dataset}"
    chain = list(_causes(error))
    for cause in chain:  # a gated repository is a kind of "not found" to the client: it must be asked for first
        # `datasets` cuts the chain of causes here, so that its words are all there is to go by
        if isinstance(cause, errors.GatedRepoError) or "is a gated dataset" in str(cause):
            return DataError(
                f"{dataset}: the dataset is gated and this account has no access",
                f"accept its terms at {page}, then log in: hf auth login",
            )
    for cause in chain:
        if isinstance(cause, errors.RevisionNotFoundError):
            return DataError(f"{dataset}: no revision {revision!r}", f"see {page}/commits")
        unreachable = type(cause).__name__ in _UNREACHABLE
        if isinstance(cause, errors.OfflineModeIsEnabled) or (unreachable and constants.HF_HUB_OFFLINE):
            return DataError(
                f"{dataset}: not in the cache, and offline mode is on", "unset HF_HUB_OFFLINE, or load it once online"
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return DataError(
                f"{dataset}: no such dataset on {constants.ENDPOINT}, or it is private",
                "check the id; for a private dataset log in first: hf auth login",
            )
        if isinstance(cause, errors.HfHubHTTPError):
            status = getattr(cause.response, "status_code", "an error")
            return DataError(f"{dataset}: {constants.ENDPOINT} answered {status}", "try again later")
        if unreachable:
            return DataError(
                f"{dataset}: {constants.ENDPOINT} can't be reached ({type(cause).__name__})",
                "check the network; HF_HUB_OFFLINE=1 uses what is in the cache",
            )
    text = " ".join(str(error).split())
    names = ", ".join(re.findall(r"'([^']+)'", text[text.find("[") : text.find("]")]))
    if "onfig name is missing" in text:
        return DataError(
            f"{dataset}: several configurations, and none named", f"name one as {dataset}:NAME, of: {names}"
        )
    if "BuilderConfig" in text and "not found" in text:
        return DataError(f"{dataset}: no such configuration", f"it has: {names}")
    if isinstance(error, StopIteration):  # all that `datasets` says of it
        return DataError(f"{dataset}: can't be loaded: a data file is empty")
    lines = [str(cause).strip() for cause in chain if type(cause).__name__ != "DatasetGenerationError"]
    reason = next((line.splitlines()[0] for line in lines if line), type(error).__name__)
    return DataError(f"{dataset}: can't be loaded: {reason[:300]}")


# by name, since the client's own HTTP library, which raises them, has changed from version to version
_UNREACHABLE = {
    "ConnectError",
    "ConnectTimeout",
    "ReadTimeout",
    "ReadError",
    "ConnectionError",
    "ProxyError",
    "TimeoutException",
}
