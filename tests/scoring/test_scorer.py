"""A new kind of scorer is a class and a line in the registry; commands need no branch for it."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import make_groups, write_pairs

from rmtrain.cli.evaluate import evaluate
from rmtrain.cli.rewardbench import rewardbench
from rmtrain.cli.score import score
from rmtrain.errors import InputError
from rmtrain.scoring import kinds
from rmtrain.scoring.scorer import GroupScore, ScorerInfo, ScorerRequest, ScoringTask

MARKER = "longest.json"


@dataclass(frozen=True)
class LongestScorer:
    """The longer answer has the higher reward; or, asked to compare only, the larger margin."""

    info: ScorerInfo

    @classmethod
    def open(cls, request: ScorerRequest) -> "LongestScorer | None":
        path = Path(request.where) / MARKER
        if not path.exists():
            return None
        rewards = json.loads(path.read_text())["rewards"]
        return cls(ScorerInfo(request.where, "a" * 64, "b" * 64, "float32", 100, notes=("toy",), gives_rewards=rewards))

    def score(self, task: ScoringTask) -> list[GroupScore | None]:
        scores: list[GroupScore | None] = []
        for done, group in enumerate(task.groups, start=1):
            lengths = tuple(len(completion[0].content.split()) for completion in group.completions)
            margins = tuple(float(lengths[p.better] - lengths[p.worse]) for p in group.preferences)
            rewards = self.info.gives_rewards
            made = GroupScore(lengths if rewards else (), lengths, False, margins=() if rewards else margins)
            scores.append(made)
            task.progress(done, len(task.groups))
        return scores


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that only the toy's class knows, which is registered for this test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kinds, "SCORERS", [LongestScorer.open, *kinds.SCORERS])
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / MARKER).write_text('{"rewards": true}')
    return tmp_path / "toy"


def expected_accuracy() -> float:
    wins = [
        (len(better) > len(worse)) + (len(better) == len(worse)) / 2
        for group in make_groups(6)
        for p in group.preferences
        for better, worse in [[group.completions[i][0].content.split() for i in (p.better, p.worse)]]
    ]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("rewards", [True, False])
def test_a_registered_scorer_is_evaluated_like_any_other(
    toy: Path, rewards: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (toy / MARKER).write_text(json.dumps({"rewards": rewards}))
    evaluate(ckpt=str(toy), data=str(write_pairs(Path("pairs.jsonl"), 6)), json=True)
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["accuracy"] == pytest.approx(expected_accuracy())
    assert (result["weights_fingerprint"], result["max_length"], result["dtype"]) == ("b" * 64, 100, "float32")
    assert "toy" in captured.err
    pair = {"prompt": "w1", "chosen": "w2 w3", "rejected": "w4", "subset": "hep-go", "id": 1}
    Path("rb.jsonl").write_text(json.dumps(pair) + "\n")
    rewardbench(ckpt=str(toy), data="rb.jsonl", json=True)
    assert json.loads(capsys.readouterr().out)["subsets"]["hep-go"]["accuracy"] == 1


def test_score_asks_it_for_rewards(toy: Path) -> None:
    Path("in.jsonl").write_text(json.dumps({"prompt": "w1", "completions": ["w2 w3", "w4"]}) + "\n")
    score("in.jsonl", Path("out.jsonl"), ckpt=str(toy))
    assert json.loads(Path("out.jsonl").read_text())["rewards"] == [2.0, 1.0]
    (toy / MARKER).write_text('{"rewards": false}')
    with pytest.raises(InputError, match="toy compares two completions and gives no rewards: score needs rewards"):
        score("in.jsonl", Path("other.jsonl"), ckpt=str(toy))


def test_unknown_folders_are_still_refused(toy: Path) -> None:
    (toy / MARKER).unlink()
    with pytest.raises(InputError, match="toy: no weights could be loaded"):
        evaluate(ckpt=str(toy), data="pairs.jsonl")
