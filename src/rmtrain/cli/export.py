"""`rmtrain export`: a checkpoint as one plain sequence-classification folder."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import choose
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.output import print_json
from rmtrain.errors import InputError, RunFailedError, first_line


def export(
    output: Annotated[Path, Option(metavar="DIR", help="New folder for the model.")],
    ckpt: options.Ckpt = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Option(help="Precision of the stored weights; default: as trained."),
    ] = None,
    push: Annotated[str | None, Option(metavar="ORG/NAME", help="Upload the folder to this hub repository.")] = None,
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False,
    no_verify: options.NoVerify = False,
    runs: options.Runs = Path("runs"),
    json: options.Json = False,
) -> None:
    """Merge the adapters into a plain model for transformers, and prove that its rewards agree.

    Scores sample rows before merging, after merging, and with transformers alone from the written folder. Writes
    nothing if a reward changes by more than rounding error.

    [dim]rmtrain export --ckpt runs/mistral_lora-20260101-120000-ab12 --output mistral-rm[/]
    """
    if private and push is None:
        raise InputError("--private needs --push", "add --push ORG/NAME, or leave --private out")
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
    if json:
        print_json(result)
    else:
        print(_summary(result))


def _summary(result: dict[str, Any]) -> str:
    proof = result["proof"]
    lines = [
        f"exported: {result['output']} ({result['dtype']}, {result['bytes'] / 1e6:,.1f} MB)",
        f"largest change of a reward relative to its prompt's mean, over {proof['n']} {proof['data']} completions "
        f"(standard deviation {proof['standard_deviation']:.3g}):",
    ]
    for step in ("dequantising", "merging", "storing"):
        if step in proof:
            lines.append(f"  {proof[step]:.2g} by {step} ({proof[f'{step}_allowed']:.2g} allowed)")
    lines.append(f"serve it with the same rewards (POST messages to /classify): {result['serve']}")
    if "serve_standardised" in result:
        lines.append(f"with the calibration's mean and standard deviation: {result['serve_standardised']}")
    return "\n".join([*lines, *([f"pushed: {result['pushed']}"] if result["pushed"] else [])])


def _check_login(repository: str) -> None:
    """Check the login to the hub before any work is done.

    Raises:
        InputError: the repository name, the token or the login is invalid.
    """
    from huggingface_hub import HfApi

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(f"--push {repository}: not a repository name", "write ORG/NAME")
    try:
        HfApi().whoami()
    except Exception as error:  # no token, an old one, no network: the errors vary by library version
        raise InputError(
            f"--push {repository}: login to the hub failed: {first_line(error)}",
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
            f"the export in {folder} is complete; try again with `hf upload {repository} {folder}`",
        ) from error
    return str(done.commit_url)
