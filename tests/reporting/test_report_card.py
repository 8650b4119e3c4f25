"""The model card: honest front matter, figures with n and interval, a snippet that works, nothing smuggled in."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import WORDS, write_base
from markdown_it import MarkdownIt
from reporting.run_cases import BASE, COMMIT, DATASET, make_manifest, make_recipe, make_run, write_gap

from rmtrain.errors import CheckpointError
from rmtrain.reporting.card import refresh_model_card, write_model_card
from rmtrain.reporting.record import RunRecord
from rmtrain.reporting.setup import training_lines

CANARY = "a|b\n---\n[x](javascript:alert(1)) <script>alert(1)</script> ``` `c` \x1b[31mred http://evil.example ]]>"


def read(run: Path) -> str:
    return write_model_card(run).read_text(encoding="utf-8")


def front_matter(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1])


def snippet(card: str) -> str:
    found = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)
    assert found is not None
    return found[1]


def render(card: str) -> str:
    body = card.split("\n---\n", 1)[1]
    return MarkdownIt("commonmark").enable("table").render(body)


def test_front_matter_of_an_adapter(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = write_model_card(run)
    assert path == run / "final" / "README.md"
    found = front_matter(path.read_text())
    assert found.pop("model-index")[0]["name"] == run.name
    assert found == {
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "base_model": BASE,
        "base_model_relation": "adapter",
        "tags": ["reward-model", "trl", "reward-trainer", "rmtrain", "lora"],
        "datasets": [DATASET],
    }


def test_front_matter_of_a_whole_model(tmp_path: Path) -> None:
    sources = {"train": f"{DATASET}:cfg@{COMMIT}", "validation": f"{DATASET}:cfg", "test": "rows.jsonl"}
    found = front_matter(read(make_run(tmp_path, recipe=make_recipe(data__source=sources, lora=None), adapter=False)))
    assert found["library_name"] == "transformers"
    assert found["base_model_relation"] == "finetune"
    assert found["tags"] == ["reward-model", "trl", "reward-trainer", "rmtrain"]
    assert found["datasets"] == [DATASET]


def test_the_model_index_holds_the_results_as_the_hub_reads_them(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    run = make_run(tmp_path)
    data = ModelCard(read(run)).data
    assert data.model_name == run.name
    results = {(found.dataset_type, found.dataset_split): found for found in data.eval_results}
    assert set(results) == {(DATASET, "validation"), (DATASET, "test"), ("allenai/reward-bench", None)}
    result = json.loads((run / "eval" / "test.json").read_text())
    assert results[DATASET, "test"].metric_value == result["accuracy"]
    assert f"n = {result['n']}; 95 % interval" in results[DATASET, "test"].metric_name
    scores = json.loads((run / "rewardbench" / "rewardbench-1.json").read_text())["scores"]
    assert results["allenai/reward-bench", None].metric_value == scores["current"]["mean_of_sections"]
    assert "scored as current" in results["allenai/reward-bench", None].metric_name


@pytest.mark.parametrize(
    ("data", "dataset"),
    [
        ({"location": "/some/where/pairs.jsonl", "source": "pairs.jsonl"}, "pairs.jsonl"),
        ({"location": "org/other", "source": "org/other (test)", "split": "test"}, "org/other"),
        (None, "unnamed"),  # a result of 0.1
    ],
)
def test_rows_of_other_data_are_not_said_to_be_of_the_recipe_s_source(
    tmp_path: Path, data: dict[str, str] | None, dataset: str
) -> None:
    run = make_run(tmp_path)
    result = json.loads((run / "eval" / "test.json").read_text()) | {"data": data}
    (run / "eval" / "pairs@1234abcd.json").write_text(json.dumps(result))
    from huggingface_hub import ModelCard

    found = {each.dataset_type: each.dataset_split for each in ModelCard(read(run)).data.eval_results}
    assert found[dataset] == "pairs-1234abcd"


def test_a_license_is_what_the_base_s_own_card_states(tmp_path: Path) -> None:
    from rmtrain.model.weights import stated_license

    assert stated_license(str(tmp_path), None) == {}
    assert stated_license("nobody/nothing", None) == {}
    text = "---\nlicense: other\nlicense_name: made\ntags: [x]\n---\n# A base\n"
    (tmp_path / "README.md").write_text(text)
    assert stated_license(str(tmp_path), None) == {"license": "other", "license_name": "made"}
    for damaged in ("# no head", "---\nlicense: [\n---\n", "---\nlicense: [a, b]\n---\n"):
        (tmp_path / "README.md").write_text(damaged)
        assert stated_license(str(tmp_path), None) == {}
    run = make_run(tmp_path)
    sidecar = json.loads((run / "final" / "rmtrain.json").read_text())
    sidecar["base"]["license"] = {"license": "other", "license_name": "made"}
    (run / "final" / "rmtrain.json").write_text(json.dumps(sidecar))
    found = front_matter(read(run))
    assert (found["license"], found["license_name"]) == ("other", "made")


def test_figures_are_those_of_the_results(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    lines = read(run).splitlines()
    start = lines.index("|  | validation | test |")
    rows = dict(line.strip("| ").split(" | ", 1) for line in lines[start + 2 : start + 14])
    for column, split in enumerate(("validation", "test")):
        result = json.loads((run / "eval" / f"{split}.json").read_text())
        expected = {
            "preferences \\(n\\)": str(result["n"]),
            "accuracy": f"{100 * result['accuracy']:.1f} %",
            "95 % interval": f"{100 * result['accuracy_low']:.1f} to {100 * result['accuracy_high']:.1f} %",
            "accuracy, ties wrong": f"{100 * result['accuracy_strict']:.1f} %",
            "ties": str(result["ties"]),
            "accuracy of 'longer wins'": f"{100 * result['length_baseline']:.1f} %",
            "calibration error \\(ECE\\)": f"{result['ece']:.3f}",
        }
        assert {label: rows[label].split(" | ")[column] for label in expected} == expected
    bench = json.loads((run / "rewardbench" / "rewardbench-1.json").read_text())
    for era, score in bench["scores"].items():
        line = next(line for line in lines if line.startswith(f"| {era.replace('_', chr(92) + '_')} |"))
        assert f"| {100 * score['mean_of_sections']:.2f} | {100 * score['low']:.2f}-" in line


def test_the_gap_is_a_row_of_figures_and_an_edited_card_is_left(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = write_model_card(run)
    result = write_gap(run)
    assert refresh_model_card(run)
    cells = next(line for line in path.read_text().splitlines() if line.startswith("| some-lab/policy on"))
    figures = result["policy"]["accuracy"], result["reward_models"][str(run)]["accuracy"]
    assert all(f" {100 * figure:.1f} |" in cells for figure in figures)
    written = path.read_text()
    assert refresh_model_card(run)
    assert path.read_text() == written
    edited = written.replace("A reward model:", "My reward model:")
    path.write_text(edited)
    assert not refresh_model_card(run)
    assert path.read_text() == edited


def test_text_from_data_stays_text(tmp_path: Path) -> None:
    manifest = make_manifest(
        versions={CANARY: CANARY},
        model={"name": CANARY, "commit": CANARY},
        data={CANARY: {"source": CANARY, "rows": {"total": 1, "kept": 0, "dropped": {CANARY: 1}}}},
    )
    recipe = make_recipe(data__source=CANARY, model__name=CANARY, lora__targets=[CANARY])
    run = make_run(tmp_path, recipe=recipe, manifest=manifest)
    (run / "eval" / f"{CANARY.replace('/', '')[:80]}.json").write_text(json.dumps({"n": 1}))
    card = read(run)
    assert set(front_matter(card)) == {"library_name", "pipeline_tag", "tags", "model-index"}
    assert "<script" not in card
    assert "](javascript:" not in card
    assert "http://evil" not in card.replace("\\x3c", "").split("The resolved recipe")[0]
    assert "\x1b" not in card
    rendered = render(card)
    assert "<script" not in rendered
    assert "<a " not in rendered
    assert "<hr" not in rendered
    assert len(re.findall("<pre>", rendered)) == 2
    for table in re.findall(r"<table>.*?</table>", rendered, re.DOTALL):
        heading, *rows = [len(re.findall(r"<t[dh][ >]", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)]
        assert set(rows) == {heading}


def test_the_recipe_in_the_card_is_the_run_s(tmp_path: Path) -> None:
    recipe = make_recipe(model__chat_template="{{ '<s>`' }}", run__name="weekday", data__source="on")
    card = read(make_run(tmp_path, recipe=recipe))
    found = re.search(r"```yaml\n(.*?)\n```", card, re.DOTALL)
    assert found is not None
    assert yaml.safe_load(found[1]) == recipe


def test_local_folders_are_named_without_their_place(tmp_path: Path) -> None:
    secret = tmp_path / "private" / "someone"
    recipe = make_recipe(
        model__name=str(secret / "base-7b"),
        data__source={"train": str(secret / "pairs.jsonl"), "test": "~/else/where.jsonl"},
        run__folder=str(secret / "runs"),
        distributed__deepspeed_config=str(secret / "ds.json"),
    )
    entry = {"source": str(secret / "pairs.jsonl"), "groups": 3}
    manifest = make_manifest(model={"name": str(secret / "base-7b"), "commit": None}, data={"train": entry})
    manifest |= {"recipe": str(secret / "r.yaml"), "command": [str(secret / "rmtrain"), str(secret / "r.yaml")]}
    card = read(make_run(tmp_path, recipe=recipe, manifest=manifest))
    assert str(tmp_path) not in card
    assert "someone" not in card
    assert "else/" not in card
    assert "the local base-7b" in card
    assert "the local pairs.jsonl, the local where.jsonl" in card
    assert "base_model" not in front_matter(card)
    assert "datasets" not in front_matter(card)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("adapter", [True, False])
def test_snippets_follow_the_recipe_and_the_contract(tmp_path: Path, quantization: str, adapter: bool) -> None:
    recipe = make_recipe(model__quantization=quantization, model__dtype="float16")
    run = make_run(tmp_path, recipe=recipe, adapter=adapter)
    sidecar = json.loads((run / "final" / "rmtrain.json").read_text())
    sidecar["contract"] = {"prepend_bos": True, "append_eos": True}
    (run / "final" / "rmtrain.json").write_text(json.dumps(sidecar))
    code = snippet(read(run))
    compile(code, "card", "exec")
    assert ("BitsAndBytesConfig" in code) == (adapter and quantization != "none")
    assert ("PeftModel" in code) == adapter
    assert "dtype=torch.float16" in code
    assert "[tokenizer.bos_token_id, *ids]" in code
    assert "[*ids, tokenizer.eos_token_id]" in code
    if adapter:
        assert f'revision="{COMMIT}"' in code


def test_the_readme_prints_the_card_s_own_snippet(tmp_path: Path) -> None:
    from rmtrain.recipe.load import load_recipe

    root = Path(__file__).parents[2]
    recipe = load_recipe(root / "configs" / "mistral_lora.yaml").recipe.model_dump(mode="json")
    base = {"name": recipe["model"]["name"], "commit": None}
    run = make_run(tmp_path, recipe=recipe, manifest=make_manifest(model=base))
    assert snippet(read(run)) in (root / "docs/using.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("with_lora", [True, False])
def test_the_snippet_gives_rmtrain_s_own_reward(
    tmp_path: Path, with_lora: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from conftest import save_reward_model

    from rmtrain.data.render import Renderer
    from rmtrain.data.tokenize import Tokenization, tokenize_groups
    from rmtrain.data.tokenizer import load_tokenizer
    from rmtrain.data.types import Message, PreferenceGroup
    from rmtrain.model.adapters import add_lora
    from rmtrain.model.checkpoint import load_checkpoint
    from rmtrain.model.reward_model import BackboneOptions, load_backbone
    from rmtrain.recipe.schema import LoraSection
    from rmtrain.scoring.batches import score_groups

    base = write_base(tmp_path / "base")
    recipe = make_recipe(model__name=str(base), model__dtype="float32", lora={"rank": 4} if with_lora else None)
    run = make_run(tmp_path, recipe=recipe, manifest=make_manifest(model={"name": str(base), "commit": None}))
    for path in (run / "final").iterdir():
        path.unlink()
    renderer = Renderer.for_tokenizer(load_tokenizer(str(base)))
    model = load_backbone(str(base), None, BackboneOptions(dtype="float32"), renderer.pad_id, seed=0)
    if with_lora:
        model = add_lora(model, LoraSection(rank=4), 0)
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
    save_reward_model(model.module, renderer, run / "final", {"recipe": recipe, "base": {"name": str(base)}})

    code = snippet(read(run))
    question, answer = f"{WORDS[1]} {WORDS[2]} {WORDS[3]}", f"{WORDS[4]} {WORDS[5]}"
    code = code.replace("What is the capital of France?", question).replace("Paris.", answer)
    monkeypatch.chdir(run / "final")
    exec(code, {})
    checkpoint = load_checkpoint(str(run / "final"))
    group = PreferenceGroup("a", (Message("user", question),), ((Message("assistant", answer),),), ())
    tokens = [
        found for found in tokenize_groups([group], Tokenization(checkpoint.renderer, 64, "error")) if found is not None
    ]
    ((reward,),) = score_groups(checkpoint.model, tokens, checkpoint.renderer.pad_id, 1000)
    assert float(capsys.readouterr().out.split()[-1]) == pytest.approx(reward, rel=1e-5)


@pytest.mark.parametrize("gone", ["recipe.yaml", "final/rmtrain.json", "eval", "rewardbench", "metrics.jsonl"])
def test_missing_pieces_are_left_out(tmp_path: Path, gone: str) -> None:
    run = make_run(tmp_path)
    (run / gone).rename(tmp_path / "gone")
    assert compile(snippet(read(run)), "card", "exec").co_names


def test_what_was_not_evaluated_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for room in ("eval", "rewardbench"):
        (run / room).rename(tmp_path / room)
    assert "It has not been evaluated yet." in read(run)


def test_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert read(run) == read(run)


def test_a_run_without_a_final_model_has_no_card(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "final").rename(tmp_path / "final")
    with pytest.raises(CheckpointError, match="has no final model") as raised:
        write_model_card(run)
    assert "--resume" in raised.value.hint


def lines_of(**values: Any) -> dict[str, str]:
    given = {"folder": Path("r"), "manifest": {}, "recipe": {}, "sidecar": {}} | values
    return dict(training_lines(RunRecord(**given)))


@pytest.mark.parametrize(
    ("made", "told"),
    [(2.0, "2 epochs"), (0.5, "0.5 of 2 epochs"), (1.9999999, "2 epochs"), (None, "2 epochs")],
)
def test_the_epochs_are_those_that_were_made(made: float | None, told: str) -> None:
    steps = [{"epoch": made}] if made else []
    lines = lines_of(recipe={"optim": {"epochs": 2.0, "global_batch_size": 8}}, steps=steps)
    assert lines["batch"] == f"8 groups per step, {told}"


@pytest.mark.parametrize(
    ("final", "told"),
    [
        (None, "best validation accuracy, then lower loss"),
        (
            {"step": 4, "by": "accuracy", "of": 6},
            "best validation accuracy, then lower loss, step 4 of 6",
        ),
        ({"step": 6, "by": "last", "of": 6}, "last checkpoint, step 6 of 6"),
        (
            {"step": 2, "by": "loss", "of": 4},
            "best validation loss, step 2 of 4, stopped early after 2 validations without an improvement",
        ),
        ("damaged", "best validation accuracy, then lower loss"),
    ],
)
def test_the_final_model_is_told_as_it_was_chosen(final: Any, told: str) -> None:
    recipe = {"evaluation": {"select": "accuracy", "stop_after": 2}}
    assert lines_of(manifest={"steps": 6, "final": final}, recipe=recipe)["final model"] == told


def test_what_was_changed_on_the_way_is_told_without_places() -> None:
    changed = {"optim.learning_rate": [0.003, 1e-05], "data.source": ["/home/me/a.jsonl", "/home/me/b.jsonl"]}
    resumed = [{"from": "checkpoint-2", "changed": changed}, {"from": None}, "damaged", {"changed": {"optim.x": 1}}]
    told = lines_of(manifest={"resumed": resumed})["changed on resuming"]
    assert told.startswith("optim.learning_rate from 0.003 to 1e-05 at checkpoint-2; data.source at checkpoint-2")
