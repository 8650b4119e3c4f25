"""`rmtrain rewardbench` in this process: every benchmark in its published layout, policies, parity, splits."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import warm
from bench_cases import JUDGE, ROWS, answer, write
from conftest import make_tokenizer, write_lines
from transformers import AutoModelForSequenceClassification

from rmtrain.cli.rewardbench import rewardbench
from rmtrain.data.benchmarks import benchmark_named
from rmtrain.data.benchmarks.load import core_groups
from rmtrain.errors import DataError, InputError

pytestmark = pytest.mark.usefixtures("inside")


@pytest.mark.parametrize("benchmark", list(ROWS))
def test_every_benchmark_with_a_policy_and_its_reference(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], benchmark: str
) -> None:
    source = write(benchmark, tmp_path / ("rows.json" if benchmark == "rm-bench" else "rows.jsonl"))
    policy, reference = str(models / "policy"), str(models / "sft")
    common: dict[str, Any] = {"ckpt": policy, "benchmark": benchmark, "data": source}
    against = answer(capsys, **common, reference=reference)
    alone = answer(capsys, **common, reference_free="avg")
    assert against["policy"] == {"reference": reference, "log_probabilities": "sum"}
    assert alone["policy"] == {"reference": None, "log_probabilities": "avg"}
    assert against["n"] == alone["n"] == len(ROWS[benchmark])
    assert against["rows"] != alone["rows"]
    rewards = [
        [json.loads(line)["rewards"] for line in Path(r["rows"]).read_text().splitlines()] for r in (against, alone)
    ]
    assert rewards[0] != rewards[1]
    assert against["incomplete_subsets"]
    flat = Path(against["rows"]).with_name(f"{benchmark}.flat.json")
    again = answer(capsys, results=[flat], benchmark=benchmark)
    assert again["n"] == against["n"]
    said = {"model_type": "DPO", "ref_model": reference, "log_probabilities": "sum", "chat_template": "tokenizer"}
    assert said.items() <= json.loads(flat.read_text()).items()
    of_alone = json.loads(Path(alone["rows"]).with_name(f"{benchmark}.flat.json").read_text())
    assert {"model_type": "DPO Ref. Free", "ref_model": None, "log_probabilities": "avg"}.items() <= of_alone.items()


def test_a_policy_with_itself_as_reference_has_only_ties(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write("rewardbench-1", tmp_path / "rows.jsonl")
    same = str(models / "policy")
    result = answer(capsys, ckpt=same, reference=same, data=source)
    assert result["subsets"]["hep-go"]["accuracy"] == 0
    assert (result["subsets"]["hep-go"]["ties"], result["subsets"]["hep-go"]["accuracy_half"]) == (3, 0.5)


def test_parity_ends_where_scoring_is(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write("rewardbench-1", tmp_path / "rows.jsonl")
    plain = answer(capsys, ckpt=str(models / "rm"), data=source)
    result = answer(capsys, ckpt=str(models / "rm"), data=source, parity="float16")
    parity = result.pop("parity")
    assert result == plain
    assert (parity["precision"], parity["batch"], parity["pad_id"]) == ("float16", 64, 2)  # the tokenizer names no pad
    ladder = parity["ladder"]
    assert len(ladder) == 10
    assert ladder[-2]["accuracy"] == plain["subsets"]["hep-go"]["accuracy"]
    assert ladder[-1]["accuracy"] == plain["subsets"]["hep-go"]["accuracy_half"]
    assert not list(Path(result["rows"]).parent.glob(".*"))  # what an interrupted scoring would go on from
    rewardbench(ckpt=str(models / "rm"), data=source, parity="float32")
    assert "one change after another" in capsys.readouterr().out


@pytest.mark.slow
def test_parity_on_two_processes_is_the_same(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "rows.jsonl"
    rows = [{**ROWS["rewardbench-1"][0], "id": i, "chosen": f"w{i % 50} w{i % 7}"} for i in range(150)]
    write_lines(source, rows)
    options: dict[str, Any] = {"ckpt": str(models / "rm"), "data": str(source), "parity": "float32"}
    alone = answer(capsys, **options)["parity"]
    command = [sys.executable, "-m", "rmtrain", "rewardbench", "--num-processes", "2", "--json"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    done = warm.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parity"] == alone


@pytest.mark.slow
def test_an_adapter_that_leaves_its_config_to_its_base_has_parity(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForSequenceClassification.from_pretrained(models / "rm", num_labels=1)
    adapted = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "lora")
    make_tokenizer().save_pretrained(tmp_path / "lora")
    assert not (tmp_path / "lora" / "config.json").exists()
    source = write("rewardbench-1", tmp_path / "rows.jsonl")
    result = answer(capsys, ckpt=str(tmp_path / "lora"), data=source, parity="float32")
    assert result["parity"]["ladder"][-2]["accuracy"] == result["subsets"]["hep-go"]["accuracy"]


def test_both_ways_of_reading_a_policy_are_refused(models: Path) -> None:
    with pytest.raises(InputError, match="--reference and --reference-free exclude each other"):
        rewardbench(ckpt=str(models / "policy"), reference="x", reference_free="avg")


# Which split is read


def test_the_scored_split_is_read_unless_another_is_named(tmp_path: Path) -> None:
    file = tmp_path / "judge.json"
    file.write_text(json.dumps({"claude": [{**JUDGE, "pair_id": "c"}], "gpt": [{**JUDGE, "pair_id": "g"}]}))
    judge = benchmark_named("judgebench")
    assert [group.id for group in core_groups(judge, str(file), None, print)[0]] == ["g"]
    groups, source = core_groups(judge, str(file), "claude", print)
    assert [group.id for group in groups] == ["c"]
    assert "claude" in source["source"]
    with pytest.raises(DataError, match="no split 'gemini'"):
        core_groups(judge, str(file), "gemini", print)


def test_the_only_split_there_is_will_do(tmp_path: Path) -> None:
    file = tmp_path / "rm.json"
    file.write_text(json.dumps({"test": ROWS["rm-bench"]}))
    assert len(core_groups(benchmark_named("rm-bench"), str(file), None, print)[0]) == 5
    file.write_text(json.dumps({"a": ROWS["rm-bench"], "b": ROWS["rm-bench"]}))
    with pytest.raises(DataError, match="it has several splits, so one must be named"):
        core_groups(benchmark_named("rm-bench"), str(file), None, print)
