"""The benchmarks as their authors keep them on the hub, fetched from a stand-in on loopback."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer

from rmtrain.data.benchmarks.rewardbench1 import PRIOR_COUNTS, PRIOR_LEFT_OUT

PAIR = {"id": 7, "prompt": "Hello?", "chosen": "Hello, how can I help?", "rejected": "No."}
CORE = {**PAIR, "chosen_model": "human", "rejected_model": "alpaca", "subset": "alpacaeval-easy"}
# as published: the prompt in messages, and a subset of their own that is not the split's name
PRIOR = {"id": "3", "prompt": [{"role": "user", "content": "Hi"}], "chosen": "A", "rejected": "B", "subset": "train"}
RB2 = {"id": "1", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1, "subset": "Math"}
RB2 |= {"num_incorrect": 3, "total_completions": 4, "models": ["m"] * 4, "additional_metadata": {"category": None}}
RM = {"id": "5", "prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"}
JUDGE = {"pair_id": "x", "original_id": "1", "source": "livebench-math", "question": "q", "response_model": "m"}
JUDGE |= {"response_A": "a", "response_B": "b", "label": "B>A"}

READ = """
import json
from rmtrain.data.benchmarks import BENCHMARKS, benchmark_named
from rmtrain.data.benchmarks.load import core_groups, prior_groups

found, notes = {}, []
for name in BENCHMARKS:
    groups, source = core_groups(benchmark_named(name), None, None, notes.append)
    found[name] = {"groups": [(g.id, g.source, len(g.completions)) for g in groups], **source}
groups, sources = prior_groups(benchmark_named("rewardbench-1"), ["allenai/preference-test-sets"], notes.append)
found["prior"] = {"groups": [(g.id, g.source, len(g.completions)) for g in groups], "sources": sources}
claude, _ = core_groups(benchmark_named("judgebench"), None, "claude", notes.append)
print(json.dumps({**found, "claude": len(claude), "notes": notes}))
"""


def write_dataset(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    """A dataset repository as the hub's own conversion lays it out: one Parquet file a split."""
    from datasets import Dataset

    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.slow
def test_every_benchmark_and_the_prior_sets_are_read_from_the_hub(tmp_path: Path) -> None:
    raw = [{**CORE, "subset": "left-out"}]
    prior = {name: [PRIOR, PRIOR] for name in (*PRIOR_COUNTS, *PRIOR_LEFT_OUT)}
    rm_bench = tmp_path / "rm-bench"
    rm_bench.mkdir()
    (rm_bench / "total_dataset.json").write_text(json.dumps([RM, {**RM, "id": "6"}]))
    repos = {
        ("dataset", "allenai/reward-bench"): write_dataset(tmp_path / "rb1", {"filtered": [CORE], "raw": raw}),
        ("dataset", "allenai/preference-test-sets"): write_dataset(tmp_path / "prior", prior),
        ("dataset", "allenai/reward-bench-2"): write_dataset(tmp_path / "rb2", {"test": [RB2]}),
        ("dataset", "THU-KEG/RM-Bench"): rm_bench,
        ("dataset", "ScalerLab/JudgeBench"): write_dataset(
            tmp_path / "judge", {"claude": [JUDGE, {**JUDGE, "pair_id": "y"}], "gpt": [JUDGE]}
        ),
    }
    with HubServer(repos) as hub:
        environment = hub.environment(tmp_path / "hf_home", HF_HUB_OFFLINE="0")
        done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        commit = hub.commit(("dataset", "allenai/reward-bench"))
    found = json.loads(done.stdout)
    assert found["rewardbench-1"]["groups"] == [["alpacaeval-easy/7", "alpacaeval-easy", 2]]
    assert found["rewardbench-1"]["revision"] == commit
    assert found["rewardbench-2"]["groups"] == [["Math/1", "Math", 4]]
    assert found["rm-bench"]["groups"] == [["chat/5", "chat", 6], ["chat/6", "chat", 6]]
    assert found["judgebench"]["groups"] == [["x", "Math", 2]]
    assert found["claude"] == 2
    assert [group[1] for group in found["prior"]["groups"]] == [name for name in PRIOR_COUNTS for _ in range(2)]
    assert len(found["prior"]["sources"]) == len(PRIOR_COUNTS)
    assert not [request for request in hub.requests if "pku" in request and request.startswith("GET")]
