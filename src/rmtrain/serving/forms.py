"""The forms of requests and answers: the server's own, and those of trainers and inference engines.

Each form defines the rows of a request and the answer. A row without a reward is `null` in the answer, and `errors`
gives the reason.
"""

import time
import uuid
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, WithJsonSchema

from rmtrain.errors import InputError
from rmtrain.serving.rows import Answer, RequestRows
from rmtrain.serving.texts import TextReader

MOST_ROWS = 1024  # in a request
_OBJECTS = {"type": "array", "items": {"type": "object"}}
Conversation = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, _OBJECTS]})]  # text, or messages
Text = Annotated[Any, WithJsonSchema({"type": "string"})]
Texts = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}]})]  # one, or several
Objects = Annotated[Any, WithJsonSchema(_OBJECTS)]
_OWN_RENDERING = "refused where it is set: rewards are those of whole conversations by the model's own chat template"
Rows = Field(min_length=1, max_length=MOST_ROWS)


class Form(BaseModel):
    """A request; unknown fields are ignored, since clients send options of their own."""

    model_config = ConfigDict(extra="ignore")

    def read(self, reader: TextReader) -> RequestRows:
        """The rows to score; raises InputError if the request can't be read at all."""
        rows = RequestRows(reader)
        self._add_rows(rows)
        return rows

    @abstractmethod
    def _add_rows(self, rows: RequestRows) -> None:
        """Add what is to be scored."""

    @abstractmethod
    def reply(self, answer: Answer, model: str) -> Any:
        """The answer, as JSON."""


class Arguments(Form):
    """The variables of a chat template beside messages. Another rendering than the model's own is refused."""

    tools: Objects = None
    documents: Objects = None
    chat_template_kwargs: dict[str, Any] | None = None  # vLLM's clients put tools and documents there
    chat_template: Annotated[Any, Field(description=_OWN_RENDERING)] = None
    add_generation_prompt: Annotated[Any, Field(description=_OWN_RENDERING)] = None
    continue_final_message: Annotated[Any, Field(description=_OWN_RENDERING)] = None

    def arguments(self) -> dict[str, Any]:
        """The columns of a row for `rmtrain score`; raises InputError where another rendering is asked for."""
        for name in ("chat_template", "add_generation_prompt", "continue_final_message"):
            if getattr(self, name):
                raise InputError(f"{name}: the model's own chat template renders whole conversations", "leave it out")
        variables = dict(self.chat_template_kwargs or {})
        given = {"tools": self.tools, "documents": self.documents}
        given = {name: variables.pop(name, None) if value is None else value for name, value in given.items()}
        return {**given, "chat_template_kwargs": variables}

    def reply(self, answer: Answer, model: str) -> Any:
        """Rewards in the order of the completions, and the numbers of truncated ones."""
        return {"model": model, "rewards": answer.rewards, "truncated": answer.truncated, **errors(answer)}


class Completions(Arguments):
    """A prompt, as `prompt` (text or messages) or `messages`, with its completions."""

    prompt: Conversation = None
    messages: Objects = None
    completions: Annotated[list[Conversation], Rows]

    def _add_rows(self, rows: RequestRows) -> None:
        """All completions of the prompt, which is computed once."""
        prompt = self.prompt if self.messages is None else self.messages
        if (self.prompt is None) == (self.messages is None):
            raise InputError("give either prompt or messages beside completions", "leave one of them out")
        rows.completions(prompt, self.completions, "completions", self.arguments())


class Dialogue(Arguments):
    """A whole conversation; the reward is that of its last message, the assistant's."""

    messages: Annotated[list[Annotated[Any, WithJsonSchema({"type": "object"})]], Rows]

    def _add_rows(self, rows: RequestRows) -> None:
        rows.dialogue(self.messages, self.arguments())


class OpenRLHF(Form):
    """Texts of prompts and answers, as sent to OpenRLHF's remote reward model."""

    query: Annotated[list[Text], Rows]
    prompts: list[Text] | None = None
    labels: Any = None

    def _add_rows(self, rows: RequestRows) -> None:
        if self.prompts and len(self.prompts) != len(self.query):
            raise InputError(f"prompts: {len(self.prompts)} for {len(self.query)} texts in query", "give one per text")
        rows.texts(self.query, "query", self.prompts or None)

    def reply(self, answer: Answer, model: str) -> Any:
        """OpenRLHF filters by `scores` and logs `extra_logs`."""
        logs = {"truncated": [float(place in answer.truncated) for place in range(len(answer.rewards))]}
        return {"rewards": answer.rewards, "scores": answer.rewards, "extra_logs": logs, **errors(answer)}


class LlamaFactory(Form):
    """Texts rendered by the policy's chat template, as sent by LLaMA-Factory's PPO."""

    messages: Annotated[list[Text], Rows]

    def _add_rows(self, rows: RequestRows) -> None:
        rows.texts(self.messages, "messages")

    def reply(self, answer: Answer, model: str) -> Any:
        """The scores."""
        return {"model": model, "scores": answer.rewards, "truncated": answer.truncated, **errors(answer)}


class Slime(Form):
    """One sample of slime; its prompt is messages, plain text, or text rendered by the model's chat template."""

    prompt: Conversation
    response: Text
    label: Any = None

    def _add_rows(self, rows: RequestRows) -> None:
        if isinstance(self.prompt, str) and isinstance(self.response, str) and rows.reader.is_rendered(self.prompt):
            rows.texts([self.prompt + self.response], "response", [self.prompt])
        else:
            rows.completions(self.prompt, [self.response], "response", {})

    def reply(self, answer: Answer, model: str) -> Any:
        """Only the reward."""
        return answer.rewards[0]


class VllmInput(Arguments):
    """A request to vLLM's endpoints: texts or token ids in `input`, or `messages`."""

    input: Texts = None
    messages: Objects = None
    use_activation: Annotated[Any, Field(description="of no effect: rewards have no activation")] = None

    def _add_rows(self, rows: RequestRows) -> None:
        if (self.input is None) == (self.messages is None):
            raise InputError("give either input or messages", "leave one of them out")
        if self.messages is not None:
            rows.dialogue(self.messages, self.arguments())
        else:
            rows.texts(listed(self.input, "input"), "input")

    def reply(self, answer: Answer, model: str) -> Any:
        """A list with one entry per text."""
        entries = [{"index": place, **self.entry(reward)} for place, reward in enumerate(answer.rewards)]
        return envelope(entries, model, answer)

    @staticmethod
    def entry(reward: float | None) -> dict[str, Any]:
        """A reward in vLLM's format for a class probability."""
        return {"label": "LABEL_0", "probs": [] if reward is None else [reward], "num_classes": 1}


class VllmPooling(VllmInput):
    """vLLM's `/pooling`."""

    task: Any = None

    @staticmethod
    def entry(reward: float | None) -> dict[str, Any]:
        """A reward in vLLM's format for pooled output."""
        return {"object": "pooling", "data": [] if reward is None else [reward]}


class Embeddings(VllmInput):
    """SGLang's `/v1/embeddings`, from which verl reads rewards."""

    @staticmethod
    def entry(reward: float | None) -> dict[str, Any]:
        """A reward in SGLang's format for an embedding."""
        return {"object": "embedding", "embedding": [] if reward is None else [reward]}


class SglangClassify(Form):
    """SGLang's `/classify`: texts in `text`."""

    text: Texts

    def _add_rows(self, rows: RequestRows) -> None:
        rows.texts(listed(self.text, "text"), "text")

    def reply(self, answer: Answer, model: str) -> Any:
        """One object per text; for a single text, the object without a list."""
        entries: list[dict[str, Any]] = [
            {"embedding": [] if reward is None else [reward], "truncated": place in answer.truncated}
            for place, reward in enumerate(answer.rewards)
        ]
        for place in answer.faults:
            entries[place]["error"] = answer.why(place)
        return entries[0] if isinstance(self.text, str) else entries


class VllmScore(Form):
    """vLLM's `/score`: prompts in `queries` or `text_1`, answers in `documents` or `text_2`, as plain text."""

    queries: Texts = None
    documents: Texts = None
    text_1: Any = None
    text_2: Any = None

    def _add_rows(self, rows: RequestRows) -> None:
        """A reward for each answer; a single prompt applies to all answers."""
        prompts = listed(self.queries if self.queries is not None else self.text_1, "queries")
        answers = listed(self.documents if self.documents is not None else self.text_2, "documents")
        if len(prompts) == 1:
            rows.completions(prompts[0], answers, "documents", {})
        elif len(prompts) == len(answers):
            for prompt, value in zip(prompts, answers, strict=True):
                rows.completions(prompt, [value], "documents", {})
        else:
            raise InputError(f"{len(prompts)} queries and {len(answers)} documents", "give one query, or as many")

    def reply(self, answer: Answer, model: str) -> Any:
        """A list of scores."""
        data = [{"index": place, "object": "score", "score": reward} for place, reward in enumerate(answer.rewards)]
        return envelope(data, model, answer)


def _form_of_reward(body: Any) -> str | None:
    """The form of a body of `/reward`, by its fields."""
    if not isinstance(body, dict):
        return None
    if "completions" in body:
        return "completions"
    if "query" in body:
        return "openrlhf"
    if "response" in body:
        return "slime"
    messages = body.get("messages")
    if isinstance(messages, list):
        return "llamafactory" if messages and isinstance(messages[0], str) else "dialogue"
    return None


RewardForm = Annotated[
    Annotated[Completions, Tag("completions")]
    | Annotated[Dialogue, Tag("dialogue")]
    | Annotated[OpenRLHF, Tag("openrlhf")]
    | Annotated[LlamaFactory, Tag("llamafactory")]
    | Annotated[Slime, Tag("slime")],
    Discriminator(
        _form_of_reward,
        custom_error_type="form",
        custom_error_message="no known form: give prompt and completions, messages, query, or prompt and response",
    ),
]
ClassifyForm = Annotated[
    Annotated[VllmInput, Tag("vllm")] | Annotated[SglangClassify, Tag("sglang")],
    Discriminator(
        lambda body: ("sglang" if "text" in body else "vllm") if isinstance(body, dict) else None,
        custom_error_type="form",
        custom_error_message="no known form: give input, messages or text",
    ),
]


def listed(value: Any, where: str) -> list[Any]:
    """One text, the token ids of one, or several of them, as a list."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values:
        raise InputError(f"{where}: neither text nor a list", "give text, or a list of texts")
    if len(values) > MOST_ROWS and not isinstance(values[0], int):
        raise InputError(f"{where}: {len(values)} rows", f"give at most {MOST_ROWS} in one request")
    return [values] if isinstance(values[0], int) else values


def errors(answer: Answer) -> dict[str, Any]:
    """Why rows have no reward; empty if all have one."""
    faults = [{"index": place, "message": answer.why(place)} for place in answer.faults]
    return {"errors": faults} if faults else {}


def envelope(data: Sequence[dict[str, Any]], model: str, answer: Answer) -> dict[str, Any]:
    """The object around the entries of OpenAI's and vLLM's answers, and what `Arguments.reply` says of the rows."""
    about = {"id": f"rm-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": model}
    usage = {"prompt_tokens": answer.tokens, "completion_tokens": 0, "total_tokens": answer.tokens}
    return {**about, "data": data, "usage": usage, "truncated": answer.truncated, **errors(answer)}
