"""Datasets of the Hugging Face hub at one commit, why a model can't be found, and the hub's errors in one line."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from rmtrain.data.rows import StoredRows
from rmtrain.data.types import Row
from rmtrain.errors import DataError, InputError, first_line

_HUB_SECONDS = 5.0  # seconds to connect, and then to answer
_MODEL_FILES = ("config.json", "adapter_config.json", "tokenizer_config.json", "tokenizer.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# by name, since versions of huggingface_hub use different HTTP libraries, which raise these errors
_UNREACHABLE = frozenset(
    ["ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError", "ReadError", "ReadTimeout", "TimeoutException"]
)


class Absent(NamedTuple):
    """Why a model is neither a folder nor on the hub, and how to mend it."""

    why: str
    hint: str


def require_present(name: str, revision: str | None, error: type[InputError]) -> None:
    """Raise `error` if a model is neither a folder nor on the hub."""
    if absent := why_absent(name, revision):
        raise error(f"{name}: {absent.why}", absent.hint)


def why_absent(name: str, revision: str | None = None) -> Absent | None:
    """Why a model can't be found; None if it is found, or may exist."""
    from huggingface_hub import HfApi, constants, errors, try_to_load_from_cache
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if os.path.isdir(name):
        return None
    path = os.path.abspath(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or os.path.isfile(name):
        why = "no such folder" if name == path else f"no such folder: {path}"
        return Absent(why, _near(path) or "give the folder of a model, or a hub id such as org/name")
    try:
        validate_repo_id(name)
        if any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in _MODEL_FILES):
            return None
        HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
    except errors.HFValidationError:
        return Absent(f"no folder {path}, and not a hub id", "give the folder of a model, or a hub id such as org/name")
    except errors.GatedRepoError:
        return None
    except errors.RevisionNotFoundError:
        why = f"no revision {revision!r} of it on {constants.ENDPOINT}"
        return Absent(why, f"see {constants.ENDPOINT}/{name}/commits/main")
    except errors.RepositoryNotFoundError:
        why = f"no folder {path}, and no such model on {constants.ENDPOINT}"
        return Absent(why, f"{_near(path) or 'check the name'}; for a private model log in first: hf auth login")
    except errors.OfflineModeIsEnabled:
        why = f"no folder {path}, and not in the cache of the hub, while offline mode is on"
        return Absent(why, _near(path) or "give a folder, or unset HF_HUB_OFFLINE to download the model")
    except Exception as error:
        if type(error).__name__ in _UNREACHABLE:
            why = f"no folder {path}, and {constants.ENDPOINT} can't be reached ({type(error).__name__})"
            return Absent(why, _near(path) or "check the network, or give a folder that holds the model")
    return None


def _near(path: str) -> str:
    """The folders beside a missing one whose names are similar, as a hint; empty if there are none."""
    beside = os.path.dirname(path)
    names = [entry.name for entry in os.scandir(beside) if entry.is_dir()] if os.path.isdir(beside) else []
    near = difflib.get_close_matches(os.path.basename(path), names, n=3)
    return f"similar folders in {beside}: {', '.join(near)}" if near else ""


def resolve_commit(dataset: str, revision: str | None) -> str | None:
    """The commit that a branch, tag or short commit (None: the default branch) points to now.

    None in offline mode without a revision. A full commit is returned unchanged.

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
            f"{dataset}@{revision}: the commit of {revision!r} can't be looked up in offline mode",
            "give the full commit (40 hexadecimal digits), or no revision for the newest copy in the cache",
        ) from None
    except Exception as error:
        raise _explain(error, dataset, revision) from error


def load_hub(dataset: str, config: str | None, commit: str | None) -> tuple[str, dict[str, Any]]:
    """Download a dataset, or read it from the cache: its commit, and a `datasets.Dataset` for each split.

    `commit` None takes the newest copy in the cache, the only choice in offline mode. If the hub fails, `datasets`
    takes any commit in the cache; this function refuses a commit other than the requested one.

    Raises:
        DataError: as `resolve_commit`; also no such configuration, damaged data, or another commit.
    """
    from datasets import load_dataset

    try:
        # the prefix keeps `datasets` from reading a local folder of the same name
        loaded = load_dataset(f"hf://datasets/{dataset}", config, revision=commit)
    except Exception as error:
        raise _explain(error, dataset, commit) from error
    splits = {str(name): table for name, table in loaded.items()}
    cached = _commit_of(splits.values())
    if cached is None or commit not in (None, cached):
        raise DataError(
            f"{dataset}: commit {commit} could not be read; the cache holds {cached or 'no known commit'}",
            "leave offline mode, or name the commit in the cache",
        )
    return cached, splits


def rows_of(table: Any, source: str, commit: str | None = None) -> StoredRows:
    """All rows of a `datasets.Dataset` as plain values; reading them raises DataError if the cached data is damaged."""
    return StoredRows(partial(_rows_in, table, source, commit), len(table))


def _rows_in(table: Any, source: str, commit: str | None) -> Iterator[Row]:
    try:
        for batch in table.iter(batch_size=1000):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))
    except Exception as error:
        raise _explain(error, source, commit) from error


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
    """An error of the hub's clients as one line with a hint."""
    from huggingface_hub import constants, errors

    def fault(what: str, hint: str) -> DataError:
        return DataError(f"{dataset}: {what}", hint)

    page = f"{constants.ENDPOINT}/datasets/{dataset}"
    chain = list(_causes(error))
    # first, since the client treats a gated repository as missing; `datasets` keeps only the message
    if any(isinstance(cause, errors.GatedRepoError) or "is a gated dataset" in str(cause) for cause in chain):
        hint = f"accept its terms at {page}, then log in: hf auth login"
        return fault("the dataset is gated and this account has no access", hint)
    for cause in chain:
        unreachable = type(cause).__name__ in _UNREACHABLE
        if isinstance(cause, errors.RevisionNotFoundError):
            return fault(f"no revision {revision!r}", f"see {page}/commits")
        if isinstance(cause, errors.OfflineModeIsEnabled) or (unreachable and constants.HF_HUB_OFFLINE):
            return fault("not in the cache, and offline mode is on", "unset HF_HUB_OFFLINE, or load it once online")
        if isinstance(cause, errors.RepositoryNotFoundError):
            hint = "check the id; for a private dataset log in first: hf auth login"
            return fault(f"no such dataset on {constants.ENDPOINT}, or it is private", hint)
        if isinstance(cause, errors.HfHubHTTPError):
            status = getattr(cause.response, "status_code", "an error")
            return fault(f"{constants.ENDPOINT} answered {status}", "try again later")
        if unreachable:
            hint = "check the network, or use only the cache with HF_HUB_OFFLINE=1"
            return fault(f"{constants.ENDPOINT} can't be reached ({type(cause).__name__})", hint)
    return _explain_loading(chain, dataset)


def _explain_loading(chain: list[BaseException], dataset: str) -> DataError:
    """An error of `datasets` itself: a configuration that is missing, or a damaged file."""
    text = " ".join(str(chain[0]).split())
    names = ", ".join(re.findall(r"'([^']+)'", text[text.find("[") : text.find("]")]))
    if "onfig name is missing" in text:
        return DataError(f"{dataset}: name one of its configurations", f"write {dataset}:NAME, with one of: {names}")
    if "BuilderConfig" in text and "not found" in text:
        return DataError(f"{dataset}: no such configuration", f"it has: {names}")
    if isinstance(chain[0], StopIteration):  # `datasets` gives no more detail
        return DataError(f"{dataset}: can't be loaded: a data file is empty")
    causes = [cause for cause in chain if type(cause).__name__ != "DatasetGenerationError" and str(cause).strip()]
    return DataError(f"{dataset}: can't be loaded: {first_line(causes[0] if causes else chain[0])[:300]}")
