"""`rmtrain rewardbench` and files: prior sets as they are published, flat results written and read."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench_cases import ROWS, answer, write

from rmtrain.cli.rewardbench import rewardbench
from rmtrain.data.benchmarks import benchmark_named
from rmtrain.data.benchmarks.load import prior_groups
from rmtrain.data.benchmarks.rewardbench1 import SUBSETS
from rmtrain.errors import DataError, InputError

pytestmark = pytest.mark.usefixtures("inside")


def prior_rows(count: int, subset: str = "split of its own") -> str:
    """Rows as the prior sets are published: their own `subset` is not the name of their split."""
    rows = [
        {"prompt": [{"role": "user", "content": "w1"}], "chosen": f"w{i}", "rejected": "w9", "subset": subset, "id": i}
        for i in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_prior_sets_are_read_from_a_folder_from_named_files_and_from_mixed_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rb1, folder = benchmark_named("rewardbench-1"), tmp_path / "sets" / "data"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# a card")
    (folder / "anthropic_hhh.jsonl").write_text(prior_rows(2))
    (folder / "pku_safer.jsonl").write_text(prior_rows(5))
    for shard, ids in enumerate(([0, 1], [2])):
        table = pyarrow.Table.from_pylist([{**json.loads(prior_rows(1)), "id": i} for i in ids])
        pyarrow.parquet.write_table(table, folder / f"shp-0000{shard}-of-00002.parquet")
    said: list[str] = []
    groups, sources = prior_groups(rb1, [str(tmp_path / "sets")], said.append)
    assert [group.id for group in groups] == ["anthropic_hhh/0", "anthropic_hhh/1", "shp/0", "shp/1", "shp/2"]
    assert [Path(source["source"]).name for source in sources][::3] == [
        "anthropic_hhh.jsonl",
        "shp-00001-of-00002.parquet",
    ]
    assert said == ["pku_safer: 5 rows are left out, as on the leaderboard"]
    (tmp_path / "any.jsonl").write_text(prior_rows(2))
    (tmp_path / "summarize.jsonl").write_text(prior_rows(1))
    (tmp_path / "mixed.jsonl").write_text(
        prior_rows(1, "shp") + prior_rows(1, "mtbench_gpt4") + prior_rows(3, "pku_better")
    )
    given = [
        f"anthropic_helpful={tmp_path / 'any.jsonl'}",
        *(str(tmp_path / f"{n}.jsonl") for n in ("summarize", "mixed")),
    ]
    groups, sources = prior_groups(rb1, given, said.append)
    assert [group.source for group in groups] == [*["anthropic_helpful"] * 2, "summarize", "shp", "mtbench_gpt4"]
    assert len(sources) == 3
    assert said[1:] == ["pku_better: 3 rows are left out, as on the leaderboard"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["any.jsonl"], "any.jsonl:1: its subset 'split of its own' is not a prior set"),
        (["shq=any.jsonl"], "'shq' is not a prior set"),
        (["folder"], "any.jsonl is not named after a prior set"),
        (["pku_safer=any.jsonl"], "none of its rows belongs to a prior set that is scored"),
    ],
)
def test_rows_of_no_prior_set_are_refused(tmp_path: Path, given: list[str], said: str) -> None:
    (tmp_path / "folder").mkdir()
    for place in (tmp_path, tmp_path / "folder"):
        (place / "any.jsonl").write_text(prior_rows(2))
    with pytest.raises(DataError) as caught:
        prior_groups(benchmark_named("rewardbench-1"), given, print)
    assert said in str(caught.value)


def test_a_result_says_where_its_prior_sets_are_from(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shp.jsonl").write_text(prior_rows(3))
    common: dict[str, Any] = {"ckpt": str(models / "rm"), "data": write("rewardbench-1", tmp_path / "rows.jsonl")}
    result = answer(capsys, **common, prior_data=["shp.jsonl"])
    (source,) = result["prior_data"]
    assert source["source"] == "shp.jsonl"
    assert source["revision"] is None
    assert len(source["fingerprint"]) == 64
    assert result["prior_sets"]["subsets"]["shp"]["n"] == 3
    assert answer(capsys, **common)["prior_data"] is None


# Flat results, written and read


@pytest.mark.parametrize("benchmark", list(ROWS))
def test_what_output_writes_results_reads(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], benchmark: str
) -> None:
    source, prior = write(benchmark, tmp_path / "rows.jsonl"), tmp_path / "shp.jsonl"
    prior.write_text(prior_rows(3))
    options: dict[str, Any] = {"ckpt": str(models / "rm"), "data": source, "benchmark": benchmark}
    if benchmark == "rewardbench-1":
        options["prior_data"] = [str(prior)]
    scored = answer(capsys, **options, output=Path("one.json"))
    again = answer(capsys, results=[Path("one.json")], benchmark=benchmark, output=Path("two.json"))
    assert json.loads(Path("two.json").read_text()) == json.loads(Path("one.json").read_text())
    assert again["ckpt"] == scored["ckpt"]
    for kind, figure in (("subsets", "accuracy"), ("sections", "score")):
        for name, part in scored[kind].items():
            assert (again[kind][name] or {}).get(figure) == pytest.approx((part or {}).get(figure))
    assert again["missing_subsets"] == scored["missing_subsets"]
    with pytest.raises(InputError, match=r"one\.json exists"):
        rewardbench(**options, output=Path("one.json"))
    with pytest.raises(InputError, match="no such folder"):
        rewardbench(**options, output=Path("gone/one.json"))
    whole = Path(scored["rows"]).with_name(f"{benchmark}.json")
    assert answer(capsys, results=[whole], benchmark=benchmark)["subsets"] == again["subsets"]


def test_results_of_one_model_in_several_files_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    core = {"model": "org/m", "chat_template": "tulu", **dict.fromkeys(SUBSETS, 0.75)}
    prior = {"model": "org/m", "anthropic_helpful": 0.5, "anthropic_hhh": 0.6, "shp": 0.7, "summarize": 0.8}
    for name, content in {"core": core, "prior": prior, "wrong": {**core, "hep-go": 0.5}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = [Path("core.json"), Path("prior.json")]
    result = answer(capsys, results=files, output=Path("both.json"))
    assert result["scores"]["current"]["with_prior_sets"] == pytest.approx((8 * 0.75 + 0.65) / 9)
    assert json.loads(Path("both.json").read_text())["chat_template"] == "tulu"
    assert answer(capsys, results=[Path("both.json")])["scores"] == result["scores"]
    with pytest.raises(DataError, match="only prior sets") as caught:
        rewardbench(results=[Path("prior.json")])
    assert "--results core.json --results prior.json" in caught.value.hint
    with pytest.raises(DataError, match=r"hep-go is 0\.5, but 0\.75 in an earlier file"):
        rewardbench(results=[files[0], Path("wrong.json")])
    (tmp_path / "other.json").write_text(json.dumps({"other": core}))
    two = answer(capsys, results=[files[0], Path("other.json")], output=Path("two.json"))
    assert [one["ckpt"] for one in two] == ["org/m", "other"]
    assert answer(capsys, results=[Path("two.json")]) == two


@pytest.mark.parametrize(
    ("option", "value"),
    [("ckpt", "x"), ("parity", "int8"), ("prior_data", ["x"]), ("dtype", "float32"), ("label", "0")],
)
def test_results_take_no_option_of_scoring(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"can't be combined with --{option.replace('_', '-')}"):
        rewardbench(results=[Path("any.json")], **{option: value})
