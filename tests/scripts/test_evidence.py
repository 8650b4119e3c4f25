"""The runner and the writer of docs/evidence.md, on a two-layer model; and the page that is committed."""

import gzip
import json
from pathlib import Path
from typing import Any

import evidence
import evidence_laws
import evidence_tables
import evidence_trl
import pytest
from conftest import write_pairs
from sweep_cases import in_this_process, run

from rmtrain.evaluation.results import ScoredRow
from rmtrain.evaluation.seeds import seed_difference


def test_the_page_is_made_from_its_results() -> None:
    results = evidence.DOCS / "evidence"
    assert evidence.written(results) == (evidence.DOCS / "evidence.md").read_text(encoding="utf-8")
    assert all('"/' not in path.read_text(encoding="utf-8") for path in results.iterdir())  # no path of the machine
    assert {path.stem for path in evidence.PROTOCOLS.iterdir()} == {*evidence.NAMES}


def test_long_answers_and_then_prompts_with_few_are_left_out() -> None:
    row = {"id": "a", "prompt": "p", "completions": ["12", "1234", "1"], "scores": [0.1, 0.2, 0.3], "models": ["m"] * 3}
    assert evidence.shortened(row, None) is row
    kept = evidence.shortened(row, {"characters": 2, "at_least": 2})
    assert kept == {"id": "a", "prompt": "p", "completions": ["12", "1"], "scores": [0.1, 0.3]}
    assert evidence.shortened(row, {"characters": 2, "at_least": 3}) is None


def test_an_arm_may_have_a_base_model_of_its_own_beside_the_protocol_s(tmp_path: Path) -> None:
    data = {"max_length": 9, "train": {"file": "rows.jsonl", "rows": 1}}
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "prompt": "p", "chosen": "a", "rejected": "b"}\n')
    arms = {"small": {"set": {}, "splits": ["validation"]}, "large": {"set": {}, "splits": ["validation"]}}
    arms["large"] |= {"base": "another", "train": {"limit": 1}}
    protocol: dict[str, Any] = {"data": data, "recipe": {"model": {}}, "arms": arms}
    recipe = evidence.prepare(protocol, evidence.Place(tmp_path, tmp_path / "one", tmp_path / "work"))
    names = [evidence.planned(protocol, arm, 0, recipe).setting.loaded.recipe.model.name for arm in arms]
    assert names == [str(tmp_path / "one"), str(tmp_path / "another")]


def test_a_tokenizer_of_its_own_counts_lengths_of_its_own(tmp_path: Path) -> None:
    def rows(lengths: tuple[int, int]) -> list[ScoredRow]:
        return [ScoredRow("a", "", (1.0, 2.0), ((0, 1),), False, lengths)]

    arms = {"small": {"splits": ["test"]}, "large": {"splits": ["test"], "base": "another"}}
    protocol: dict[str, Any] = {"title": "", "data": {}, "recipe": {}, "arms": arms}
    kept, place = tmp_path / "kept.json", evidence.Place(tmp_path, tmp_path, tmp_path)
    for name, lengths in (("small:0", (3, 4)), ("large:0", (5, 9)), ("large:1", (5, 9))):
        evidence.add(kept, name, {}, {"test": rows(lengths)}, protocol, place)
    with pytest.raises(AssertionError, match="small:1: test has other rows"):
        evidence.add(kept, "small:1", {}, {"test": rows((5, 9))}, protocol, place)
    results = json.loads(kept.read_text())
    found = {arm: evidence_tables.seeds_of(results, arm, "test") for arm in arms}
    assert {arm: [of[0].lengths for of in seeds.values()] for arm, seeds in found.items()} == {
        "small": [(3, 4)],
        "large": [(5, 9), (5, 9)],
    }


def test_runs_of_another_machine_are_added_if_their_rows_are_the_same(tmp_path: Path) -> None:
    protocol = {"data": {"max_length": 8}, "recipe": {}}
    mine: dict[str, Any] = {"protocol": protocol, "rows": {"test": [{"id": "a"}]}, "runs": {"plain:1": {"steps": 2}}}
    theirs = {**mine, "runs": {"plain:0": {"steps": 1}, "ours:0": {"steps": 3}}}
    found, kept = tmp_path / "there" / "made.json", tmp_path / "here" / "made.json"
    found.parent.mkdir()
    for results in (mine, theirs):
        found.write_text(json.dumps(results), encoding="utf-8")
        evidence.merge(found, kept)
    assert json.loads(kept.read_text(encoding="utf-8")) == {**mine, "runs": {**theirs["runs"], **mine["runs"]}}
    before = kept.read_text(encoding="utf-8")
    for part, changed in (
        ("data", {"protocol": {"data": {"max_length": 9}, "recipe": {}}}),
        ("data", {"protocol": {"data": {"characters": 5}, "recipe": {}}}),
        ("recipe", {"protocol": {**mine["protocol"], "recipe": {"run": {}}}}),
        ("rows", {"rows": {}}),
    ):
        found.write_text(json.dumps({**theirs, **changed}), encoding="utf-8")
        with pytest.raises(SystemExit, match=f"other {part} than in made.json"):
            evidence.merge(found, kept)
    assert kept.read_text(encoding="utf-8") == before
    wider = {"rows": {"validation": [{"id": "b"}], **mine["rows"]}}  # an arm that scores another split too
    for rows in (wider, {}):
        found.write_text(json.dumps({**theirs, **rows}), encoding="utf-8")
        evidence.merge(found, kept)
        assert json.loads(kept.read_text(encoding="utf-8"))["rows"] == wider["rows"]
    more = {"data": {**protocol["data"], "sources": {"chat": {}}}, "recipe": {}}  # a new arm's own rows
    for added in (more, protocol):
        found.write_text(json.dumps({**theirs, "protocol": added}), encoding="utf-8")
        evidence.merge(found, kept)
        assert json.loads(kept.read_text(encoding="utf-8"))["protocol"] == more


def test_runs_of_another_base_count_lengths_of_their_own(tmp_path: Path) -> None:
    here: dict[str, Any] = {
        "protocol": {"data": {}, "recipe": {}},
        "rows": {"test": [{"id": "a", "lengths": [3, 4]}]},
        "runs": {"small:0": {}},
    }
    large = {**here, "rows": {"test": [{"id": "a", "lengths": [5, 9]}]}, "runs": {"large:0": {"lengths": {}}}}
    found, kept = tmp_path / "there.json", tmp_path / "made.json"
    kept.write_text(json.dumps(here), encoding="utf-8")
    found.write_text(json.dumps({**large, "runs": {**large["runs"], "small:1": {}}}), encoding="utf-8")
    with pytest.raises(SystemExit, match="other rows than in made"):
        evidence.merge(found, kept)
    found.write_text(json.dumps(large), encoding="utf-8")
    evidence.merge(found, kept)
    merged = json.loads(kept.read_text(encoding="utf-8"))
    assert merged["rows"] == here["rows"]
    assert {*merged["runs"]} == {"small:0", "large:0"}


def test_only_preferences_far_enough_apart_are_counted(tmp_path: Path) -> None:
    rows = [
        ScoredRow("a", "", (1.0, 2.0, 3.0), ((0, 1), (0, 2), (1, 2)), False),
        ScoredRow("b", "", (1.0, 2.0), ((1, 0),), False),
    ]
    source = tmp_path / "test.jsonl"
    source.write_text('{"id": "a", "scores": [0.9, 0.85, 0.1]}\n{"id": "b", "scores": [0.1, 0.11]}\n')
    assert evidence.decided(rows, source, 0.0) is rows
    assert [(row.id, row.preferences) for row in evidence.decided(rows, source, 0.1)] == [("a", ((0, 2), (1, 2)))]


def test_trl_gets_every_preference_and_the_steps_that_fit(tmp_path: Path) -> None:
    peers = evidence_trl
    scored = {"prompt": "p", "completions": ["a", "b", "c"], "scores": [0.5, 1.0, 0.5]}
    stated = {"prompt": [{"role": "user", "content": "q"}], "completions": ["a", "b"], "preferences": [[1, 0]]}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in (scored, stated)))
    (tmp_path / "two.jsonl").write_text('{"prompt": "r", "chosen": "a", "rejected": "b"}\n' * 2)
    assert peers.write_pairs({rows: None, tmp_path / "two.jsonl": 1}, tmp_path / "pairs") == 4
    pairs = [json.loads(line) for line in (tmp_path / "pairs" / "train.jsonl").read_text().splitlines()]
    texts = [
        (pair["prompt"][0]["content"], pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs
    ]
    assert texts == [("p", "b", "a"), ("p", "b", "c"), ("q", "b", "a"), ("r", "a", "b")]

    class Timed(peers.Peer):  # type: ignore[misc,name-defined]
        def train(self, output: Path, seed: int, steps: int) -> float:
            return 20.0 + 3.0 * steps

    assert Timed(tmp_path, tmp_path, ()).plan(100.0, tmp_path) == {"budget": 100.0, "step": 3.0, "steps": 26}


def test_rows_are_taken_by_value_and_length_and_no_prompt_twice(tmp_path: Path) -> None:
    rows = [
        {
            "id": number,
            "prompt": "p" * (1 + number % 8),
            "chosen": "good",
            "rejected": "bad",
            "subset": "ab"[number % 2],
        }
        for number in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    place, taken = evidence.Place(tmp_path, tmp_path, tmp_path), {json.dumps("p" * 3)}
    wanted = {"file": "rows.jsonl", "rows": 9, "having": {"subset": ["a"]}}
    evidence.write_rows(place, {"characters": 10}, wanted, tmp_path / "kept.jsonl", taken)
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert {row["id"] for row in kept} == {0, 8, 16, 4, 12}  # even ones have 1, 3, 5 or 7 letters; 7 are too many
    assert all(set(row) == {"id", "prompt", "chosen", "rejected"} for row in kept)
    assert taken == {json.dumps("p" * letters) for letters in (1, 3, 5)}
    messages = {"prompt": [{"role": "user", "content": "four"}], "completions": ["a", "bcd"]}
    assert [evidence.fits(messages, {}, most) for most in (7, 6, None)] == [True, False, True]


def test_a_table_of_sources_counts_each_set_alike() -> None:
    def scored(right: int) -> list[list[float]]:  # ten rows of set a, two of set b
        return [[1.0, 0.0] if place < right else [0.0, 1.0] for place in range(12)]

    rows = [
        {"id": str(n), "preferences": [[0, 1]], "lengths": [2, 1], "source": "a/its own" if n < 10 else "b"}
        for n in range(12)
    ]
    costs = {"steps": 3, "tokens": 100, "seconds": 5.0, "prompts": {"b": 2}}
    results = {
        "rows": {"test": rows},
        "runs": {
            f"{arm}:{seed}": {**costs, "rewards": {"test": scored(right)}}
            for arm, right in (("one", 5), ("many", 12))
            for seed in (0, 1)
        },
    }
    arms = {"one": {"rows": {"a": 4}}, "many": {"rows": {"a": 2, "b": 2}, "against": "one"}, "later": {"rows": {}}}
    sets = {name: {"train": {}, "test": {}} for name in "ab"}
    protocol = {"arms": arms, "data": {"sources": sets}}
    accuracies, differences = evidence_tables.sources_tables(results, protocol)
    assert accuracies.rows == [
        ("a", "10 of 10", "100.0 %", "50.0 %", "100.0 %"),
        ("b", "2 of 2", "100.0 %", "0.0 %", "100.0 %"),
        ("mean over the sets", "", "", "25.0 %", "100.0 %"),
    ]
    assert [row[:2] for row in differences.rows] == [("a", "+50.0"), ("b", "+100.0"), ("mean over the sets", "+75.0")]
    assert differences.columns[0] == "many − one, points"
    results["runs"]["peer:0"] = {"steps": 40, "pairs_seen": 320}  # TRL's, which counts neither prompts nor tokens
    with_peer = {**protocol, "arms": {**arms, "peer": {"trl": "one"}}}
    assert evidence_tables.trained_table(results, with_peer).rows == [
        (arm, "0", "2", "3", "100", "5") for arm in ("one", "many")
    ]


def test_a_law_is_found_again_with_its_interval() -> None:
    def arm(wrong: tuple[int, int]) -> dict[int, list[ScoredRow]]:  # of 1,000 prompts, by seed; spread over prompts
        rewards = [
            [(0.0, 1.0) if place * 389 % 1000 < count else (1.0, 0.0) for place in range(1000)] for count in wrong
        ]
        return {
            seed: [ScoredRow(str(place), "", of, ((0, 1),), False) for place, of in enumerate(rows)]
            for seed, rows in enumerate(rewards)
        }

    law = evidence_laws.law_of([(1.0, arm((400, 400))), (2.0, arm((180, 220))), (4.0, arm((100, 100)))], [8.0])
    assert law.exponent == pytest.approx(1.0)  # the error halves with each doubling
    assert law.fitted == pytest.approx({1.0: 0.6, 2.0: 0.8, 4.0: 0.9})
    assert 0.85 < law.interval.low < 1.0 < law.interval.high < 1.15
    accuracy, likely = law.predicted[8.0]
    assert accuracy == pytest.approx(0.95)
    assert 0.93 < likely.low < 0.95 < likely.high < 0.97


def test_losses_stand_beside_each_other_by_step() -> None:
    found = {"sides": {"rmtrain": {"losses": [0.5, 0.25]}, "TRL": {"losses": [0.5, 0.375]}}}
    table = evidence_tables.losses_table({"float32": found, "bfloat16": found})
    assert table.columns[:4] == ("step", "rmtrain, float32", "TRL, float32", "difference")
    assert table.rows[1] == ("2", *("0.250000", "0.375000", "-1e-01") * 2)


@pytest.mark.slow
def test_runs_are_trained_once_and_compared_on_the_same_rows(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(work: Path, *line: str) -> Any:
        monkeypatch.chdir(work)
        capsys.readouterr()
        assert run([*line, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    for seed, name in enumerate(("train", "test")):
        rows = write_pairs(tmp_path / f"{name}.jsonl", 60, seed).read_text()
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as stream:
            stream.write(rows.replace('"id": "', f'"id": "{name}'))
    small: dict[str, Any] = {
        "heading": "Made",
        "title": "made",
        "tuned": "none",
        "limits": "none",
        "data": {
            "max_length": 64,
            "train": {"file": "train.jsonl.gz", "rows": 40},
            "validation": {"file": "train.jsonl.gz", "rows": 15},
            "test": {"file": "test.jsonl.gz", "rows": 30},
        },
        "recipe": {
            "model": {"dtype": "float32"},
            "lora": {"rank": 2, "alpha": 4},
            "optim": {"max_steps": 4, "global_batch_size": 16, "tokens_per_microbatch": 900},
            "evaluation": {"every": 0, "select": "last", "splits": ["validation"]},
        },
        "arms": {
            "plain": {
                "why": "slow",
                "set": {"optim.learning_rate": 1e-4},
                "seeds": [0, 1],
                "splits": ["validation", "test"],
            },
            "ours": {
                "why": "fast",
                "set": {"optim.learning_rate": 2e-2},
                "seeds": [0, 1],
                "splits": ["test"],
                "against": "plain",
            },
            "mean": {"why": "both", "average": ["plain", "ours"], "seeds": [0], "splits": ["test"], "against": "ours"},
            "later": {"why": "not yet", "set": {"lora.rank": 3}, "seeds": [0], "splits": ["test"], "against": "plain"},
        },
    }
    commands = in_this_process(monkeypatch)
    monkeypatch.setattr(evidence, "rmtrain", answer)
    place, kept = evidence.Place(tmp_path, base, tmp_path / "work"), tmp_path / "results.json"
    names = ["mean:0", "plain:0", "plain:1", "ours:0", "ours:1"]  # no part of the average is there at first
    evidence.execute(small, names, place, kept)
    assert [line[0] for line in commands] == ["train", "eval", "train", "eval", "train", "train"]
    assert "mean:0" not in json.loads(kept.read_text())["runs"]
    evidence.execute(small, names, place, kept)
    first = kept.read_text()
    evidence.execute(small, names, place, kept)
    assert len(commands) == 6
    assert kept.read_text() == first

    results = json.loads(first)
    assert [len(results["rows"][split]) for split in ("validation", "test")] == [15, 30]
    found = seed_difference(*(evidence_tables.seeds_of(results, arm, "test") for arm in ("ours", "plain")))
    page = evidence.page([(small, results)])
    assert f"| ours − plain | {100 * found.difference:+.1f} |" in page.replace("\\+", "+")
    assert "| later | not run yet |" in page
    assert "mean reward of the 2 seeds of ours" in page
    assert "| mean − ours |" in page
    assert "| plain, length too | no temperature fits |" in page
    assert str(tmp_path) not in first + page
