import logging
from pathlib import Path

import pytest

from rmtrain.cli.app import run as rmtrain
from rmtrain.errors import InputError, command_line, masked, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:secret@host/x: no", "http://***@host/x: no"),
        ("https:/user:secret@host/x", "https:/***@host/x"),
        ("https://hf_token@host:80/x?a@b", "https://***@host:80/x?a@b"),
        ("https://host/a@b, org/name@rev and me@example.org", None),
    ],
)
def test_passwords_in_addresses_are_hidden(text: str, shown: str | None) -> None:
    assert masked(text) == (shown or text)
    error = InputError(text, text)
    assert (error.message, error.hint) == (masked(text), masked(text))
    assert "secret" not in repr(error)


def test_what_steers_a_terminal_is_shown_as_an_escape() -> None:
    assert printable("a\x1b[31mb\x07\u202ec\udcff\td\u2028e\x9b") == r"a\x1b[31mb\x07\u202ec\udcff\td\u2028e\x9b"
    assert printable("two\nlines, “quotes”, 日本, \u00a0 and 👍") == "two\nlines, “quotes”, 日本, \u00a0 and 👍"


def test_what_libraries_log_has_no_password(caplog: pytest.LogCaptureFixture) -> None:
    rmtrain(["--version"])
    logging.getLogger("huggingface_hub").warning("'%s' thrown while requesting %s", 111, "http://user:secret@host/x")
    assert caplog.messages == ["'111' thrown while requesting http://***@host/x"]


HOSTILE = "\x1b[31mx\x1b]0;title\x07"


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "--ckpt", HOSTILE],
        ["eval", "--ckpt", "/" + HOSTILE],
        ["eval", "--dtype", HOSTILE],
        ["score", HOSTILE, "--ckpt", "x", "--output", HOSTILE],
        ["compare", HOSTILE, HOSTILE],
        ["train", HOSTILE],
        ["train", "--resume", HOSTILE],
        ["data", HOSTILE],
        ["runs", "show", HOSTILE],
        ["runs", "list", "--folder", HOSTILE],
        ["recipes", "show", HOSTILE],
        ["rewardbench", "--results", HOSTILE],
        ["leaderboard", HOSTILE],
        ["export", "--output", HOSTILE, "--ckpt", HOSTILE],
        ["--" + HOSTILE],
        [HOSTILE],
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.usefixtures("inside")
def test_no_command_sends_an_argument_to_the_terminal_raw(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rmtrain(arguments)
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    assert "\x07" not in told.out + told.err


def test_a_command_is_quoted_as_a_shell_needs_it() -> None:
    assert command_line("train", "--resume", Path("runs/a")) == "rmtrain train --resume runs/a"
    line = command_line("train", "my recipe.yaml", "data.source={train: rows.jsonl}")
    assert line == "rmtrain train 'my recipe.yaml' 'data.source={train: rows.jsonl}'"
