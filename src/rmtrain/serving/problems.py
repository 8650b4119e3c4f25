"""Error answers for clients: JSON with a message and a hint, never a traceback."""

from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse

from rmtrain.errors import InputError, RmtrainError, printable
from rmtrain.serving.rows import without_group


def problem(status: int, message: str, hint: str = "", headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer with the fault and how to correct it."""
    body = {"error": {"message": printable(message), **({"hint": printable(hint)} if hint else {}), "code": status}}
    return JSONResponse(body, status, headers)


def problem_of(error: RmtrainError) -> JSONResponse:
    """The answer to a request in which no row has a reward."""
    return problem(400 if isinstance(error, InputError) else 500, without_group(error.message), error.hint)


def problem_of_body(faults: Sequence[Any]) -> JSONResponse:
    """The answer to a body that is not JSON or has no known form; names the place."""
    tags = {"body", "completions", "dialogue", "openrlhf", "llamafactory", "slime", "vllm", "sglang"}
    messages = []
    for fault in faults[:5]:
        place = [str(part) for part in fault["loc"]]
        fields = place[1:] if place[:1] == ["body"] else place
        fields = fields[1:] if len(fields) > 1 and fields[0] in tags else fields
        messages.append(f"{'.'.join(['body', *fields])}: {fault['msg'][:300]}")
    return problem(422, "; ".join(messages), "see /docs for the forms of a request")
