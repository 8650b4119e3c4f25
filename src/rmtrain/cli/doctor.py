"""`rmtrain doctor`: checks whether this machine can train, without a network or a model."""

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rmtrain.cli import options
from rmtrain.cli.output import print_json
from rmtrain.errors import first_line

State = Literal["ok", "warning", "problem"]

_ADVISED_FREE = 20 * 2**30  # bytes; a 7B model in bfloat16 takes 14.5 GB
_AMPERE = (8, 0)  # compute capability that bfloat16 arithmetic and the attention kernels need
_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


class Check(NamedTuple):
    """The outcome of one check."""

    name: str
    state: State
    detail: str
    hint: str = ""


def doctor(json: options.Json = False) -> None:
    """Check Python, packages, GPUs, hub settings, caches and disk; exits with code 1 on a problem.

    [dim]rmtrain doctor[/]
    """
    checks = [check for group in (_packages, _devices, _extras, _hub, _disk, _machine) for check in _run(group)]
    problems = [check for check in checks if check.state == "problem"]
    if json:
        print_json({"ok": not problems, "checks": [check._asdict() for check in checks]})
    else:
        _render(checks)
    if problems:
        raise typer.Exit(1)


def _render(checks: list[Check]) -> None:
    from rmtrain.reporting.table import safe_text

    console = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        detail = safe_text(check.detail)
        if check.hint:
            detail.append("\n").append_text(safe_text(f"fix: {check.hint}"))
        table.add_row(Text(check.state, _STYLES[check.state]), safe_text(check.name), detail)
    console.print(table)
    counts = Counter(check.state for check in checks)
    console.print(f"\nok: {counts['ok']}, warnings: {counts['warning']}, problems: {counts['problem']}")


def _run(group: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Run the checks of a group. An error in one is reported as a problem, and the other groups still run."""
    try:
        yield from group()
    except Exception as error:
        yield Check(group.__name__.strip("_"), "problem", f"the check failed: {type(error).__name__}: {error}")


def _packages() -> Iterator[Check]:
    """Compare each installed package with the version that rmtrain's metadata requires."""
    from packaging.requirements import Requirement

    installed = []
    try:
        lines = metadata.requires("rmtrain") or []
    except metadata.PackageNotFoundError:  # run from its source folder
        yield Check("packages", "warning", "rmtrain is not installed, so versions are not compared", "pip install .")
        return
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Check(requirement.name, "problem", "not installed", f"pip install '{wanted}'")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            installed.append(f"{requirement.name} {version}")
        else:
            yield Check(requirement.name, "problem", f"{version}, but {wanted} is required", f"pip install '{wanted}'")
    yield Check("packages", "ok", ", ".join(installed))


def _devices() -> Iterator[Check]:
    """The GPUs that torch finds, the attention kernel of packed training, and the fastest type."""
    driver = _driver()
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", "problem", f"can't be imported: {error}", "install torch again")
        return
    if not torch.cuda.is_available():
        if driver:
            build = f"torch {torch.__version__}, built for CUDA {torch.version.cuda or 'none'}"
            hint = "install a torch build for this driver, and check CUDA_VISIBLE_DEVICES"
            yield Check("GPU", "problem", f"{build}, can't use the driver {driver}", hint)
        else:
            yield Check(
                "GPU",
                "warning",
                "no GPU: only small models can be trained",
                "use a machine with a CUDA GPU to train larger ones",
            )
        yield _fastest_type()
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = (properties.major, properties.minor)
        detail = (
            f"{properties.name}, {total / 2**30:.0f} GiB ({free / 2**30:.0f} GiB free), compute capability "
            f"{capability[0]}.{capability[1]}, driver {driver or 'unknown'}, CUDA {torch.version.cuda}"
        )
        if capability < _AMPERE:
            hint = "set model.dtype to float16 and model.packing to none"
            yield Check(f"GPU {index}", "warning", f"{detail}; no bfloat16 arithmetic", hint)
        else:
            yield Check(f"GPU {index}", "ok", detail)
    yield _fastest_type()
    yield _attention(torch)


def _fastest_type() -> Check:
    from rmtrain.model.compute_type import fastest_type

    fastest = fastest_type()
    return Check("model.dtype", "ok", f"auto is {fastest.name} here: {fastest.reason}")


def _attention(torch: Any) -> Check:
    """Run variable-length attention once, on a few tokens."""
    try:
        from torch.nn.attention.varlen import varlen_attn

        query = torch.zeros(4, 2, 64, dtype=torch.bfloat16, device="cuda")
        starts = torch.tensor([0, 1, 4], dtype=torch.int32, device="cuda")
        varlen_attn(query, query, query, starts, starts, 3, 3)
        torch.cuda.synchronize()
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        detail = f"torch's variable-length attention fails: {first_line(error)}"
        return Check("packed attention", "problem", detail, "set model.packing to none")
    return Check("packed attention", "ok", "torch's variable-length attention runs")


def _driver() -> str | None:
    """Version of the NVIDIA driver, from the kernel module; None without one."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return next((word for word in words if word.replace(".", "").isdigit() and "." in word), "of unknown version")


def _extras() -> Iterator[Check]:
    """Packages that only some recipes need."""
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:
        hint = "install it again; until then keep model.quantization: none and optim.optimizer: adamw"
        yield Check("bitsandbytes", "warning", f"can't be imported: {first_line(error)}", hint)
    else:
        yield Check("bitsandbytes", "ok", "can be imported")
    if importlib.util.find_spec("deepspeed") is None:
        yield Check("DeepSpeed", "warning", "not installed", "pip install deepspeed, or set distributed.strategy")
    elif lock := next(_extensions().glob("**/deepspeed_*/lock"), None):
        hint = f"DeepSpeed waits for this lock forever: if no run is compiling now, rm {lock}"
        yield Check(
            "DeepSpeed", "warning", f"{lock.parent.name} is being compiled, or its compilation was interrupted", hint
        )
    else:
        yield Check("DeepSpeed", "ok", "installed")


def _extensions() -> Path:
    """Where torch compiles DeepSpeed's extensions."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache / "torch_extensions").expanduser()


def _hub() -> Iterator[Check]:
    """Check the hub's settings, without sending anything."""
    from huggingface_hub import get_token

    offline = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_on(name)]
    endpoint = os.environ.get("HF_ENDPOINT")
    parts = urlsplit(endpoint or "")
    if endpoint is not None and (parts.scheme not in ("http", "https") or not parts.hostname):
        yield Check("hub", "problem", "HF_ENDPOINT is not a web address", "set it to https://… or unset it")
    elif offline:
        hint = f"unset {', '.join(offline)} to download models and data"
        yield Check("hub", "warning", f"offline by {', '.join(offline)}: only cached models and data can be used", hint)
    else:
        where = f"HF_ENDPOINT is {parts.scheme}://{parts.hostname}" if endpoint is not None else "default endpoint"
        yield Check("hub", "ok", f"online; {where}; {'a token is set' if get_token() else 'no token'}")


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}


def _disk() -> Iterator[Check]:
    """Check that caches and the working folder can be written, and their free space."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from rmtrain.data.cache_entry import cache_folder

    for name, folder, least in (
        ("model cache", Path(HF_HUB_CACHE), _ADVISED_FREE),
        ("rmtrain cache", cache_folder(), 2**30),
        ("working folder", Path.cwd(), _ADVISED_FREE),
    ):
        yield _free_space(name, folder, least)


def _free_space(name: str, folder: Path, least: int) -> Check:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Check(
            name,
            "problem",
            f"{folder} can't be written: {error.strerror}",
            "choose another folder, or make it writable",
        )
    free = shutil.disk_usage(existing).free
    detail = f"{folder}, {free / 2**30:.1f} GiB free"
    if free < least:
        return Check(name, "warning", detail, f"free some space; {least / 2**30:.0f} GiB or more are recommended")
    return Check(name, "ok", detail)


def _machine() -> Iterator[Check]:
    yield Check("Python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield Check("CPU", "ok", f"{len(os.sched_getaffinity(0))} cores")
