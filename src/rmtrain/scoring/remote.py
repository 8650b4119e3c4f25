"""A running server as a scorer: rewards over HTTP, by the APIs of rmtrain, vLLM, SGLang and OpenRLHF."""

import contextlib
import http.client
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from rmtrain.data.render import Renderer
from rmtrain.data.types import Conversation, PreferenceGroup, from_json, holds_ids
from rmtrain.errors import InputError, RunFailedError
from rmtrain.scoring.scorer import GroupScore, ScorerInfo, ScoringTask, short_digest

Api = Literal["rmtrain", "vllm", "vllm-pooling", "sglang", "openrlhf"]
_IN_FLIGHT = 32  # concurrent requests: servers gather them into batches
_TRIES, _WAIT_SECONDS, _TIMEOUT_SECONDS = 6, 1.0, 600.0
_BUSY = (429, 502, 503, 504)
_TOKEN_HINT = "set RMTRAIN_SERVE_TOKEN to the server's token"
_HINTS = {401: _TOKEN_HINT, 403: _TOKEN_HINT, 404: "check --url and --api", 405: "check --url and --api"}


def _names_cut(answer: Any) -> bool:
    return bool(answer.get("truncated"))


class Ask(NamedTuple):
    """A request, and where its answer holds the rewards."""

    path: str
    body: Mapping[str, object]
    read: Callable[[Any], Any]  # answer → a list of rewards, or one reward
    cut: Callable[[Any], bool] = _names_cut  # answer → whether it names a truncated row, as those of `rmtrain serve` do


def _of_rmtrain(group: PreferenceGroup, server: "Server") -> Iterator[Ask]:
    answers = [[message.as_dict() for message in completion] for completion in group.completions]
    body = {"messages": [message.as_dict() for message in group.prompt], "completions": answers, **_variables(group)}
    yield Ask("/reward", body, lambda answer: answer["rewards"])


def _of_vllm(group: PreferenceGroup, server: "Server") -> Iterator[Ask]:
    for completion in group.completions:
        yield Ask("/classify", _chat(group, completion, server), lambda answer: answer["data"][-1]["probs"][-1])


def _of_pooling(group: PreferenceGroup, server: "Server") -> Iterator[Ask]:
    for completion in group.completions:
        body = {**_chat(group, completion, server), "task": "classify"}
        yield Ask("/pooling", body, lambda answer: _last(answer["data"][-1]["data"]))


def _of_sglang(group: PreferenceGroup, server: "Server") -> Iterator[Ask]:
    texts = server.texts(group)
    yield Ask(
        "/classify",
        {"model": server.model, "text": texts},
        lambda answer: [_last(text["embedding"]) for text in answer],
        lambda answer: any(map(_names_cut, answer)),
    )


def _of_openrlhf(group: PreferenceGroup, server: "Server") -> Iterator[Ask]:
    texts = server.texts(group)
    body = {"query": texts, "prompts": [server.opening(group)] * len(texts), "labels": [""] * len(texts)}
    yield Ask(server.path or "/reward", body, lambda answer: answer["rewards"], _logs_cut)


def _logs_cut(answer: Any) -> bool:
    logs = answer.get("extra_logs")
    marks = logs.get("truncated") if isinstance(logs, dict) else None
    return any(marks) if isinstance(marks, list) else bool(marks)


_FORMS: dict[Api, Callable[[PreferenceGroup, "Server"], Iterator[Ask]]] = {
    "rmtrain": _of_rmtrain,
    "vllm": _of_vllm,
    "vllm-pooling": _of_pooling,
    "sglang": _of_sglang,
    "openrlhf": _of_openrlhf,
}
_TEXTS: tuple[Api, ...] = ("sglang", "openrlhf")  # APIs that take text, which a local tokenizer renders


def _variables(group: PreferenceGroup) -> dict[str, object]:
    """The variables of a chat template beside the messages, as `rmtrain serve` takes them."""
    variables = from_json(group.arguments)
    named = {name: variables.pop(name) for name in ("tools", "documents") if name in variables}
    return {**named, **({"chat_template_kwargs": variables} if variables else {})}


def _chat(group: PreferenceGroup, completion: Conversation, server: "Server") -> dict[str, object]:
    """A conversation and the other variables of its chat template, as vLLM takes them."""
    messages = [message.as_dict() for message in group.prompt + completion]
    body = {"model": server.model, "messages": messages, "use_activation": False}
    return body | ({"chat_template_kwargs": json.loads(group.arguments)} if group.arguments else {})


def _last(value: Any) -> Any:
    return value[-1] if isinstance(value, list) else value


@dataclass(frozen=True)
class Server:
    """A server at an address, with one API."""

    url: str  # its address, such as http://127.0.0.1:8000; its path is put before the API's paths
    api: Api
    model: str = ""  # the name sent in requests; if empty, the server is asked for it
    token: str = ""  # of `Authorization: Bearer`; empty for none
    about: Mapping[str, Any] = field(default_factory=dict)  # what `rmtrain serve` says of itself; others say nothing
    renderer: Renderer | None = None  # turns conversations into text, for APIs that take text
    _free: list[http.client.HTTPConnection] = field(default_factory=list, repr=False)  # idle connections

    @classmethod
    def at(cls, url: str, api: Api, token: str = "", renderer: Renderer | None = None) -> "Server":
        """Connect to a server.

        Raises:
            InputError: the address is invalid, no server listens there, or the API needs a tokenizer.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"--url {url}: not a web address", "such as http://127.0.0.1:8000")
        if api in _TEXTS and renderer is None:
            raise InputError(
                f"--api {api} sends text, so it needs a tokenizer to render conversations",
                "name the model with --verify CKPT",
            )
        server = cls(url.rstrip("/"), api, token=token, renderer=renderer)
        with contextlib.closing(server):
            _, about = server._send("GET", "/health", None)
            status, answer = server._send("GET", "/v1/models", None) if api in ("vllm", "vllm-pooling") else (0, None)
        models = answer.get("data", []) if status == 200 and isinstance(answer, dict) else []
        own = about if isinstance(about, dict) and "fingerprint" in about else {}
        return replace(server, model=models[0].get("id", "") if models else "", about=own)

    @property
    def path(self) -> str:
        """The path of the address."""
        return urlsplit(self.url).path

    def texts(self, group: PreferenceGroup) -> list[str]:
        """The conversations as text, with BOS if the server's tokenizer does not add it."""
        assert self.renderer is not None
        tokenizer = self.renderer.tokenizer
        bos = tokenizer.bos_token or ""
        adds = bool(bos) and tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
        texts = [str(self.renderer.text(group.prompt + answer, group.arguments)) for answer in group.completions]
        return [text.removeprefix(bos) if adds and self.api == "sglang" else text for text in texts]

    def opening(self, group: PreferenceGroup) -> str:
        """The prompt as text, with the generation prompt."""
        assert self.renderer is not None
        return self.renderer.render(group.prompt, group.arguments, generation=True)

    def score(self, group: PreferenceGroup, place: Callable[[str], str]) -> GroupScore:
        """Rewards of a group's completions, and whether the server says that it truncated one; `place` names its row.

        Raises:
            InputError: the server refuses the row.
            RunFailedError: the server fails, or its answer has another form.
        """
        if holds_ids(group.completions):
            raise InputError(f"{place(group.id)}: the row holds token ids", "score such rows without --url")
        rewards: list[float] = []
        truncated = False
        for ask in _FORMS[self.api](group, self):
            status, answer = self._send("POST", ask.path, ask.body)
            if 400 <= status < 500:
                fault = f"{self.url} refuses it ({status}): {_stated_fault(answer)}"
                raise InputError(f"{place(group.id)}: {fault}", _HINTS.get(status, "mend the row"))
            try:
                value = ask.read(answer) if status == 200 else math.nan
                values = [float(reward) for reward in (value if isinstance(value, list) else [value])]
            except (KeyError, IndexError, TypeError, ValueError):
                values = [math.nan]
            if not all(map(math.isfinite, values)):
                fault = f"{self.url}{ask.path} gives no reward ({status}): {_stated_fault(answer)}"
                raise RunFailedError(f"{place(group.id)}: {fault}", "check --api")
            rewards += values
            truncated = truncated or ask.cut(answer)
        if len(rewards) != len(group.completions):
            fault = f"{len(rewards)} rewards for {len(group.completions)} answers"
            raise RunFailedError(f"{place(group.id)}: {fault}", "check --api")
        return GroupScore(tuple(rewards), (), truncated)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, Any]:
        """Status and answer of a request; a server that is busy, or breaks the connection, is asked again."""
        prefix = "" if self.api == "openrlhf" and self.path else self.path
        headers: dict[str, str | bytes] = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self.token}".encode()} if self.token else {}  # as the server compares it
        data = json.dumps(body).encode() if body is not None else None
        for attempt in range(_TRIES):
            connection = self._connection()
            try:
                connection.request(method, f"{prefix}{path}", data, headers)
                response = connection.getresponse()
                text = response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if attempt == _TRIES - 1 or isinstance(error, ConnectionRefusedError):
                    raise RunFailedError(f"{self.url} does not answer: {error}", "is the server running?") from None
                continue
            self._free.append(connection)
            if response.status not in _BUSY or attempt == _TRIES - 1:
                return response.status, _parsed(text)
            time.sleep(min(30.0, _WAIT_SECONDS * 2**attempt))
        raise AssertionError("the last try returns or raises")

    def _connection(self) -> http.client.HTTPConnection:
        """A connection that no other thread uses."""
        with contextlib.suppress(IndexError):
            return self._free.pop()
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_SECONDS)

    def close(self) -> None:
        """Close the connections that are open."""
        while self._free:
            self._free.pop().close()


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.decode(errors="replace")


def _stated_fault(answer: Any) -> str:
    """What a server says of a fault, in a line."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:300]


@dataclass(frozen=True)
class RemoteScorer:
    """Rewards of a server, whose model, lengths and precision are its own."""

    info: ScorerInfo
    server: Server

    @classmethod
    def at(cls, server: Server) -> "RemoteScorer":
        """The scorer of a server."""
        about = server.about
        fingerprint = short_digest(f"{server.url} {server.api} {server.model} {about.get('fingerprint', '')}")
        return cls(ScorerInfo(server.url, fingerprint, "", "", int(about.get("max_length", 0))), server)

    def score(self, task: ScoringTask) -> list[GroupScore | None]:
        """Rewards; see `Scorer`."""
        scores: list[GroupScore | None] = []

        def ask(group: PreferenceGroup) -> GroupScore:
            return self.server.score(group, task.place)

        with contextlib.closing(self.server), ThreadPoolExecutor(_IN_FLIGHT) as pool:
            try:
                for done, score in enumerate(pool.map(ask, task.groups), 1):
                    scores.append(score)
                    task.progress(done, len(task.groups))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return scores


@dataclass(frozen=True)
class Comparison:
    """Rewards of a server beside those of the checkpoint that it should serve."""

    n: int
    largest: float
    spread: float  # standard deviation of the local rewards
    worst: int  # the group of the largest difference


def compare_rewards(server: Sequence[GroupScore | None], own: Sequence[GroupScore | None]) -> Comparison:
    """How far a server's rewards are from local ones, over all completions of the same groups."""
    pairs = [
        (abs(served - local), place, local)
        for place, (theirs, ours) in enumerate(zip(server, own, strict=True))
        if theirs is not None and ours is not None
        for served, local in zip(theirs.rewards, ours.rewards, strict=True)
    ]
    largest, worst, _ = max(pairs)
    return Comparison(len(pairs), largest, statistics.pstdev(local for *_, local in pairs), worst)
