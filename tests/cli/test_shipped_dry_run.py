"""Every shipped recipe, dry-run with a tiny model and made-up rows under the names that it uses."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_base, write_lines, write_pairs
from hub_server import HubServer
from sessions import Session

from rmtrain.data.demo import demo_rows
from rmtrain.recipe.bundled import bundled_recipes

pytestmark = pytest.mark.slow


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def published(number: int) -> dict[str, dict[str, Any]]:
    """A row of each data set of the mixtures, with the columns that its authors give it."""
    question, good, bad = (f"w{(number + shift) % 60} w{number // 60}" for shift in (1, 7, 13))
    better = number % 2
    answers = (bad, good) if better else (good, bad)
    return {
        "Skywork/Skywork-Reward-Preference-80K-v0.2": {
            "chosen": said(question, f"w1 {good}"),
            "rejected": said(question, bad),
            "source": "offsetbias",
        },
        "openbmb/UltraInteract_pair": {
            "task": "Coding",
            "dataset": "codecontest",
            "trajectory": [{"from": "user", "value": f"w2 {question}"}],
            "chosen": good,
            "rejected": bad,
            "id": str(number),
            "parent_id": "0",
        },
        "PKU-Alignment/PKU-SafeRLHF": {
            "prompt": f"w3 {question}",
            "prompt_source": "Alpaca3-70B",
            "response_0": answers[0],
            "response_1": answers[1],
            "is_response_0_safe": not better,
            "is_response_1_safe": bool(better),
            "better_response_id": 1 - better,
            "safer_response_id": better,
        },
        "nvidia/HelpSteer3": {
            "domain": "general",
            "language": "english",
            "context": said(f"w4 {question}"),
            "response1": good,
            "response2": bad,
            "overall_preference": -2,
            "individual_preference": [{"score": -2, "reasoning": "w1", "feedback1": "w2", "feedback2": "w3"}],
        },
        "Anthropic/hh-rlhf": {
            "chosen": f"\n\nHuman: w5 {question}\n\nAssistant: {good}",
            "rejected": f"\n\nHuman: w5 {question}\n\nAssistant: {bad}",
        },
        "stanfordnlp/SHP": {
            "post_id": f"p{number}",
            "domain": "askculinary_train",
            "history": f"w6 {question}",
            "human_ref_A": answers[0],
            "human_ref_B": answers[1],
            "labels": 1 - better,
            "score_A": 5 if better else 9,
            "score_B": 9 if better else 5,
            "score_ratio": 1.8,
        },
        "llm-blender/Unified-Feedback": {
            "id": f"u{number}",
            "conv_A": said(question, good),
            "conv_B": said(question, bad),
            "conv_A_rating": 4.5,
            "conv_B_rating": 1.0,
            "num_turns": 2,
            "source": "shp",
        },
    }


CONFIGURED = {  # data sets whose cards name configurations
    "nvidia/HelpSteer3": ("preference", ("train", "validation")),
    "llm-blender/Unified-Feedback": ("all", ("train", "val")),
}


def write_published(folder: Path) -> dict[tuple[str, str], Path]:
    """Those data sets as repositories of the hub, with forty rows in each split."""
    repos = {}
    for name in published(0):
        repo = folder / name.replace("/", "-")
        repo.mkdir()
        config, splits = CONFIGURED.get(name, ("", ("train",)))
        for place, split in enumerate(splits):
            rows = [published(number)[name] for number in range(place * 40, place * 40 + 40)]
            write_lines(repo / f"{split}.jsonl", rows)
        if config:
            files = "".join(f"  - {{split: {split}, path: {split}.jsonl}}\n" for split in splits)
            card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n"
            (repo / "README.md").write_text(card)
        repos["dataset", name] = repo
    return repos


def test_every_shipped_recipe_can_be_dry_run(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    data = tmp_path / "ufb"
    data.mkdir()
    rows = "".join(json.dumps(row) + "\n" for row in demo_rows("train", 60))
    (data / "train.jsonl").write_text(rows)
    for split in ("train", "validation", "test"):
        write_pairs(tmp_path / f"{split}.jsonl", 10)
    own = {
        "quickstart": [f"model.name={base}"],
        "smollm2_135m": [
            f"model.name={base}",
            f"data.source={{train: {tmp_path}/train.jsonl}}",
            "data.splits={train: train}",
        ],
    }
    # of the sixty rows there are here, and without the benchmarks, which this hub does not have
    hold_out = ["data.holdout={validation: 10, test: 10}", "data.decontaminate=[]"]
    recipes = {recipe.name: recipe.path for recipe in bundled_recipes()}
    assert {"quickstart", "smollm2_135m", "mistral_lora", "mistral_qlora", "mistral_full", "baseline_rlhflow"} <= set(
        recipes
    )
    commands = {
        name: ["train", str(path), *own.get(name, hold_out), "--dry-run", "--json"] for name, path in recipes.items()
    }
    repos = {
        ("model", "mistralai/Mistral-7B-Instruct-v0.2"): base,
        ("dataset", "JayHyeon/UFB_xai"): data,
        **write_published(tmp_path),
    }
    with (
        HubServer(repos) as hub,
        Session({**hub.environment(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "0"}) as session,
    ):
        answers = {name: session.run(*arguments) for name, arguments in commands.items()}
    for name, answer in answers.items():
        assert answer.returncode == 0, (name, answer.stderr[-3000:])
        plan = json.loads(answer.stdout)
        derived = plan["derived"]
        assert derived["steps"] >= 1, name
        assert derived["parameters_of_score_head"] == 32, name
        trained, every = derived["parameters_trained"], derived["parameters"]
        assert (trained < every) is (name not in ("mistral_full", "baseline_rlhflow", "unified_feedback")), name
        if name == "mistral_mix":
            train = plan["data"]["splits"]["train"]["entries"]
            assert [*train] == [
                "ultrafeedback",
                "skywork",
                "ultrainteract",
                "pku_saferlhf",
                "helpsteer3",
                "hh_rlhf",
                "shp",
            ]
            assert all(entry["rows"]["kept"] > 20 for entry in train.values())
            assert train["pku_saferlhf"]["rows"]["dropped"].keys() <= {"held out"}
        for split, books in plan["data"]["splits"].items():
            book = books["rows"]
            assert book["kept"] + sum(book["dropped"].values()) == book["total"], (name, split)
        for sequence in plan["first_group"]["sequences"]:
            assert sequence["tokens"] == len(sequence["ids"])
            assert sequence["ids"].count(1) == 1  # exactly one BOS
