"""Chat templates: applied with limits of time and memory and a fixed date, and completed for use without rmtrain."""

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any

from jinja2 import Environment
from jinja2.exceptions import TemplateError

from rmtrain.data.types import Conversation, Message, from_json
from rmtrain.errors import DataError, InputError

RAW = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # the texts alone, in order
DATE = "2024-07-26"  # the date that templates print: Llama 3's default

REFUSED = "refused by the chat template"
UNKNOWN = "of token ids that the tokenizer does not have"
TOO_LONG = "too long for data.max_length without any text"

_SECONDS = 5.0  # seconds of processor time per conversation; an ordinary template takes a thousandth
_WAITS = 4  # factor for wall-clock time, since threads wait for each other
_MEMORY = 2 << 30  # bytes per conversation, beyond what the process already uses
LONGEST = 64 << 20  # characters per conversation
_DATE_CODES = (*"aAbBcdDeFGHIjmMpSuUVwWxXyY", "-d", "-m")  # strftime format


class TemplateRefusalError(DataError):
    """The chat template refuses a conversation or fails; the ledger counts it under `cause`."""

    cause = REFUSED


class UnknownTokenError(TemplateRefusalError):
    """Token ids that the tokenizer does not have."""

    cause = UNKNOWN


class BareTemplateError(TemplateRefusalError):
    """The chat template alone takes more tokens than fit, as with very many turns."""

    cause = TOO_LONG


class RunawayTemplateError(InputError):
    """The chat template does not terminate, or takes too much memory."""


class _OutOfTime(BaseException):
    """Derived from BaseException, so that a template can't catch it."""


def check_template(tokenizer: Any) -> None:
    """Refuse the operator **, since a power can take days and can't be interrupted.

    Raises:
        InputError: names the line.
        TemplateError: the template is not valid Jinja.
    """
    for text in templates_of(tokenizer).values():
        for line, kind, value in Environment().lex(text):
            if kind == "operator" and value == "**":
                where = f"line {line} of {name_of(tokenizer)}"
                raise InputError(f"{where} has the operator **, which is not allowed", "write the number out")


def templates_of(tokenizer: Any) -> dict[str, str]:
    """The chat templates of a tokenizer by name: `default`, and `tool_use` if rows with tools have their own."""
    templates = tokenizer.chat_template
    return dict(templates) if isinstance(templates, dict) else {"default": templates} if templates else {}


def name_of(tokenizer: Any) -> str:
    """The name of a tokenizer's chat template in messages."""
    return f"the chat template of {tokenizer.name_or_path}" if tokenizer.name_or_path else "the chat template"


def apply_template(
    tokenizer: Any,
    conversation: Conversation,
    *,
    today: str | None,
    arguments: str = "",
    generation: bool = False,
) -> str:
    """The result of transformers' `apply_chat_template` for one conversation, with the arguments of `apply_to_all`.

    Raises:
        TemplateRefusalError: the template raises an error, of its own or another.
        RunawayTemplateError: it takes too much time or memory.
    """
    return apply_to_all(tokenizer, [conversation], today=today, arguments=arguments, generation=generation)[0]


def apply_to_all(
    tokenizer: Any,
    conversations: Sequence[Conversation],
    *,
    today: str | None,
    arguments: str = "",
    generation: bool = False,
) -> list[str]:
    """The result of transformers' `apply_chat_template` for each of at least one conversation, in one call.

    `today` is the date that `strftime_now` returns to the template; None: the real one.

    Raises:
        TemplateRefusalError: the template raises an error, of its own or another, for any of them.
        RunawayTemplateError: it takes too long, or too much memory, for all together.
    """
    variables, template = from_json(arguments), None
    if today is not None:
        template = bake(tokenizer.get_chat_template(tools=variables.get("tools")), False, False, today)
    messages = [[message.as_dict() for message in conversation] for conversation in conversations]
    try:
        with _bounded():
            texts: list[str] = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=generation, **variables
            )
    except _OutOfTime:
        raise _runaway(tokenizer, f"runs for more than {_SECONDS:g} seconds") from None
    except MemoryError:
        raise _runaway(tokenizer, f"takes more than {_MEMORY >> 30} GiB of memory") from None
    except TemplateError as error:
        raise TemplateRefusalError(error.message or type(error).__name__) from error
    except Exception as error:
        raise TemplateRefusalError(f"{type(error).__name__}: {str(error)[:200]}") from error
    if (longest := max(map(len, texts))) > LONGEST:
        raise _runaway(tokenizer, f"makes a text of {longest:,} characters")
    return texts


def _runaway(tokenizer: Any, what: str) -> RunawayTemplateError:
    return RunawayTemplateError(
        f"{name_of(tokenizer)} {what} on one conversation", "give another model.chat_template, or another --prompt"
    )


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop code that takes too much processor time or memory; outside the main thread, too much wall-clock time."""
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        with _WATCH.over_this_thread():
            yield
        return
    import resource

    def stop(number: int, frame: Any) -> None:
        raise _OutOfTime

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with open("/proc/self/statm", "rb", buffering=0) as stream:  # must be fast: called per conversation
            most = int(stream.read().split()[0]) * resource.getpagesize() + _MEMORY
    except OSError:  # macOS has no such file, so only time is limited
        most = resource.RLIM_INFINITY
    limits = [limit for limit in (soft, hard, most) if limit != resource.RLIM_INFINITY]
    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (min(limits, default=soft), hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS, 0.5)  # repeated, in case the first signal is ignored
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class _Watch:
    """Stops threads that signals can't reach, by raising an exception in a thread that exceeds its time."""

    def __init__(self) -> None:
        self._ends: dict[int, float] = {}  # by thread
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None

    @contextmanager
    def over_this_thread(self) -> Iterator[None]:
        """Raise _OutOfTime in this thread once the block has run too long."""
        thread = threading.get_ident()
        with self._lock:
            self._ends[thread] = time.monotonic() + _WAITS * _SECONDS
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._run, name="rmtrain-templates", daemon=True)
                self._watcher.start()
        try:
            yield
        finally:
            with self._lock:
                self._ends.pop(thread, None)

    def _run(self) -> None:
        while True:
            time.sleep(_SECONDS / 10)
            now = time.monotonic()
            with self._lock:
                for thread, end in self._ends.items():
                    if end < now:
                        self._ends[thread] = now + _SECONDS  # repeated, in case it is ignored
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_OutOfTime))


_WATCH = _Watch()


def alternating(conversation: Conversation) -> Conversation:
    """The conversation with system text moved into the first user turn, and adjacent turns of the same role joined.

    Templates such as Mistral-7B-Instruct-v0.1's accept only alternating user and assistant turns.
    """
    turns: list[Message] = []
    for message in conversation:
        role = "user" if message.role == "system" else message.role
        if turns and turns[-1].role == role:
            turns[-1] = Message(role, f"{turns[-1].content}\n\n{message.content}")
        else:
            turns.append(Message(role, message.content))
    return tuple(turns)


def asks_for_date(template: str) -> bool:
    """Whether a template may print today's date, or has a date from `bake`."""
    return "strftime_now" in template


def bake(template: str, bos: bool, end: bool, today: str | None) -> str:
    """A template that itself writes what the renderer adds.

    Args:
        bos: write BOS at the start.
        end: write EOS at the end, but not after a generation prompt.
        today: the date to print, if the template prints a date that is not fixed; None changes nothing.
    """
    head = "{{ bos_token }}{# BOS, as in training #}\n" if bos else ""  # the comment swallows the line break
    if today is not None and asks_for_date(template) and "macro strftime_now(" not in template:
        day = date.fromisoformat(today)
        steps = "".join(f" | replace('%{code}', '{day.strftime(f'%{code}')}')" for code in _DATE_CODES)
        head += f"{{% macro strftime_now(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}\n"
    tail = "{{ eos_token if not add_generation_prompt else '' }}" if end else ""
    return head + (template.removesuffix("\n") + tail if tail else template)
