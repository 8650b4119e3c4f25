"""Hub datasets through the real clients, against a server on the loopback interface."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer

pytestmark = pytest.mark.slow

# Reads each [source, split] of its first argument and prints, for each, what came of it; the clients read HF_ENDPOINT
# when they are imported, hence a process of its own.
READER = """
import json, sys
from rmtrain.data.reader import read_source
from rmtrain.errors import DataError

results = []
for source, split in json.loads(sys.argv[1]):
    try:
        found = read_source(source, split, evaluation=True)
    except DataError as error:
        results.append({"error": error.message, "hint": error.hint})
    else:
        results.append({
            "prompts": [group.prompt[0].content for group in found.groups], "revision": found.revision,
            "fingerprint": found.fingerprint, "source": found.source, "schema": found.report.schema,
            "gaps": [group.preferences[0].gap for group in found.groups],
        })
print(json.dumps(results))
"""


def read(hub: HubServer, home: Path, sources: list[tuple[str, str | None]], **environment: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", READER, json.dumps(sources)]
    done = subprocess.run(
        command, env=hub.environment(home, **environment), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    result: list[dict[str, Any]] = json.loads(done.stdout)
    return result


def pairs(start: int, stop: int) -> list[dict[str, Any]]:
    return [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(start, stop)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def raw(prompt: str) -> dict[str, Any]:
    rating = {"Rating": "4", "Rationale": "so"}
    completions = [
        {"response": text, "annotations": {"honesty": {**rating, "Rating": value}}, "fine-grained_score": 1.0}
        for text, value in (("a", "4"), ("b", "N/A"), ("c", "2"))
    ]
    return {"instruction": prompt, "source": "flan", "completions": completions, "models": ["m"] * 3}


def make_repos(folder: Path) -> dict[tuple[str, str], Path]:
    write_jsonl(folder / "pairs" / "train.jsonl", pairs(0, 6))
    write_jsonl(folder / "pairs" / "test.jsonl", pairs(6, 9))
    (folder / "raw" / "data").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist([raw("q1"), raw("q2")]), folder / "raw" / "data" / "train-00000-of-00001.parquet"
    )
    for config in ("en", "de"):
        write_jsonl(folder / "configs" / config / "test.jsonl", [{**pairs(0, 1)[0], "prompt": config}])
    card = (
        "---\nconfigs:\n- config_name: en\n  data_files: en/*.jsonl\n- config_name: de\n  data_files: de/*.jsonl\n---\n"
    )
    (folder / "configs" / "README.md").write_text(card)
    write_jsonl(folder / "moving" / "train.jsonl", pairs(0, 2))
    write_jsonl(folder / "broken" / "train.jsonl", pairs(0, 3))
    with (folder / "broken" / "train.jsonl").open("a") as file:
        file.write('{"prompt": "q"\n')
    return {("dataset", f"org/{name}"): folder / name for name in ("pairs", "raw", "configs", "moving", "broken")}


class Online(NamedTuple):
    hub: HubServer
    home: Path
    results: dict[tuple[str, str | None], dict[str, Any]]


COMMIT = "0" * 40
ASKED: list[tuple[str, str | None]] = [
    ("org/pairs", "test"),
    ("org/pairs@main", "train"),
    ("org/pairs", "validation"),
    ("org/pairs", None),
    ("org/pairs@nope", "test"),
    (f"org/pairs@{COMMIT}", "test"),
    ("org/pairs:nope", "test"),
    ("org/raw", None),
    ("org/configs", None),
    ("org/configs:de", None),
    ("org/moving", None),
    ("org/broken", None),
    ("org/none", None),
    ("org/gated", None),
]


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Online]:
    folder = tmp_path_factory.mktemp("hub")
    repos = make_repos(folder)
    gated = ("dataset", "org/gated")
    with HubServer({**repos, gated: folder / "pairs"}, gated=[gated]) as hub:
        results = read(hub, folder / "home", ASKED)
        yield Online(hub, folder / "home", dict(zip(ASKED, results, strict=True)))


def test_rows_come_with_the_commit_that_the_hub_announced(online: Online) -> None:
    commit = online.hub.commit(("dataset", "org/pairs"))
    test = online.results["org/pairs", "test"]
    assert test["prompts"] == ["q6", "q7", "q8"]
    assert test["revision"] == commit
    assert test["source"] == f"org/pairs@{commit} (test)"
    train = online.results["org/pairs@main", "train"]
    assert (len(train["prompts"]), train["revision"]) == (6, commit)
    assert train["fingerprint"] != test["fingerprint"]


def test_parquet_with_nested_columns_is_read_as_raw_ultrafeedback(online: Online) -> None:
    found = online.results["org/raw", None]
    assert (found["schema"], found["prompts"], found["gaps"]) == ("ultrafeedback", ["q1", "q2"], [3.0, 3.0])


def test_a_configuration_is_named_after_a_colon(online: Online) -> None:
    assert online.results["org/configs:de", None]["prompts"] == ["de"]


@pytest.mark.parametrize(
    ("asked", "message", "hint"),
    [
        (("org/pairs", "validation"), "org/pairs: no split 'validation'", "it has: train, test"),
        (("org/pairs", None), "org/pairs: it has several splits, so one must be named", "name one of: train, test"),
        (("org/pairs@nope", "test"), "org/pairs: no revision 'nope'", "/datasets/org/pairs/commits"),
        ((f"org/pairs@{COMMIT}", "test"), f"org/pairs: no revision '{COMMIT}'", "/datasets/org/pairs/commits"),
        (("org/pairs:nope", "test"), "org/pairs: no such configuration", "it has: default"),
        (("org/configs", None), "org/configs: name one of its configurations", "org/configs:NAME, with one of: en, de"),
        (("org/broken", None), "org/broken: can't be loaded: JSON parse error", ""),
        (("org/none", None), "org/none: no such dataset on http://127.0.0.1", "hf auth login"),
        (("org/gated", None), "org/gated: the dataset is gated and this account has no access", "accept its terms at"),
    ],
)
def test_refusals_say_what_and_how_in_a_line(online: Online, asked: Any, message: str, hint: str) -> None:
    found = online.results[asked]
    assert found["error"].startswith(message)
    assert hint in found["hint"]
    assert "\n" not in found["error"] + found["hint"]


def test_offline_takes_the_cache_and_says_its_commit(online: Online) -> None:
    commit = online.hub.commit(("dataset", "org/pairs"))
    before = len(online.hub.requests)
    newest, pinned, other, branch, absent = read(
        online.hub,
        online.home,
        [
            ("org/pairs", "test"),
            (f"org/pairs@{commit}", "test"),
            (f"org/pairs@{COMMIT}", "test"),
            ("org/pairs@main", "test"),
            ("org/none", "test"),
        ],
        HF_HUB_OFFLINE="1",
    )
    assert len(online.hub.requests) == before
    assert newest == pinned == online.results["org/pairs", "test"]
    assert other["error"] == f"org/pairs: commit {COMMIT} could not be read; the cache holds {commit}"
    assert "the commit of 'main' can't be looked up in offline mode" in branch["error"]
    assert absent["error"] == "org/none: not in the cache, and offline mode is on"


def test_new_content_is_a_new_commit_and_never_the_cached_rows(online: Online) -> None:
    repo = ("dataset", "org/moving")
    old = online.results["org/moving", None]
    assert (old["prompts"], old["revision"]) == (["q0", "q1"], online.hub.commit(repo))
    write_jsonl(online.hub.repos[repo] / "train.jsonl", pairs(2, 4))
    (new,) = read(online.hub, online.home, [("org/moving", None)])
    assert (new["prompts"], new["revision"]) == (["q2", "q3"], online.hub.commit(repo))
    assert new["revision"] != old["revision"]


def test_an_unreachable_hub(tmp_path: Path) -> None:
    with HubServer({}) as hub:
        pass
    (dead,) = read(hub, tmp_path, [("org/pairs", None)])
    assert dead["error"].startswith(f"org/pairs: {hub.endpoint} can't be reached")
    assert "HF_HUB_OFFLINE=1" in dead["hint"]


def test_a_folder_of_the_same_name_is_read_as_one_and_a_revision_is_of_the_hub(
    online: Online, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "org" / "pairs" / "test.jsonl", pairs(90, 92))
    monkeypatch.chdir(tmp_path)
    local, there = read(online.hub, online.home, [("org/pairs", "test"), ("org/pairs@main", "test")])
    assert (local["source"], local["revision"], len(local["prompts"])) == ("org/pairs (test)", None, 2)
    assert (there["revision"] is not None, len(there["prompts"])) == (True, 3)
