"""Published reward models through the commands: prompts, labels, comparisons, parity, the hub."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import make_config, make_tokenizer, write_lines, write_pairs
from hub_server import HubServer
from published_cases import CASES, save_safe
from torch import ones

from rmtrain.cli.compare import compare
from rmtrain.cli.evaluate import evaluate
from rmtrain.cli.rewardbench import rewardbench
from rmtrain.cli.score import score
from rmtrain.errors import InputError

pytestmark = pytest.mark.usefixtures("inside")


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_each_prompt_has_results_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, pairs = CASES["ultrarm"].write(tmp_path), write_pairs(tmp_path / "pairs.jsonl", 3)
    found = []
    for prompt in (None, "ziya"):
        evaluate(ckpt=str(folder), prompt=prompt, data=str(pairs), json=True)
        found.append(answer(capsys))
    assert [result["published"]["prompt"] for result in found] == ["ultrarm", "ziya"]
    plain, other = (Path(result["rows"]).parts for result in found)
    assert re.fullmatch(r"UltraRM-13b-[0-9a-f]{8}", plain[1])
    assert other[1] == f"{plain[1]}-prompt-ziya"
    assert found[0]["loss"] != found[1]["loss"]


def test_score_gives_the_rewards_of_the_published_computation(tmp_path: Path) -> None:
    case = CASES["oasst"]
    folder = case.write(tmp_path)
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "ab", "completions": ["c", "dd"]}) + "\n")
    score(str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", ckpt=str(folder))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [case.rendered.format(p="ab", r=r) for r in ("c", "dd")]
    truth = [case.reward(tokenizer(text)["input_ids"]) for text in texts]
    assert json.loads((tmp_path / "out.jsonl").read_text())["rewards"] == pytest.approx(truth, abs=2e-5)


def test_two_published_models_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [CASES[name].write(tmp_path) for name in ("ultrarm", "ziya")]
    pairs = write_pairs(tmp_path / "pairs.jsonl", 3)
    compare(*map(str, folders), data=str(pairs), json=True)
    result = answer(capsys)
    assert result["n"] > 0
    assert result["a"] is not None


def test_parity_takes_a_config_that_transformers_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "ab", "chosen": "c" * i, "rejected": "dd", "subset": "hep-go", "id": i} for i in (1, 2, 3)]
    write_lines(tmp_path / "rb.jsonl", rows)
    rewardbench(ckpt=str(CASES["oasst"].write(tmp_path)), data="rb.jsonl", parity="float32", json=True)
    result = answer(capsys)
    assert result["published"] == {"layout": "oasst-rm-pythia", "prompt": "oasst", "label": None}
    assert result["parity"]["ladder"]


def test_prompts_and_labels_are_for_other_peoples_reward_models(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    pairs, own = write_pairs(tmp_path / "pairs.jsonl", 3), tmp_path / "own"
    AutoModelForSequenceClassification.from_config(make_config(num_labels=1)).save_pretrained(own)
    make_tokenizer().save_pretrained(own)
    with pytest.raises(InputError, match="--label is for reward models, not for policies"):
        evaluate(ckpt=str(own), label="0", reference_free="avg", data=str(pairs))
    (own / "rmtrain.json").write_text('{"format": 1, "contract": {}}')
    for option in ({"prompt": "raw"}, {"label": "0"}):
        with pytest.raises(InputError, match="models that were not trained here"):
            evaluate(ckpt=str(own), data=str(pairs), **option)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_hub_id_brings_pickles_only_where_there_is_nothing_else(tmp_path: Path) -> None:
    ultra, starling = CASES["ultrarm"].write(tmp_path), CASES["starling-34b"].write(tmp_path)
    llama = CASES["starling-7b"].write(tmp_path)
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for path in [*llama.glob("tokenizer*"), llama / "config.json"]:
        path.rename(tokenizer / path.name)
    save_safe({"model.norm.weight": ones(2)}, tokenizer, 1)  # the base's own weights, not to be fetched
    (starling / "pytorch_model.bin").write_bytes(b"never read")
    code = (
        "import sys, pathlib\n"
        "from rmtrain.model.checkpoint import load_checkpoint\n"
        "for name in sys.argv[1:]:\n"
        "    found = load_checkpoint(name)\n"
        "    print(found.published['layout'], found.published['prompt'], found.model.module.config.rms_norm_eps)\n"
    )
    names = {
        "openbmb/UltraRM-13b": ultra,
        "Nexusflow/Starling-RM-34B": starling,
        "berkeley-nest/Starling-RM-7B-alpha": llama,
    }
    repos = {("model", name): folder for name, folder in names.items()}
    with HubServer({**repos, ("model", "meta-llama/Llama-2-7b-chat-hf"): tokenizer}) as hub:
        done = subprocess.run(
            [sys.executable, "-c", code, *names],
            env=hub.environment(tmp_path / "hf_home"),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        fetched = [request.rpartition("/")[2] for request in hub.requests if "Starling-RM-34B" in request]
        base = [request for request in hub.requests if "meta-llama" in request]
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "UltraRM-13b ultrarm 1e-05",
        "Starling-RM-34B starling-34b 1e-05",
        "Starling-RM-7B-alpha starling-7b 1e-05",
    ]
    assert "pytorch_model.bin" not in fetched
    assert not any(request.endswith(".safetensors") for request in base)
