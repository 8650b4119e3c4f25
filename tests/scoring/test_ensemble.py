"""Ensembles beside their members scored alone: rewards, disagreement, one model at a time, refused groups, scales."""

import json
import weakref
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from average_cases import make_part
from bench_cases import write
from conftest import TEMPLATE, make_groups, make_tokenizer, write_base, write_pairs

from rmtrain.cli.app import run
from rmtrain.errors import InputError
from rmtrain.evaluation.disagreement import disagreement
from rmtrain.evaluation.results import ScoredRow, read_rows
from rmtrain.scoring.combination import Combination
from rmtrain.scoring.ensemble import EnsembleScorer
from rmtrain.scoring.scorer import GroupScore, ScorerInfo, ScorerRequest, ScoringOptions, ScoringTask
from rmtrain.serving.online import LogOnce

pytestmark = pytest.mark.usefixtures("inside")
GROUPS = make_groups(12)


@pytest.fixture(scope="module")
def members(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three models; the last has another base and a template of its own."""
    place = tmp_path_factory.mktemp("members")
    other = make_tokenizer()
    other.chat_template = TEMPLATE.replace(" [INST] ", " [INST] w1 ")
    far = make_part(place / "c", write_base(place / "other", seed=4), 5, tokenizer=other)
    return [str(make_part(place / "a", base, 3)), str(make_part(place / "b", base, 4, None)), str(far)]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return str(write_pairs(tmp_path / "pairs.jsonl", 12))


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def expected(kind: str, rewards: Any, weight: float) -> Any:
    """The formulas, member by member."""
    r = np.asarray(rewards, dtype=np.float64)
    mean = sum(r) / len(r)
    variance = sum((each - mean) ** 2 for each in r) / len(r)
    return {"mean": mean, "min": np.sort(r, axis=0)[0], "mean-minus-variance": mean - weight * variance}[kind]


@pytest.mark.parametrize("combine", ["mean", "min", "mean-minus-variance", "mean-minus-variance:0.25"])
def test_combinations_are_their_formulas(combine: str) -> None:
    rewards = np.random.default_rng(0).normal(size=(3, 5)).tolist()
    kind, _, weight = combine.partition(":")
    found = Combination.parse(combine).of(rewards)
    np.testing.assert_allclose(found, expected(kind, rewards, float(weight or 1)), rtol=1e-6)


@pytest.mark.parametrize("combine", ["min", "mean-minus-variance:0.25"])
def test_rewards_and_figures_are_those_of_the_members(
    combine: str, members: list[str], rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = answered(capsys, "eval", "--ckpt", ",".join(members), "--combine", combine, "--data", rows)
    alone = [answered(capsys, "eval", "--ckpt", member, "--data", rows) for member in members]
    own, each = read_rows(Path(result["rows"])), [read_rows(Path(one["rows"])) for one in alone]
    kind, _, weight = combine.partition(":")
    for row, *parts in zip(own, *each, strict=True):
        assert row.members == tuple(part.rewards for part in parts)
        np.testing.assert_allclose(row.rewards, expected(kind, row.members, float(weight or 1)), rtol=1e-6, atol=1e-7)
    figures = result["disagreement"]
    assert [member["accuracy"] for member in figures["members"]] == [one["accuracy"] for one in alone]
    assert [member["low"] for member in figures["members"]] == [one["accuracy_low"] for one in alone]
    assert (figures["accuracy"], figures["n"]) == (result["accuracy"], result["n"])
    signs = [[[np.sign(r[a] - r[b]) for r in row.members] for a, b in row.preferences] for row in own]
    split = [len(set(of)) > 1 for group in signs for of in group]
    assert figures["split_preferences"] == pytest.approx(np.mean(split))
    spreads = [np.std([r[k] for r in row.members]) for row in own for k in range(4)]
    assert figures["reward_deviation"] == pytest.approx(np.mean(spreads))
    right = [row.rewards[a] > row.rewards[b] for row in own for a, b in row.preferences]
    assert figures["accuracy_split"] == pytest.approx(np.mean([r for r, s in zip(right, split, strict=True) if s]))
    assert result["ensemble"]["combine"] == combine
    assert [member["ckpt"] for member in result["ensemble"]["members"]] == members


def test_score_and_rewardbench_take_ensembles(
    members: list[str], rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpts = ",".join(members[:2])
    assert run(["score", rows, "--ckpt", ckpts, "--combine", "mean", "--output", "both.jsonl"]) == 0
    for place, member in enumerate(members[:2]):
        assert run(["score", rows, "--ckpt", member, "--output", f"{place}.jsonl"]) == 0
    files = [
        [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()] for name in ("both", "0", "1")
    ]
    for both, one, two in zip(*files, strict=True):
        np.testing.assert_allclose(both["rewards"], np.mean([one["rewards"], two["rewards"]], axis=0), rtol=1e-6)
        np.testing.assert_allclose(both["reward_std"], np.std([one["rewards"], two["rewards"]], axis=0))
    data = write("rewardbench-1", tmp_path / "bench.jsonl")
    result = answered(capsys, "rewardbench", "--ckpt", ckpts, "--combine", "min", "--data", data)
    alone = [answered(capsys, "rewardbench", "--ckpt", each, "--data", data) for each in members[:2]]
    accuracies = [one["subsets"]["hep-go"]["accuracy"] for one in alone]
    assert [member["accuracy"] for member in result["disagreement"]["members"]] == accuracies
    assert run(["rewardbench", "--ckpt", ckpts, "--combine", "min", "--data", data]) == 0
    assert "the ensemble, min" in capsys.readouterr().out


class _Toy:
    """A scorer whose rewards are the lengths of the completions, times a factor; it counts the living."""

    living: ClassVar[weakref.WeakSet["_Toy"]] = weakref.WeakSet()
    most = 0

    def __init__(self, request: ScorerRequest) -> None:
        _Toy.living.add(self)
        _Toy.most = max(_Toy.most, len(_Toy.living))
        self.factor = float(request.where)
        self.info = ScorerInfo(request.where, request.where, request.where, "float32", 100)

    def score(self, task: ScoringTask) -> list[GroupScore | None]:
        lengths = [tuple(len(completion[0].content) for completion in group.completions) for group in task.groups]
        made: list[GroupScore | None] = [GroupScore(tuple(self.factor * n for n in of), of, False) for of in lengths]
        return [None if place == self.factor else score for place, score in enumerate(made)]


def test_one_member_is_in_memory_and_a_group_that_one_refuses_is_left_out() -> None:
    _Toy.most = 0
    opened: list[str] = []

    def opener(request: ScorerRequest) -> Any:
        opened.append(request.where)
        return _Toy(request)

    request = ScorerRequest("1,2,30", ScoringOptions(combine="mean"))
    ensemble = EnsembleScorer(request, opener)
    task = ScoringTask("made", GROUPS, 64, None, LogOnce())
    for _ in range(2):
        scores = ensemble.score(task)
        assert [place for place, score in enumerate(scores) if score is None] == [1, 2]
        assert all(score is None or score.rewards[0] == 11.0 * score.lengths[0] for score in scores)
    assert _Toy.most == 1
    assert opened == ["1", "2", "30", "1", "2", "1", "30"]  # what is in memory scores first


def test_unequal_scales_are_told() -> None:
    rng = np.random.default_rng(0)
    small = rng.normal(size=(40, 2))
    for factor, shift, told in [(1.1, 0.0, False), (3.0, 0.0, True), (1.0, 5.0, True)]:
        pairs = [(tuple(row), tuple(factor * row + shift)) for row in small.tolist() for row in [np.asarray(row)]]
        rows = [ScoredRow(f"{i}", "", of[0], ((0, 1),), False, members=of) for i, of in enumerate(pairs)]
        assert bool(disagreement(rows, ["a", "b"]).notes) is told


@pytest.mark.parametrize("text", ["median", "min:2", "mean-minus-variance:x", "mean-minus-variance:-1", ""])
def test_other_combinations_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="no such combination"):
        Combination.parse(text)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--ckpt", "{0},{1}"], "combine the rewards of several with --combine"),
        (["--ckpt", "{0}", "--combine", "mean"], "needs at least two checkpoints"),
        (["--ckpt", "{0},", "--combine", "mean"], "needs at least two checkpoints"),
        (["--combine", "mean"], "needs at least two checkpoints"),
        (["--ckpt", "{0},{1}", "--combine", "max"], "no such combination"),
        (["--ckpt", "{0},{1},{0}/", "--combine", "mean"], "are the same checkpoint"),
    ],
)
def test_wrong_arguments_are_refused(
    members: list[str], rows: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", *(argument.format(*members) for argument in arguments), "--data", rows]) == 2
    assert told in capsys.readouterr().err
