"""`rmtrain export`: a checkpoint as one plain sequence-classification folder."""

import json as jsonlib
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import choose
from rmtrain.cli.display import TerminalDisplay
from rmtrain.errors import InputError, RunFailedError, first_line


def export(
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must not exist.")],
    ckpt: options.Ckpt = None,
    dtype: Annotated[
        options.DtypeName | None, typer.Option(help="Of the stored weights; default: that of training.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Upload the folder to this repository of the hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository private if it is new.")] = False,
    no_verify: options.NoVerify = False,
    runs: options.Runs = Path("runs"),
    json: options.Json = False,
) -> None:
    """Merge the adapters in float32 into a plain model that transformers opens, and prove that its rewards agree.

    Sample rows are scored before merging, after it, and with the written folder through transformers alone; where a
    reward moves further than rounding explains, nothing is written.

    [dim]rmtrain export --ckpt runs/mistral_lora-20260101-120000-ab12 --output mistral-rm[/]
    """
    if private and push is None:
        raise InputError("--private says how --push makes a repository", "add --push ORG/NAME, or leave it out")
    display = TerminalDisplay()
    chosen = choose(ckpt, runs, display)
    if push is not None:
        _check_login(push)
    from rmtrain.evaluation.export import check_output
    from rmtrain.evaluation.export import export as export_model
    from rmtrain.model.weights import hub_name
    from rmtrain.reporting.card import write_exported_card

    def finish(folder: Path, sidecar: dict[str, Any]) -> None:
        write_exported_card(folder, chosen.run, sidecar)

    where, revision = hub_name(chosen.where)
    check_output(output)
    with processes.alone(output):
        result = export_model(where, output, dtype, revision, not no_verify, display.note, finish)
    result["pushed"] = _push(output, push, private) if push is not None else None
    print(jsonlib.dumps(result, indent=2) if json else _told(result))


def _told(result: dict[str, Any]) -> str:
    proof = result["proof"]
    lines = [
        f"exported: {result['output']} ({result['dtype']}, {result['bytes'] / 1e6:,.1f} MB)",
        f"rewards of {proof['n']} {proof['data']} completions, less their prompt's mean (standard deviation "
        f"{proof['standard_deviation']:.3g}), moved by at most",
    ]
    for step in ("dequantising", "merging", "storing"):
        if step in proof:
            lines.append(f"  {proof[step]:.2g} by {step} ({proof[f'{step}_allowed']:.2g} allowed)")
    lines.append(f"serve it with the same rewards, which POST /classify gives for messages: {result['serve']}")
    return "\n".join([*lines, *([f"pushed: {result['pushed']}"] if result["pushed"] else [])])


def _check_login(repository: str) -> None:
    """Find out before the work whether the hub would take it.

    Raises:
        InputError: no valid repository name, no token, or one that the hub does not know.
    """
    from huggingface_hub import HfApi

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(f"--push {repository}: no name of a repository", "name it ORG/NAME")
    try:
        HfApi().whoami()
    except Exception as error:  # no token, an old one, no network: each library version has its own errors
        raise InputError(
            f"--push {repository}: the hub does not let us in: {first_line(error)}",
            "log in with `hf auth login`, or set HF_TOKEN; without --push nothing is uploaded",
        ) from error


def _push(folder: Path, repository: str, private: bool) -> str:
    """Upload an exported folder; returns the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="A reward model from rmtrain")
    except Exception as error:  # as above
        raise RunFailedError(
            f"{repository}: the upload failed: {first_line(error)}",
            f"the export is whole in {folder}; `hf upload {repository} {folder}` tries again",
        ) from error
    return str(done.commit_url)
