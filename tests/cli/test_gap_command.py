"""`rmtrain gap` in this process, on tiny models, against transformers one sequence at a time."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from conftest import make_groups, read_lines, write_lines
from reporting.run_cases import make_run
from scipy.special import logit
from transformers import AutoModelForCausalLM, AutoTokenizer

from rmtrain.cli.app import run as rmtrain
from rmtrain.reporting.card import write_model_card

pytestmark = pytest.mark.usefixtures("inside")
GROUPS = [group for k in (2, 3, 4) for group in make_groups(6, seed=k, k=k)]


@pytest.fixture
def data() -> str:
    lines = []
    for number, group in enumerate(GROUPS):
        texts = [completion[0].content for completion in group.completions]
        k = len(texts)
        scores = [float((5 * number + 3 * i) % 7) for i in range(k)] if k > 2 else None
        pairs = [[0, 1]] if k == 2 else [[a, b] for a in range(k) for b in range(k) if scores[a] > scores[b]]
        row = {"id": str(number), "prompt": group.prompt[0].content, "completions": texts, "preferences": pairs}
        lines.append(row | ({"scores": scores} if k > 2 else {"votes": [1, 1, 2, 0][: 1 + number % 4]}))
    write_lines("pairs.jsonl", lines)
    return "pairs.jsonl"


def log_probabilities(where: Path, rows: list[dict[str, Any]], plain_text: bool = False) -> list[list[list[float]]]:
    """Of the tokens of each completion of each row, with the tokens of its end in the chat template."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(where).eval(), AutoTokenizer.from_pretrained(where)
    found = []
    for row in rows:
        prompt = f"<s> {row['prompt']}" if plain_text else f"<s> [INST] {row['prompt']} [/INST]"
        first = len(prompt.split())
        found.append([])
        for text in row["completions"]:
            words = [*prompt.split(), *text.split(), *([] if plain_text else ["</s>"])]
            ids = torch.tensor([tokenizer.convert_tokens_to_ids(words)])
            with torch.no_grad():
                log_probs = model(input_ids=ids).logits[0].double().log_softmax(-1)
            found[-1].append([float(log_probs[i - 1, ids[0, i]]) for i in range(first, len(words))])
    return found


def log_ratios(where: Path, rows: list[dict[str, Any]], reduce: Any, plain_text: bool = False) -> np.ndarray:
    values = [[reduce(tokens) for tokens in row] for row in log_probabilities(where, rows, plain_text)]
    return np.array([v[a] - v[b] for v, row in zip(values, rows, strict=True) for a, b in row["preferences"]])


def result_of(capsys: Any, *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert rmtrain(["gap", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_figures_of_a_policy_its_reference_and_a_reward_model(models: Path, data: str, capsys: Any) -> None:
    names = {"--policy": "policy", "--reference": "sft", "--ckpt": "rm"}
    arguments = [part for option, name in names.items() for part in (option, str(models / name))]
    result = result_of(capsys, *arguments, "--data", data, "--beta", "0.1", "--beta", "2", "--alpha", "0.6")
    rows = read_lines(data)
    for reduce, pick in ((sum, lambda of: of), (np.mean, lambda of: of["normalised"])):
        policy, reference = (log_ratios(models / name, rows, reduce) for name in ("policy", "sft"))
        assert pick(result["policy"])["accuracy"] == pytest.approx((policy > 0).mean())
        assert pick(result["reference"])["accuracy"] == pytest.approx((reference > 0).mean())
        assert pick(result["implicit"])["accuracy"] == pytest.approx((policy > reference).mean())
        for beta in ("0.1", "2"):
            expected = (reference + logit(0.6) / float(beta) > 0).mean()
            assert pick(result["idealised"][beta])["accuracy"] == pytest.approx(expected)
    assert result["n"] == sum(len(row["preferences"]) for row in rows)
    assert result["groups"] == len(rows)
    assert set(result["reward_models"]) == {str(models / "rm")}
    assert rmtrain(["score", data, "--ckpt", str(models / "rm"), "--output", "scored.jsonl"]) == 0
    scored = read_lines("scored.jsonl")
    gaps = np.array([r["rewards"][a] - r["rewards"][b] for r in scored for a, b in r["preferences"]])
    assert result["reward_models"][str(models / "rm")]["accuracy"] == pytest.approx((gaps > 0).mean())
    assert result["best_of_n"]["groups"] == 12
    assert result["models"]["policy"]["rendering"]["chat_template_sha256"]
    page = next(Path("results").glob("*/gap/*/report.html")).read_text()
    assert page.count('<img src="data:image/svg+xml') == 3
    assert "Gap over beta" in page
    capsys.readouterr()
    assert rmtrain(["compare", result["rows"][str(models / "rm")], result["rows"]["policy"], "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    for key, of in (("difference", "minus_policy"), ("low", "minus_low"), ("mcnemar_p", "mcnemar_p")):
        assert compared[key] == pytest.approx(result["reward_models"][str(models / "rm")][of]), key
    whole = str(next(Path("results").glob("*/gap/*/gap.json")))
    assert rmtrain(["compare", whole, f"{whole}:reference", "--json"]) == 0  # the policy, and what it was tuned from
    compared = json.loads(capsys.readouterr().out)
    for key in ("difference", "low", "high", "mcnemar_p"):
        assert compared[key] == pytest.approx(result["minus_reference"][key]), key
    assert compared["rows"] == [result["rows"]["policy"], result["rows"]["reference"]]
    assert rmtrain(["compare", f"{whole}:rm", whole]) == 2
    assert "no rows of 'rm'" in capsys.readouterr().err


def test_a_run_s_report_and_card_show_the_gap_that_its_model_was_judged_by(
    models: Path, data: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(Path("runs"))
    shutil.copytree(models / "rm", run / "final", dirs_exist_ok=True)
    for name in ("adapter_config.json", "rmtrain.json"):
        (run / "final" / name).unlink()
    write_model_card(run)
    arguments = ["--policy", str(models / "policy"), "--ckpt", str(run), "--data", data]
    result = result_of(capsys, *arguments)
    accuracy = f"{100 * result['reward_models'][str(run)]['accuracy']:.1f}"
    assert "Alignment gap of policy" in (run / "report.html").read_text()
    card = run / "final" / "README.md"
    assert accuracy in next(line for line in card.read_text().splitlines() if line.startswith("| policy on pairs"))
    assert rmtrain(["runs", "show", str(run), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["gap"]
    assert [gap["n"] for gap in shown] == [result["n"]]
    name = next((run / "gap").glob("*.rows.jsonl")).name.removesuffix(".rows.jsonl")
    assert rmtrain(["compare", f"{run}:{name}", result["rows"]["policy"], "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["difference"] == pytest.approx(result["reward_models"][str(run)]["minus_policy"])
    card.write_text(f"{card.read_text()}of my own\n")
    assert rmtrain(["gap", *arguments, "--beta", "1"]) == 0
    assert "README.md was edited, or written by an older version, so it is left unchanged" in capsys.readouterr().err
    assert card.read_text().endswith("of my own\n")


def test_a_gold_model_s_rewards_are_the_scores_that_answers_are_chosen_for(
    models: Path, data: str, capsys: Any
) -> None:
    rm = str(models / "rm")
    result = result_of(capsys, "--policy", str(models / "policy"), "--gold", rm, "--data", data)
    rows = {name: read_lines(path) for name, path in result["rows"].items()}
    large = [i for i, row in enumerate(rows[rm]) if len(row["rewards"]) > 2]
    chosen = [rows[rm][i]["rewards"][int(np.argmax(rows["policy"][i]["rewards"]))] for i in large]
    best = result["best_of_n"]
    assert best["choosers"]["policy"]["score"]["value"] == pytest.approx(np.mean(chosen))
    assert best["best"]["value"] == pytest.approx(np.mean([max(rows[rm][i]["rewards"]) for i in large]))
    assert rm not in best["choosers"]  # it does not judge itself
    assert rm in result["reward_models"]
    assert result["gold"] == rm


@pytest.mark.slow
def test_two_processes_measure_the_same(models: Path, data: str, capsys: Any) -> None:
    names = {"--policy": "policy", "--reference": "sft", "--ckpt": "rm"}
    arguments = [part for option, name in names.items() for part in (option, str(models / name))]
    alone = result_of(capsys, *arguments, "--data", data, "--tokens-per-batch", "60")
    scored = {name: Path(path).read_bytes() for name, path in alone["rows"].items()}
    shutil.rmtree("results")
    command = [sys.executable, "-m", "rmtrain", "gap", *arguments, "--data", data, "--tokens-per-batch", "60"]
    command += ["--num-processes", "2", "--json"]
    done = warm.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == alone
    assert {name: Path(path).read_bytes() for name, path in alone["rows"].items()} == scored


def test_raw_text_is_prompt_blank_completion_after_bos(models: Path, data: str, capsys: Any) -> None:
    result = result_of(capsys, "--policy", str(models / "policy"), "--data", data, "--raw")
    rows = read_lines(data)
    for reduce, of in ((sum, result["policy"]), (np.mean, result["policy"]["normalised"])):
        assert of["accuracy"] == pytest.approx((log_ratios(models / "policy", rows, reduce, True) > 0).mean())
    scored = read_lines(result["rows"]["policy"])
    sums = [[sum(tokens) for tokens in row] for row in log_probabilities(models / "policy", rows, True)]
    assert np.concatenate([row["rewards"] for row in scored]) == pytest.approx(np.concatenate(sums), abs=1e-4)
    assert [row["lengths"] for row in scored] == [[len(text.split()) for text in row["completions"]] for row in rows]


def test_a_repeated_or_interrupted_command_scores_nothing_twice(
    models: Path, data: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rmtrain.scoring import batches

    arguments = ["--policy", str(models / "policy"), "--ckpt", str(models / "rm"), "--data", data]
    whole, passes = batches._score_batch, [0]

    def interrupted(*args: Any) -> Any:
        passes[0] += 1
        if passes[0] == 4:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(batches, "_score_batch", interrupted)
    assert rmtrain(["gap", *arguments, "--tokens-per-batch", "60"]) == 130
    assert "run the same command to continue" in capsys.readouterr().err
    first = result_of(capsys, *arguments, "--tokens-per-batch", "60")
    done = passes[0]
    again = result_of(capsys, *arguments)
    assert passes[0] == done
    assert again == first
    shutil.rmtree("results")
    assert result_of(capsys, *arguments, "--tokens-per-batch", "60") == first


def test_votes_make_alpha_and_rows_without_them_are_refused(models: Path, data: str, capsys: Any) -> None:
    arguments = ["gap", "--policy", str(models / "policy"), "--data", data, "--alpha", "votes"]
    assert rmtrain(arguments) == 2
    assert "group 6 has no votes of raters on two completions" in capsys.readouterr().err
    assert not list(Path("results").rglob("*.rows.jsonl"))  # before anything is scored
    rows = read_lines(data)[:6]
    write_lines(data, rows)
    result = result_of(capsys, *arguments[1:], "--beta", "1")
    share = {1: 1.0, 0: 0.5, 2: 0.0}
    alpha = np.clip([np.mean([share[vote] for vote in row["votes"]]) for row in rows], 0.001, 0.999)
    expected = log_ratios(models / "policy", rows, sum) + logit(alpha) > 0
    assert result["idealised"]["1"]["accuracy"] == pytest.approx(expected.mean())
    assert result["ideal_of"] == "policy"
    assert result["flip_rate"] is result["implicit"] is result["best_of_n"] is None


def test_the_terminal_shows_every_table_and_says_what_is_circular(models: Path, data: str, capsys: Any) -> None:
    names = {"--policy": "policy", "--reference": "sft", "--ckpt": "rm"}
    arguments = [part for option, name in names.items() for part in (option, str(models / name))]
    assert rmtrain(["gap", *arguments, "--data", data, "--alpha", "rewards"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "implicit reward",
        "McNemar p",
        "Flip rate",
        "Theorem 4.1",
        "tau-b",
        "share of",
        "circular",
    ):
        assert words in shown, words


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--alpha", "guess"], "--alpha guess: not a known source of alpha"),
        (["--alpha", "rewards"], "--alpha rewards: no reward model is given"),
        (["--raw", "--prompt", "tulu"], "--raw and --prompt exclude each other"),
        (["--beta", "0"], "--beta"),
        (["--dpo-beta", "inf"], "--dpo-beta"),
        (["--ckpt", "reference"], "write ./reference"),
        (["--policy", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_scored(
    models: Path, data: str, capsys: Any, given: list[str], words: str
) -> None:
    assert rmtrain(["gap", "--policy", str(models / "policy"), "--data", data, *given]) == 2
    assert words in capsys.readouterr().err
    assert not Path("results").exists()


def test_rows_without_preferences_are_named(models: Path, capsys: Any) -> None:
    Path("rows.jsonl").write_text(json.dumps({"prompt": "w1", "completions": ["w2", "w3"], "preferences": []}) + "\n")
    assert rmtrain(["gap", "--policy", str(models / "policy"), "--data", "rows.jsonl"]) == 2
    told = capsys.readouterr().err
    assert "rows.jsonl: 1 of 1 rows dropped: 1 no preference (first: rows.jsonl:1)" in told
    assert "rows.jsonl: no row has a preference" in told


def test_a_reward_model_is_no_policy(models: Path, data: str, capsys: Any) -> None:
    assert rmtrain(["gap", "--policy", str(models / "rm"), "--data", data]) == 2
    assert "is a reward model, not a policy" in capsys.readouterr().err
