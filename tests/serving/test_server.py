"""The server over real sockets: every form gives the rewards of `score`; bad input, many clients, limits, the end."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from conftest import WORDS, make_groups

from rmtrain.cli.app import run as rmtrain
from rmtrain.data.types import PreferenceGroup
from rmtrain.display import Silent
from rmtrain.errors import InputError
from rmtrain.scoring.remote import RemoteScorer, Server
from rmtrain.scoring.scorer import ScoringTask
from rmtrain.serving.app import ServerLimits, make_app
from rmtrain.serving.batcher import Batcher, BatchLimits
from rmtrain.serving.counters import Counters
from rmtrain.serving.forms import Completions, Dialogue, Embeddings, Form, VllmInput, VllmPooling
from rmtrain.serving.online import OnlineScorer, join_prompts
from rmtrain.serving.server import listen

ANSWERS = ["w3 w4", "w5", "w6 w7 w8"]
OPENING = "<s> [INST] w1 w2 [/INST]"
TEXTS = [f"{OPENING} {answer} </s>" for answer in ANSWERS]
USER = {"role": "user", "content": "w1 w2"}
SAID = {"role": "assistant", "content": "w3"}


@pytest.fixture(scope="module")
def scorer(models: Path) -> OnlineScorer:
    return OnlineScorer.open(str(models / "rm"))


@contextmanager
def served(
    scorer: OnlineScorer,
    queue: int = 8192,
    body: int = 1 << 20,
    token: str = "",
    limits: ServerLimits | None = None,
    port: int = 0,
) -> Iterator[str]:
    """A server on a port of loopback, a free one by default, in a thread of this process."""
    limits = limits or ServerLimits(BatchLimits(2048, 0.003, queue), body, token)
    config = uvicorn.Config(make_app(scorer, limits), log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    with listen("127.0.0.1", port) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def url(scorer: OnlineScorer) -> Iterator[str]:
    with served(scorer) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def expected(models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """What `rmtrain score` gives the answers."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "in.jsonl").write_text(json.dumps({"prompt": "w1 w2", "completions": ANSWERS}) + "\n")
    command = ["score", str(folder / "in.jsonl"), "--ckpt", str(models / "rm"), "--output", str(folder / "out.jsonl")]
    assert rmtrain(command) == 0
    rewards: list[float] = json.loads((folder / "out.jsonl").read_text())["rewards"]
    return rewards


def near(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.array(found, float), np.array(expected, float), atol=1e-5, rtol=0)


# The forms


def test_its_own_form_gives_the_rewards_of_score(client: httpx.Client, expected: list[float]) -> None:
    body = {"prompt": "w1 w2", "completions": ANSWERS}
    reply = client.post("/reward", json=body)
    assert reply.status_code == 200
    assert reply.json() == {"model": "rm", "rewards": expected, "truncated": []}  # alone in its batch: to the last bit
    said = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]
    for same in ({"messages": [USER], "completions": ANSWERS}, {"prompt": [USER], "completions": said}):
        assert client.post("/", json=same).json()["rewards"] == expected
    near(client.post("/reward", json={"messages": [USER, *said[1]]}).json()["rewards"], expected[1:2])


@pytest.mark.parametrize("plain", [True, False])
def test_openrlhf(client: httpx.Client, expected: list[float], plain: bool) -> None:
    prompt = "w1 w2" if plain else OPENING
    queries = [f"{prompt} {answer}</s>" for answer in ANSWERS]
    body = {"query": queries, "prompts": [prompt] * 3, "labels": ["", "", ""]}
    reply = client.post("/reward", json=body).json()
    near(reply["rewards"], expected)
    assert reply["scores"] == reply["rewards"]
    assert reply["extra_logs"] == {"truncated": [0, 0, 0]}
    near(client.post("/reward", json={"query": TEXTS}).json()["rewards"], expected)


def test_llama_factory_and_slime(client: httpx.Client, expected: list[float]) -> None:
    near(client.post("/reward", json={"model": "model", "messages": TEXTS}).json()["scores"], expected)
    for prompt in ("w1 w2", [USER], f"{OPENING} "):
        near(client.post("/", json={"prompt": prompt, "response": ANSWERS[1], "label": None}).json(), expected[1])


def test_vllm_and_sglang_as_verl_and_others_ask_them(client: httpx.Client, expected: list[float]) -> None:
    reply = client.post("/classify", json={"model": "rm", "input": TEXTS[2], "use_activation": False}).json()
    near(reply["data"][-1]["probs"][-1], expected[2])  # as verl reads it
    assert reply["object"] == "list"
    doubled = client.post("/classify", json={"input": [f"<s>{text}" for text in TEXTS]}).json()
    near([entry["probs"][0] for entry in doubled["data"]], expected)
    ids = client.post("/classify", json={"input": [[1, 3, 6, 7, 4, 8, 9, 2]]}).json()
    near(ids["data"][0]["probs"][0], expected[0])
    assert ids["usage"] == {"prompt_tokens": 8, "completion_tokens": 0, "total_tokens": 8}
    messages = [USER, {"role": "assistant", "content": ANSWERS[0]}]
    near(client.post("/classify", json={"messages": messages}).json()["data"][0]["probs"], expected[:1])
    pooled = client.post("/pooling", json={"model": "rm", "task": "classify", "input": TEXTS}).json()
    near([entry["data"][0] for entry in pooled["data"]], expected)
    embedded = client.post("/v1/embeddings", json={"model": "rm", "input": TEXTS[0]}).json()
    near(embedded["data"][-1]["embedding"][-1], expected[0])
    near([entry["embedding"][0] for entry in client.post("/classify", json={"text": TEXTS}).json()], expected)
    near(client.post("/classify", json={"text": TEXTS[0]}).json()["embedding"], expected[:1])
    for body in ({"queries": "w1 w2", "documents": ANSWERS}, {"text_1": ["w1 w2"] * 3, "text_2": ANSWERS}):
        near([entry["score"] for entry in client.post("/score", json=body).json()["data"]], expected)


def test_health_figures_and_the_page(client: httpx.Client, scorer: OnlineScorer) -> None:
    known = {"dtype": "float32", "fingerprint": scorer.info.fingerprint}
    said = client.get("/health").json()
    assert said == {"status": "ok", "model": "rm", "max_length": 512, **known}
    client.post("/reward", json={"prompt": "w1", "completions": ["w2"]})
    lines = client.get("/metrics").text.splitlines()
    assert 'rmtrain_requests_total{path="/health",status="200"}' in "\n".join(lines)
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values["rmtrain_rewards_total"]) >= 1
    assert values['rmtrain_request_seconds_bucket{le="+Inf"}'] == values["rmtrain_request_seconds_count"]
    assert {"/reward", "/classify", "/pooling", "/score", "/v1/embeddings"} <= client.get("/openapi.json").json()[
        "paths"
    ].keys()
    assert client.get("/docs").status_code == 200


# Bad input


def test_a_bad_row_leaves_the_others_their_rewards(client: httpx.Client, expected: list[float]) -> None:
    bad: list[Any] = [ANSWERS[0], 5, ANSWERS[1], [{"role": "user", "content": "w1"}], "\ud800", ANSWERS[2]]
    body = json.dumps({"prompt": "w1 w2", "completions": bad})
    reply = client.post("/reward", content=body, headers={"Content-Type": "application/json"}).json()
    near([reply["rewards"][i] for i in (0, 2, 5)], expected)
    assert [reply["rewards"][i] for i in (1, 3, 4)] == [None] * 3
    assert [error["index"] for error in reply["errors"]] == [1, 3, 4]
    assert reply["errors"][0]["message"].startswith("completions[1]: wrong type")
    reply = client.post("/reward", json={"query": [TEXTS[0], None, TEXTS[1]]}).json()
    near([reply["rewards"][0], reply["rewards"][2]], expected[:2])
    assert reply["errors"] == [{"index": 1, "message": reply["errors"][0]["message"]}]
    reply = client.post("/reward", json={"query": ["w1 w2 w5", "w3"], "prompts": ["w1 w2", "w1 w2"]}).json()
    near(reply["rewards"][:1], expected[1:2])
    assert "does not begin with its prompt" in reply["errors"][0]["message"]


def test_a_row_that_the_template_refuses_leaves_its_batch_alone(scorer: OnlineScorer, expected: list[float]) -> None:
    async def ask(url: str) -> list[Any]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            bodies = [{"prompt": "w1 w2", "completions": ANSWERS}] * 3
            bodies.insert(1, {"prompt": [{"role": "tool", "content": "w1"}], "completions": ["w2"]})
            return await asyncio.gather(*(client.post("/reward", json=body) for body in bodies))

    with served(scorer) as url:
        replies = asyncio.run(ask(url))
    assert [reply.status_code for reply in replies] == [200, 400, 200, 200]
    assert "only user and assistant roles" in replies[1].json()["error"]["message"]
    for reply in (replies[0], *replies[2:]):
        near(reply.json()["rewards"], expected)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/reward", {"prompt": "w1"}, 422, "no known form: give prompt and completions"),
        ("/reward", {"prompt": "w1", "completions": []}, 422, "body.completions: List should have at least 1 item"),
        ("/reward", {"prompt": "w1", "completions": ["w2"] * 1025}, 422, "body.completions: List should have at most"),
        ("/reward", {"completions": ["w2"]}, 400, "give either prompt or messages"),
        ("/reward", {"prompt": 5, "completions": ["w2"]}, 400, "prompt: wrong type: column prompt holds the number 5"),
        ("/reward", {"prompt": "w1", "completions": ["x" * 40000]}, 400, "completions[0]: a text of 40,000 characters"),
        ("/reward", {"messages": [USER]}, 400, "messages: the role of the last message is user"),
        ("/reward", {"query": ["w1"], "prompts": ["w1", "w2"]}, 400, "prompts: 2 for 1 texts"),
        ("/classify", {"input": [[999]]}, 400, "token id 999"),
        ("/classify", {}, 400, "give either input or messages"),
        (
            "/classify",
            {"messages": [USER, SAID], "chat_template": "{{ messages }}"},
            400,
            "chat_template: the model's own",
        ),
        ("/pooling", {"messages": [USER, SAID], "add_generation_prompt": True}, 400, "add_generation_prompt: the"),
        ("/reward", {"messages": [USER, SAID], "continue_final_message": True}, 400, "continue_final_message: the"),
        ("/score", {"queries": ["w1", "w2"], "documents": ["w1"]}, 400, "2 queries and 1 documents"),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    client: httpx.Client, path: str, body: Any, status: int, words: str
) -> None:
    reply = client.post(path, json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, status)
    assert words in reply.json()["error"]["message"]
    assert client.get("/reward").status_code == 405
    reply = client.post(path, content=json.dumps(body))
    assert reply.status_code in (404, 415)


def test_a_place_is_named_once(client: httpx.Client) -> None:
    assert client.post("/reward", json={"query": [3]}).json()["error"]["message"] == "query[0]: no text"
    message = client.post("/classify", json={"input": [1, -2]}).json()["error"]["message"]
    assert message.startswith("input[0]: wrong type")


def mutated(rng: random.Random) -> bytes:
    """A body that is damaged in one of many ways."""
    whole = json.dumps(
        rng.choice(
            [
                {"prompt": "w1", "completions": ANSWERS},
                {"messages": [USER, {"role": "assistant", "content": "w2"}]},
                {"query": TEXTS, "prompts": [OPENING] * 3},
                {"prompt": "w1", "response": "w2", "label": None},
                {"input": TEXTS},
                {"text": TEXTS},
                {"queries": "w1", "documents": ANSWERS},
            ]
        )
    )
    odd = [
        "null",
        "[]",
        "{}",
        "NaN",
        "-Infinity",
        "1" * 5000,
        '"\\ud800"',
        "[" * 900 + "]" * 900,
        "true",
        "1e999",
        '""',
    ]
    match rng.randrange(5):
        case 0:
            return rng.randbytes(rng.randrange(200))
        case 1:
            return whole[: rng.randrange(len(whole))].encode()
        case 2:
            at = [i for i, character in enumerate(whole) if character == '"']
            start, end = sorted(rng.sample(at, 2))
            return (whole[:start] + rng.choice(odd) + whole[end + 1 :]).encode()
        case 3:
            body = json.loads(whole)
            body[rng.choice([*body])] = "@"
            return json.dumps(body).replace('"@"', rng.choice(odd)).encode()
        case _:
            damaged = bytearray(whole.encode())
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            return bytes(damaged)


def test_five_hundred_malformed_bodies_get_an_answer_without_a_traceback(url: str, expected: list[float]) -> None:
    rng = random.Random(0)
    paths = ["/reward", "/", "/classify", "/pooling", "/score", "/v1/embeddings"]
    sent = [(rng.choice(paths), mutated(rng)) for _ in range(500)]
    whole = ("/reward", json.dumps({"prompt": "w1 w2", "completions": ANSWERS}).encode())

    async def ask() -> list[httpx.Response]:
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(base_url=url, timeout=60, headers=headers) as client:
            replies: list[httpx.Response] = []
            for start in range(0, len(sent), 50):  # a good one among them
                part = [*sent[start : start + 50], whole]
                replies += await asyncio.gather(*(client.post(path, content=body) for path, body in part))
                near(replies.pop().json()["rewards"], expected)
            return replies

    replies = asyncio.run(ask())
    for (path, body), reply in zip(sent, replies, strict=True):
        assert reply.status_code == 200 or 400 <= reply.status_code < 500, (path, body, reply.text)
        assert "Traceback" not in reply.text
        assert reply.status_code == 200 or reply.json()["error"]["message"]
    assert [reply.status_code for reply in replies].count(200) < 150


# Many clients, limits, and the end


def test_two_hundred_requests_at_once_are_scored_together(scorer: OnlineScorer) -> None:
    groups = [(g.prompt[0].content, [c[0].content for c in g.completions]) for g in make_groups(200)]

    async def ask(url: str) -> list[Any]:
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=200)) as client:
            bodies = [{"prompt": prompt, "completions": answers} for prompt, answers in groups]
            replies = await asyncio.gather(*(client.post("/reward", json=body) for body in bodies))
            figures = await client.get("/metrics")
            return [*replies, figures]

    with served(scorer) as url:
        *replies, figures = asyncio.run(ask(url))
    assert {reply.status_code for reply in replies} == {200}
    found = scorer.score([_group(*group, f"{i}") for i, group in enumerate(groups)])
    for reply, score in zip(replies, found, strict=True):
        near(reply.json()["rewards"], score.rewards)  # type: ignore[union-attr]
    batches = int(figures.text.split("\nrmtrain_batches_total ")[1].split()[0])
    assert batches < 100


def _group(prompt: str, answers: list[str], name: str) -> PreferenceGroup:
    from rmtrain.data.types import Message

    return PreferenceGroup(
        name, (Message("user", prompt),), tuple((Message("assistant", answer),) for answer in answers), ()
    )


class Slow:
    """A scorer that waits, and notes the rows of each batch."""

    def __init__(self, scorer: OnlineScorer, seconds: float) -> None:
        self._scorer, self._seconds = scorer, seconds
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def score_rows(self, groups: Any) -> Any:
        self.batches.append(len(groups))
        time.sleep(self._seconds)
        return self._scorer.score_rows(groups)


def raw(url: str, body: bytes) -> socket.socket:
    """A connection on which a request was sent."""
    connection = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))
    head = f"POST /reward HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_clients_that_share_a_prompt_share_its_computation(scorer: OnlineScorer, monkeypatch: Any) -> None:
    """Each gets the rewards that it would get alone, also where another's answer is too long or can't be scored."""
    import rmtrain.scoring.batches as scoring

    passes: list[int] = []
    whole = scoring._score_batch

    def once(model: Any, groups: Any, *rest: Any) -> Any:
        passes.append(sum(len(group.prefix) + sum(map(len, group.suffixes)) for group in groups))
        return whole(model, groups, *rest)

    monkeypatch.setattr(scoring, "_score_batch", once)
    prompts = [" ".join(["w1", f"w{i}"] * 40) for i in range(2)]
    groups = [_group(prompts[i % 2], [f"w{i} w{i + 1} w2"], f"{i}") for i in range(8)]
    alone = [scorer.score_rows([group])[0][0] for group in groups]
    taken, passes[:] = sum(passes), []
    together = scorer.score_rows(groups)
    assert [len(rows) for rows in together] == [1] * 8
    for one, (other,) in zip(alone, together, strict=True):
        near(one.reward, other.reward)  # type: ignore[union-attr]
        assert one.tokens == other.tokens  # type: ignore[union-attr]
    assert 3 * sum(passes) < taken
    texts = [scorer.reader.group_of_ids("", [1, *range(5, 65), *range(5, 60), 7 + i, 2]).group for i in range(3)]
    assert join_prompts([*groups, *texts]) == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 9, 10]]
    long = _group(prompts[0], [" ".join(["w9"] * 600)], "long")
    mixed = scorer.score_rows([*groups[:3], long])
    assert [rows[0].truncated for rows in mixed] == [False, False, False, True]  # type: ignore[union-attr]
    near([rows[0].reward for rows in mixed[:3]], [one.reward for one in alone[:3]])  # type: ignore[union-attr]


def test_requests_that_share_a_prompt_go_together_and_none_waits_for_good() -> None:
    """The first request holds the scorer until the others wait; a batch has room for a prompt and two answers."""
    begin, batches = threading.Event(), list[list[str]]()

    class Held:
        def score_rows(self, groups: Any) -> Any:
            begin.wait(30)
            batches.append([f"{group.prompt[0].content[0]}{group.completions[0][0].content[0]}" for group in groups])
            return [[] for _ in groups]

    async def ask() -> None:
        batcher = Batcher(Held(), BatchLimits(440, 0.0, 100), Counters())  # type: ignore[arg-type]
        batcher.start()
        asked = []
        for name in ("x0", "a0", "b0", "a1", "b1", "c0", "a2", "a3", "b2"):
            group = _group(name[0] * 900, [name[1] * 150], name)
            asked.append(asyncio.create_task(batcher.submit([group])))
            await asyncio.sleep(0)
        begin.set()
        await asyncio.gather(*asked)
        await batcher.stop()

    asyncio.run(ask())
    assert batches == [["x0"], ["a0", "a1"], ["b0", "b1"], ["c0"], ["a2", "a3"], ["b2"]]


def test_a_body_that_does_not_arrive_is_given_up(scorer: OnlineScorer) -> None:
    limits = ServerLimits(BatchLimits(2048, 0.003, 8), 1 << 20, body_seconds=0.2)
    with served(scorer, limits=limits) as url:
        connection = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        connection.settimeout(20)
        head = "POST /reward HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        connection.sendall(head.encode())
        told = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        connection.close()
    assert told.startswith("HTTP/1.1 408 ")
    assert "the body did not arrive in 0.2 seconds" in told


def test_a_client_that_hangs_up_costs_the_others_nothing(scorer: OnlineScorer, expected: list[float]) -> None:
    slow = Slow(scorer, 0.3)
    body = json.dumps({"prompt": "w1 w2", "completions": ANSWERS}).encode()
    with served(slow) as url:  # type: ignore[arg-type]
        first = raw(url, body)
        time.sleep(0.1)  # it is being scored, so what follows waits
        for gone in [raw(url, body) for _ in range(5)]:
            gone.close()
        raw(url, body[:20]).close()  # in the middle of its body
        near(
            httpx.post(f"{url}/reward", content=body, headers={"Content-Type": "application/json"}).json()["rewards"],
            expected,
        )
        assert b"200 OK" in first.recv(4096)
        first.close()
        assert httpx.get(f"{url}/metrics").text.count("rmtrain_rows_waiting 0") == 1
    assert slow.batches == [1, 1]  # those that hung up are not scored


def test_more_rows_than_the_queue_keeps_are_refused_for_now(scorer: OnlineScorer) -> None:
    async def ask(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=40)) as client:
            body = {"prompt": "w1", "completions": ["w2", "w3"]}
            return await asyncio.gather(*(client.post("/reward", json=body) for _ in range(40)))

    with served(Slow(scorer, 0.2), queue=10) as url:  # type: ignore[arg-type]
        replies = asyncio.run(ask(url))
    refused = [reply for reply in replies if reply.status_code == 429]
    assert {reply.status_code for reply in replies} == {200, 429}
    assert len(refused) >= 20
    assert refused[0].headers["Retry-After"] == "1"
    assert "rows are already waiting" in refused[0].json()["error"]["message"]


def test_token_and_size_of_the_body(scorer: OnlineScorer) -> None:
    body = {"prompt": "w1", "completions": ["w2"]}
    with served(scorer, body=1000, token="secret") as url, httpx.Client(base_url=url) as client:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic secret"}):
            reply = client.post("/reward", json=body, headers=headers)
            assert reply.status_code == 401
            assert "Authorization: Bearer" in reply.json()["error"]["hint"]
        assert client.get("/health").status_code == 200
        assert client.get("/metrics").status_code == 401
        good = {"Authorization": "Bearer secret"}
        assert client.post("/reward", json=body, headers=good).status_code == 200
        large = {"prompt": "w1", "completions": ["w2 " * 400]}
        reply = client.post("/reward", json=large, headers=good)
        assert reply.status_code == 413
        assert "more than 1,000 bytes" in reply.json()["error"]["message"]
        chunks = (b"x" * 300 for _ in range(10))  # without a length
        assert client.post("/reward", content=chunks, headers=good).status_code == 413


@pytest.mark.parametrize("token", ["secret", "clé d'accès", "\u5408\u8a00\u8449"])
def test_a_client_sends_the_token_that_the_server_compares(token: str, scorer: OnlineScorer) -> None:
    row = _group("w1", ["w2"], "0")
    with served(scorer, token=token) as url:
        servers = [Server.at(url, "rmtrain", token=each) for each in (token, f"{token}.")]
        with contextlib.closing(servers[0]), contextlib.closing(servers[1]):
            assert len(servers[0].score(row, str).rewards) == 1
            with pytest.raises(InputError, match="missing or wrong token") as caught:
                servers[1].score(row, str)
    assert "RMTRAIN_SERVE_TOKEN" in caught.value.hint


def test_a_long_conversation_is_truncated_and_said_to_be(models: Path) -> None:
    short = OnlineScorer.open(str(models / "rm"))
    long = " ".join(WORDS[i % 60] for i in range(600))
    with served(short) as url:
        reply = httpx.post(f"{url}/reward", json={"prompt": long, "completions": ANSWERS}).json()
        texts = [f"<s> [INST] {long} [/INST] w3 </s>", TEXTS[0]]
        text = httpx.post(f"{url}/reward", json={"query": texts}).json()
        forms = {"/reward": "messages", "/classify": "input", "/pooling": "input", "/v1/embeddings": "input"}
        others = [httpx.post(url + path, json={name: texts}).json() for path, name in forms.items()]
        others.append(httpx.post(f"{url}/score", json={"queries": [long, "w1"], "documents": ["w3", "w4"]}).json())
        sglang = httpx.post(f"{url}/classify", json={"text": texts}).json()
    assert reply["truncated"] == [0, 1, 2]
    assert None not in reply["rewards"]
    assert text["extra_logs"]["truncated"] == [1, 0]
    assert [other["truncated"] for other in others] == [[0]] * 5
    assert [entry["truncated"] for entry in sglang] == [True, False]


@pytest.mark.parametrize("form", [Completions, Dialogue, VllmInput, VllmPooling, Embeddings])
@pytest.mark.parametrize("within", [True, False])
def test_the_variables_of_the_chat_template_reach_it_in_every_form(
    form: type[Form], within: bool, scorer: OnlineScorer
) -> None:
    tools = {"tools": [{"name": "look"}], "documents": [{"title": "w1"}]}
    given = {"chat_template_kwargs": {"style": "brief"} | (tools if within else {})} | ({} if within else tools)
    said = {"messages": [USER], "completions": ["w3"]} if form is Completions else {"messages": [USER, SAID]}
    ((group, _),) = form(**said, **given).read(scorer.reader).groups
    assert json.loads(group.arguments) == {**tools, "style": "brief"}


@pytest.mark.parametrize("api", ["rmtrain", "vllm", "vllm-pooling", "sglang", "openrlhf"])
def test_a_client_learns_which_rows_were_truncated_and_by_which_model(scorer: OnlineScorer, api: Any) -> None:
    long = " ".join(WORDS[i % 60] for i in range(600))
    rows = [_group("w1", ["w2", "w3"], "0"), _group(long, ["w2"], "1")]
    with served(scorer) as url:
        remote = RemoteScorer.at(Server.at(url, api, renderer=scorer.info.renderer))
        other = replace(scorer, scorer=SimpleNamespace(info=replace(scorer.info, fingerprint="another")))  # type: ignore[arg-type]
        found = remote.score(ScoringTask("rows", rows, 512, None, Silent()))
    with served(other, port=int(url.rpartition(":")[2])) as same:
        assert same == url
        assert (
            RemoteScorer.at(Server.at(url, api, renderer=scorer.info.renderer)).info.fingerprint
            != remote.info.fingerprint
        )
    assert [score is not None and score.truncated for score in found] == [False, True]
    assert remote.info.max_length == scorer.info.max_length


def test_requests_in_progress_are_answered_before_the_server_stops(scorer: OnlineScorer) -> None:
    replies: list[httpx.Response] = []

    def ask(url: str) -> None:
        replies.append(httpx.post(f"{url}/reward", json={"prompt": "w1", "completions": ["w2"]}, timeout=30))

    slow = Slow(scorer, 0.5)
    with served(slow) as url:  # type: ignore[arg-type]
        asking = threading.Thread(target=ask, args=(url,))
        asking.start()
        while not slow.batches:
            time.sleep(0.01)
    asking.join()
    assert [reply.status_code for reply in replies] == [200]


# The command


def test_the_command_serves_until_it_is_told_to_stop(models: Path, capsys: Any, monkeypatch: Any) -> None:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    seen: list[Any] = []

    def use() -> None:
        for _ in range(400):
            try:
                seen.append(httpx.post(f"http://127.0.0.1:{port}/reward", json={"prompt": "w1", "completions": ["w2"]}))
                break
            except httpx.TransportError:
                time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.delenv("RMTRAIN_SERVE_TOKEN", raising=False)
    thread = threading.Thread(target=use)
    thread.start()
    code = rmtrain(["serve", "--ckpt", str(models / "rm"), "--port", str(port)])
    thread.join()
    told = capsys.readouterr().err
    assert (code, [reply.status_code for reply in seen]) == (0, [200])
    assert f"serving rm at http://127.0.0.1:{port}" in told
    assert told.splitlines()[-1] == "stopped"


def test_the_command_refuses_before_it_loads(models: Path, capsys: Any, monkeypatch: Any) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert rmtrain(["serve", "--ckpt", str(models / "rm"), "--port", port]) == 2
    assert f"can't listen on 127.0.0.1, port {port}" in capsys.readouterr().err
    import rmtrain.cli.serve as module

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert rmtrain(["serve", "--ckpt", str(models / "rm")]) == 2
    assert "install them: pip install fastapi uvicorn" in capsys.readouterr().err
