"""The command line: its commands, exit codes and error messages."""

import codecs
import errno
import inspect
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException
from typer.rich_utils import rich_format_error

from rmtrain import __version__
from rmtrain.cli import (
    average,
    calibrate,
    compare,
    curate,
    data,
    doctor,
    evaluate,
    export,
    gap,
    leaderboard,
    recipes,
    rewardbench,
    runs,
    score,
    select,
    serve,
    sweep,
    train,
)
from rmtrain.cli.hints import for_command
from rmtrain.cli.processes import (
    is_main_process,
    join_slurm,
    joined,
    leave_group,
    own_arguments,
    report_exit,
    tie_to_launcher,
)
from rmtrain.cli.standard_error import outlive_reader
from rmtrain.errors import Interrupted, LostProcessError, RmtrainError, masked, printable
from rmtrain.files import why_unwritten
from rmtrain.signals import interrupt, on_signal

app = typer.Typer(
    name="rmtrain",
    help="Train, score and compare reward models from one YAML recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _help(command: Callable[..., None]) -> str:
    """A command's docstring for Typer: one line per paragraph, which Typer wraps; examples keep their line breaks."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(text if text.startswith("[dim]") else text.replace("\n", " ") for text in paragraphs)


_COMMANDS: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Training": {
        "train": train.train,
        "sweep": sweep.sweep,
        "average": average.average,
        "calibrate": calibrate.calibrate,
    },
    "Measuring": {
        "eval": evaluate.evaluate,
        "rewardbench": rewardbench.rewardbench,
        "compare": compare.compare,
        "leaderboard": leaderboard.leaderboard,
        "gap": gap.gap,
    },
    "Using a model": {"score": score.score, "select": select.select, "serve": serve.serve, "export": export.export},
    "Data": {"data": data.data, "curate": curate.curate},
    "Looking around": {"recipes": recipes.app, "runs": runs.app, "doctor": doctor.doctor},
}
for panel, commands in _COMMANDS.items():
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, help=_help(command), rich_help_panel=panel)(command)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def run(arguments: list[str]) -> int:
    """Run a command line; returns its exit code (0, 1, 2 or 130)."""
    codecs.register_error("escaped", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # consoles without UTF-8, and paths that are not UTF-8
            stream.reconfigure(errors="escaped")
    outlive_reader()
    tie_to_launcher()
    with on_signal(interrupt):  # training defers it to the end of a step
        return _run(own_arguments(arguments))


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that the encoding lacks by JSON escapes."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4)), error.end


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments or bool(os.environ.get("RMTRAIN_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not debug:
        quiet_libraries()
    logging.setLogRecordFactory(_masked_record)
    code, lost = 0, None
    try:
        join_slurm()
        result = typer.main.get_command(app).main(arguments, prog_name="rmtrain", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except typer.Exit as leaving:
        code = leaving.exit_code
    except TyperException as error:
        error.message = printable(error.message)
        rich_format_error(error)  # type: ignore[arg-type]  # Typer raises only usage errors here
        code = 2
    except (BrokenPipeError, SystemExit):  # the reader of our output has exited; Rich raises the second
        _discard_unwritten_output()
        code = 1
    except (Exception, KeyboardInterrupt) as error:
        with on_signal(lambda: None):  # a launcher's signal must not stop the report of the error
            code = _report(error, arguments, debug)
        lost = error.run if isinstance(error, LostProcessError) else None
    report_exit(code, lost)
    if code == 0:  # after a failure, leaving could wait forever for other processes
        leave_group()
    return code


def _report(error: BaseException, arguments: list[str], debug: bool) -> int:
    """Print an error; returns the exit code."""
    if isinstance(error, RmtrainError):
        error.hint = for_command(next(iter(arguments), ""), error.hint, _options())
    code, message = _code_and_message(error)
    # all processes find the same fault in the input, but each may fail in its own way
    if is_main_process() or code == 1:
        print(printable(message), file=sys.stderr)
    _discard_unwritten_output()
    if debug:
        print(printable(traceback.format_exc()), file=sys.stderr)
    return code


def _masked_record(*arguments: Any, **values: Any) -> logging.LogRecord:
    """A library's log record, with passwords in addresses hidden."""
    record = logging.LogRecord(*arguments, **values)
    record.msg, record.args = masked(record.getMessage()), ()
    return record


def _discard_unwritten_output() -> None:
    """Discard unwritten standard output, which Python would try to write again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _options() -> dict[str, set[str]]:
    """The options of every command."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {
        name: {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        for name, command in commands.items()
    }


def _code_and_message(error: BaseException) -> tuple[int, str]:
    """The exit code and the message of an error."""
    if isinstance(error, Interrupted):
        return error.exit_code, f"interrupted: {error}"
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return 130, "interrupted"
    if isinstance(error, RmtrainError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return (2, f"error: {str(error.filename)[:80]}…: the name is too long\n  hint: use at most 255 bytes")
    if isinstance(error, OSError) and (why := why_unwritten(error, Path(error.filename or "."))):
        where = error.filename or "standard output, or another file"
        return 1, f"error: {where}: {why[0]}\n  hint: {why[1]}"
    message = f"{type(error).__name__}: {error}"
    if "torch" in sys.modules:
        from rmtrain.model.devices import is_out_of_memory, lost_another

        if is_out_of_memory(error):
            return 1, f"error: out of memory ({message})\n  hint: use a smaller model, or fewer tokens per forward pass"
        if joined() and lost_another(error):
            return 1, f"error: process {os.environ['RANK']}: another process ended first ({message})"
    return 1, f"error: {message}\n  hint: this is a bug in rmtrain; run again with --debug for the traceback"


def quiet_libraries() -> None:
    """Keep libraries from sending telemetry, prompting and printing; the user's own settings win."""
    cuda = os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/nvidia0")
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
        "WANDB_SILENT": "true",
        "DS_ACCELERATOR": "cuda" if cuda else "cpu",  # otherwise DeepSpeed prints its choice
        "DEEPSPEED_LOG_LEVEL": "error",
    }.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)  # users can't act on them
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of an optional kernel on every import
