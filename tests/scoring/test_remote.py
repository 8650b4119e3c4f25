"""A server as a scorer: `rmtrain serve` in every form that it speaks gives the rewards of the model that it holds."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import warm
from conftest import make_tokenizer, write_lines

from rmtrain.cli.app import run as rmtrain
from rmtrain.data.render import Renderer
from rmtrain.data.types import Message, PreferenceGroup
from rmtrain.scoring.remote import Server

pytestmark = pytest.mark.usefixtures("inside")
TURNS = [("user", "w1"), ("assistant", "w2"), ("user", "w3")]
ROWS: list[dict[str, Any]] = [{"prompt": f"w{i} w2", "completions": [f"w{i} w{k}" for k in range(3)]} for i in range(5)]
ROWS.append({"prompt": [{"role": role, "content": text} for role, text in TURNS], "completions": ["w4", "w5 w6"]})


def rewards(path: str) -> list[list[float]]:
    return [json.loads(line)["rewards"] for line in Path(path).read_text().splitlines()]


class Fake(BaseHTTPRequestHandler):
    """A server in vLLM's form that is busy at first, and whose reward is the number of characters."""

    busy = 2

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": "some-model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Fake.busy:
            Fake.busy -= 1
            self.answer(429, {"error": {"message": "busy"}})
            return
        text = body["messages"][-1]["content"]
        assert body["model"] == "some-model"
        if "w13" in text:
            self.answer(400, {"error": {"message": "too long"}})
            return
        self.answer(200, {"data": [{"probs": [float(len(text))]}]} if "w14" not in text else {"odd": 1})

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import rmtrain.scoring.remote as remote

    monkeypatch.setattr(remote, "_WAIT_SECONDS", 0.01)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_is_busy_is_asked_again_and_what_it_refuses_is_named(fake: str, capsys: Any) -> None:
    write_lines("in.jsonl", ROWS[:5])
    assert rmtrain(["score", "in.jsonl", "--url", fake, "--output", "out.jsonl"]) == 0, capsys.readouterr().err
    assert rewards("out.jsonl") == [[float(len(text)) for text in row["completions"]] for row in ROWS[:5]]
    write_lines("bad.jsonl", [*ROWS[:2], {"prompt": "w1", "completions": ["w13"]}])
    assert rmtrain(["score", "bad.jsonl", "--url", fake, "--output", "no.jsonl"]) == 2
    assert "bad.jsonl:3: " in (told := capsys.readouterr().err)
    assert "refuses it (400): too long" in told
    write_lines("odd.jsonl", [{"prompt": "w1", "completions": ["w14"]}])
    assert rmtrain(["score", "odd.jsonl", "--url", fake, "--output", "no.jsonl"]) == 1
    assert "gives no reward (200)" in capsys.readouterr().err
    assert not Path("no.jsonl").exists()


def test_a_prompt_that_is_sent_as_text_holds_the_rows_tools() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ tools | tojson if tools }}{% for m in messages %} {{ m['content'] }}{% endfor %}"
    server = Server("http://127.0.0.1", "openrlhf", renderer=Renderer.for_tokenizer(tokenizer))
    talk = ((Message("user", "w1"),), ((Message("assistant", "w2"),),), ())
    group = PreferenceGroup("g", *talk, arguments='{"tools": [{"name": "w5"}]}')
    (text,) = server.texts(group)
    assert "w5" in server.opening(group)
    assert text.startswith(server.opening(group))


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--url", "nowhere", "--output", "o.jsonl"], 2, "--url nowhere: not a web address"),
        (["--url", "http://127.0.0.1:9", "--output", "o.jsonl"], 1, "http://127.0.0.1:9 does not answer"),
        (["--url", "http://127.0.0.1:9", "--api", "sglang", "--output", "o.jsonl"], 2, "--api sglang sends text"),
        (["--url", "http://127.0.0.1:9"], 2, "no --output"),
        (["--verify", "x", "--output", "o.jsonl"], 2, "--verify compares a server with a checkpoint"),
        (
            ["--url", "http://127.0.0.1:9", "--ckpt", "x", "--output", "o.jsonl"],
            2,
            "--url and --ckpt exclude each other",
        ),
        (
            ["--url", "http://127.0.0.1:9", "--prompt", "x", "--dtype", "float32", "--output", "o.jsonl"],
            2,
            "the rewards of a server do not depend on --prompt, --dtype",
        ),
    ],
)
def test_addresses_and_options_that_do_not_fit(arguments: list[str], code: int, told: str, capsys: Any) -> None:
    write_lines("in.jsonl", ROWS)
    assert rmtrain(["score", "in.jsonl", *arguments]) == code
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_every_form_gives_the_rewards_of_the_model(models: Path, capsys: Any) -> None:
    write_lines("in.jsonl", ROWS)
    ckpt = str(models / "rm")
    assert rmtrain(["score", "in.jsonl", "--ckpt", ckpt, "--output", "own.jsonl"]) == 0
    command = [sys.executable, "-m", "rmtrain", "serve", "--ckpt", ckpt, "--port", "0"]
    with warm.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = next(line for line in server.stderr if " at http://" in line)
        url = line.split(" at ")[1].split(";")[0]
        try:
            for api in ("rmtrain", "vllm", "vllm-pooling", "sglang", "openrlhf"):
                arguments = ["score", "in.jsonl", "--url", url, "--api", api, "--verify", ckpt]
                assert rmtrain([*arguments, "--output", f"{api}.jsonl"]) == 0, capsys.readouterr().err
                assert "17 rewards of 6 rows differ by " in capsys.readouterr().err
                for one, other in zip(rewards(f"{api}.jsonl"), rewards("own.jsonl"), strict=True):
                    assert one == pytest.approx(other, abs=1e-5), api
            too_long = {"prompt": "word " * 3000, "completions": ["short", "long " * 20]}
            write_lines("long.jsonl", [*ROWS, too_long])
            for api, code in (("rmtrain", 0), ("vllm", 1)):
                arguments = ["score", "long.jsonl", "--url", url, "--api", api, "--verify", ckpt]
                assert rmtrain(arguments) == code
                told = capsys.readouterr().err
            assert f"the largest difference is at long.jsonl:{len(ROWS) + 1}\n" in told
            assert "cuts the prompt differently" in " ".join(told.split())
        finally:
            server.terminate()
