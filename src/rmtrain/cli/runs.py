"""`rmtrain runs`: lists run folders, and shows one of them."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from typer import Argument, Option

from rmtrain.cli import options
from rmtrain.cli.output import print_json, print_parts, print_tables
from rmtrain.errors import InputError
from rmtrain.runs import MANIFEST, list_runs, lock_holder, wandb_notes

if TYPE_CHECKING:
    from rmtrain.reporting.record import RunRecord

app = typer.Typer(no_args_is_help=True, help="List the runs, or show one of them.")

Folder = Annotated[Path, Option("--folder", "--runs", help="Folder of the runs.")]


class RunSummary(NamedTuple):
    """The main figures of a run, as in the JSON output; None where unknown."""

    run: str
    name: str
    state: str | None = None
    alive: bool | None = None
    started: str | None = None
    ended: str | None = None
    model: str | None = None
    step: int | None = None
    steps: int | None = None
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    n: int | None = None

    @property
    def progress(self) -> str:
        """Steps done, and the planned number if known."""
        return f"{self.step}/{self.steps}" if self.steps is not None else str(self.step or "-")

    @property
    def ranking(self) -> str:
        """Test accuracy, and half the width of its interval."""
        if self.accuracy is None:
            return "-"
        low, high = self.accuracy_low, self.accuracy_high
        spread = f" ±{50 * (high - low):.1f}" if low is not None and high is not None else ""
        return f"{100 * self.accuracy:.1f}{spread} %"


@app.command("list")
def list_folder(folder: Folder = Path("runs"), json: options.Json = False) -> None:
    """List all runs, oldest first, with their state, progress and test accuracy.

    [dim]rmtrain runs list[/]
    """
    from rmtrain.reporting.record import read_run

    faults: dict[Path, str] = {}
    runs = [_summary(read_run(path, with_rows=False)) for path, _ in list_runs(folder, faults)]
    unread = [(RunSummary(str(path), path.name), faults[path]) for path in sorted(faults)]
    if json:
        values = [run._asdict() for run in runs] + [{**run._asdict(), "error": error} for run, error in unread]
        print_json(values, ascii_only=False)
        return
    from rmtrain.reporting.table import Table

    if not runs and not unread:
        print_tables([], f"no runs under {folder}/")
        return
    rows = [
        (run.name, "died" if run.alive is False else run.state, str(run.started or "")[:10], run.progress, run.ranking)
        for run in runs
    ]
    rows += [(run.name, "can't be read", "", "", "") for run, _ in unread]
    table = Table(("run", "state", "started", "steps", "test accuracy"), rows, texts=3)
    print_tables([table], *(error for _, error in unread))


@app.command()
def show(
    run: Annotated[Path, Argument(metavar="RUN", help="A run folder, or the name of a run under --folder.")],
    folder: Folder = Path("runs"),
    json: options.Json = False,
) -> None:
    """Show the settings, the state and the results of a run.

    [dim]rmtrain runs show runs/mistral_lora-20260101-120000-ab12[/]
    """
    from rmtrain.reporting.record import read_run

    record = read_run(_find(run, folder), with_rows=False)
    if json:
        document = {
            **_summary(record)._asdict(),
            "manifest": record.manifest,
            "recipe": record.recipe,
            "splits": record.splits,
            "rewardbench": record.benchmarks,
            "gap": [gap.figures.to_json() for gap in record.gaps],
            "notes": record.notes,
        }
        print(jsonlib.dumps(document, indent=2, ensure_ascii=False, default=str))
        return
    _render(record)


def _render(record: "RunRecord") -> None:
    from rmtrain.reporting.gap import gap_tables
    from rmtrain.reporting.setup import run_lines, training_lines
    from rmtrain.reporting.table import Table, key_values, to_terminal
    from rmtrain.reporting.tables import benchmark_tables, split_tables

    summary = _summary(record)
    values = {
        "run": record.folder,
        "state": "died: its process no longer exists" if summary.alive is False else summary.state,
        "error": record.manifest.get("error"),
        **{line.label: line.value for line in (*training_lines(record), *run_lines(record))},
        "steps": summary.progress,
    }
    tables = [*map(benchmark_tables, record.benchmarks.values()), *map(gap_tables, record.gaps)]
    if record.splits:
        tables.insert(0, split_tables(list(record.splits.values())))
    if record.notes:
        tables.append([Table((), (), notes=record.notes)])
    lines = wandb_notes(record.folder)
    report = record.folder / "report.html"
    if report.exists():
        lines.append(f"report: {report}")
    print_parts([key_values(values), *(to_terminal(*each) for each in tables)], *lines)


def _find(run: Path, folder: Path) -> Path:
    for candidate in (run, folder / run):
        if (candidate / MANIFEST).exists():
            return candidate
    raise InputError(f"{run}: no such run here or under {folder}/", "see `rmtrain runs list`")


def _summary(record: "RunRecord") -> RunSummary:
    manifest, test = record.manifest, record.splits.get("test", {})
    return RunSummary(
        run=str(record.folder),
        name=record.name,
        state=manifest["state"],
        alive=_is_alive(record.folder) if manifest["state"] == "running" else None,
        started=manifest.get("started"),
        ended=manifest.get("ended"),
        model=manifest.get("model", {}).get("name"),
        step=max((line["step"] for line in record.steps), default=0),
        steps=manifest.get("steps"),
        accuracy=test.get("accuracy"),
        accuracy_low=test.get("accuracy_low"),
        accuracy_high=test.get("accuracy_high"),
        n=test.get("n"),
    )


def _is_alive(folder: Path) -> bool | None:
    """Whether the process that holds the run still exists; None if unknown, or on another machine.

    Its id does not tell: another process may have it by now, and in a container without an init process a killed one
    stays as a zombie. The lock's holder has the lock file open.
    """
    import psutil

    holder = lock_holder(folder)
    if holder is None:
        return None
    try:
        if not psutil.pid_exists(holder) or psutil.Process(holder).status() == psutil.STATUS_ZOMBIE:
            return False
        return any(_same_file(link, folder / ".lock") for link in Path(f"/proc/{holder}/fd").iterdir())
    except psutil.NoSuchProcess:
        return False
    except (OSError, OverflowError, psutil.AccessDenied):  # another user's
        return None


def _same_file(link: Path, file: Path) -> bool:
    try:
        return link.samefile(file)
    except FileNotFoundError:  # closed meanwhile
        return False
