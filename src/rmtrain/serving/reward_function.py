"""`RewardFunction`: a reward model as a callable, for trainers of policies."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from rmtrain.data.schemas.messages import completion_of, conversation, prompt_of
from rmtrain.data.schemas.rows import RowFault, is_empty, template_arguments
from rmtrain.data.types import Conversation, Message, PreferenceGroup
from rmtrain.errors import InputError
from rmtrain.metrics.rankings import spearman
from rmtrain.scoring.scorer import GroupScore, ScoringOptions
from rmtrain.serving.online import OnlineScorer, require_strings, rewards_or_raise
from rmtrain.serving.texts import ReadTexts

Messages = Sequence[dict[str, Any]]
LogMetric = Callable[[str, float], None]
_COLUMNS = ("tools", "documents", "chat_template_kwargs")  # columns of a data set that go to the chat template


class RewardFunction:
    """Rewards of a trained model, the same as from `rmtrain score`.

    It may be shared by several threads, of which one scores at a time. Rows with the same prompt share a forward pass,
    with the prompt computed once. In a run of several processes, each loads the model and scores its own rows.

        reward = RewardFunction("runs/mistral_lora-20260101-120000-ab12")
        trainer = GRPOTrainer(model=policy, reward_funcs=reward, args=arguments, train_dataset=prompts)
        reward.score("What is the capital of France?", ["Paris.", "Rome."])

    Args:
        ckpt: a run folder, a checkpoint or adapter folder, or a hub id.
        device: for the weights, such as "cuda:1"; None is the trainer's device: the GPU of this process, or the CPU.
        name: the name under which trainers log the rewards; None is the name of the run or folder.
        dtype: float32, bfloat16, float16, or auto for the fastest here, in place of the checkpoint's.
        max_length: maximum tokens of prompt and one completion, in place of the checkpoint's.
        tokens_per_batch: maximum tokens per forward pass, in place of the checkpoint's.
        prompt: for other people's models, the name of a built-in prompt or a Jinja file.
        label: for other people's models with several labels, the one that is the reward.
        score_blank: give a blank answer the model's reward, as in `rmtrain score`, for trainers that need a number;
            otherwise it gets none, since no reward model is trained on blank answers.
        calibrated: give log-odds, calibrated by the result of `rmtrain calibrate`.

    Raises:
        CheckpointError: the checkpoint can't be loaded.
        InputError: an argument does not fit it, or it only compares completions.
    """

    def __init__(
        self,
        ckpt: str | os.PathLike[str],
        *,
        device: str | None = None,
        name: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
        max_length: int | None = None,
        tokens_per_batch: int | None = None,
        prompt: str | None = None,
        label: str | None = None,
        score_blank: bool = False,
        calibrated: bool = False,
    ) -> None:
        given: dict[str, Any] = {"device": device, "name": name, "dtype": dtype, "max_length": max_length}
        given |= {
            "prompt": prompt,
            "label": label,
            "tokens_per_batch": tokens_per_batch,
            "score_blank": score_blank,
            "calibrated": calibrated,
        }
        self._given = (os.fspath(ckpt), given)
        options = ScoringOptions(prompt=prompt, label=label, max_length=max_length, dtype=dtype, calibrated=calibrated)
        self._scorer = OnlineScorer.open(os.fspath(ckpt), options, device, tokens_per_batch)
        self._score_blank = score_blank
        self.__name__ = name or self._scorer.name

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process, such as a worker of Ray, loads the model again."""
        ckpt, given = self._given
        return partial(type(self), ckpt, **given), ()

    def __call__(
        self, prompts: Sequence[str | Messages], completions: Sequence[str | Messages], **columns: Any
    ) -> list[float | None]:
        """One reward per row, with the signature of TRL's GRPO and RLOO trainers.

        Args:
            prompts: N prompts: text, which is one user message, or messages.
            completions: N completions: text, or messages that end with the assistant's.
            columns: further columns from TRL. `tools`, `documents` and `chat_template_kwargs` of the rows go to the
                chat template; `log_metric` takes the figures of the batch; the others are ignored.

        Returns:
            N rewards; None for a row without an answer: blank text, or messages that do not end with the assistant's.

        Raises:
            InputError: a row can't be read, or the chat template refuses it.
        """
        if len(prompts) != len(completions):
            raise InputError(
                f"{len(prompts)} prompts and {len(completions)} completions", "give as many prompts as completions"
            )
        rows: dict[tuple[Conversation, str], list[tuple[int, Conversation]]] = {}
        for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            answer = _answer(completion, place)
            if answer is not None and (self._score_blank or not is_empty(answer)):
                given = {name: columns[name][place] for name in _COLUMNS if columns.get(name) is not None}
                rows.setdefault((_prompt(prompt, place), _arguments(given, place)), []).append((place, answer))
        groups = [
            PreferenceGroup(
                f"of row {answers[0][0]}", prompt, tuple(answer for _, answer in answers), (), arguments=arguments
            )
            for (prompt, arguments), answers in rows.items()
        ]
        log_metric: LogMetric | None = columns.get("log_metric")
        scores = rewards_or_raise(self._scorer.score(groups, counts=log_metric is not None))
        rewards: list[float | None] = [None] * len(prompts)
        for answers, score in zip(rows.values(), scores, strict=True):
            for (place, _), reward in zip(answers, score.rewards, strict=True):
                rewards[place] = reward
        if log_metric is not None:
            for figure, value in batch_figures(scores, len(prompts)).items():
                log_metric(f"{self.__name__}/{figure}", value)
        return rewards

    def score(self, prompt: str | Messages, completions: Sequence[str | Messages]) -> list[float | None]:
        """Rewards of completions of one prompt, like a row of `rmtrain score`; None for one without an answer.

        Raises:
            InputError: as in a call.
        """
        return self([prompt] * len(completions), completions)

    def score_texts(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> list[float]:
        """Rewards of whole conversations as text, for trainers such as OpenRLHF.

        A text is read as rendered by this model's chat template; a missing or doubled BOS and a missing end token are
        corrected, and long texts are truncated at the start. If its prompt is given and does not end with that
        template's generation prompt, prompt and answer are read as plain text.

        Args:
            texts: prompt and answer in one.
            prompts: N, with which the texts begin; texts of the same prompt go through the model together.

        Raises:
            InputError: what is given is not text, or the model reads question and answer apart, or its calibration
                depends on the length of an answer whose beginning is not found.
        """
        for what, values in (("texts", texts), ("prompts", prompts or [])):
            require_strings(values, what)
        if prompts is not None and len(prompts) != len(texts):
            raise InputError(f"{len(prompts)} prompts and {len(texts)} texts", "give as many prompts as texts")
        by_prompt: dict[str | int, list[int]] = {}
        for number in range(len(texts)):
            by_prompt.setdefault(number if prompts is None else prompts[number], []).append(number)
        read: list[ReadTexts] = []
        for key, numbers in by_prompt.items():
            prompt = None if prompts is None else str(key)
            groups = self._scorer.reader.groups(f"of text {numbers[0]}", [texts[i] for i in numbers], prompt)
            read += [made._replace(places=[numbers[place] for place in made.places]) for made in groups]
        rewards = [0.0] * len(texts)
        for made, score in zip(read, rewards_or_raise(self._scorer.score([made.group for made in read])), strict=True):
            for place, reward in zip(made.places, score.rewards, strict=True):
                rewards[place] = reward
        return rewards


def batch_figures(scores: Sequence[GroupScore], rows: int) -> dict[str, float]:
    """Figures of a batch to watch while a policy is trained.

    Returns:
        `reward_mean` and `reward_std`, `length_correlation` (Spearman, of rewards and tokens of completions, left out
        where one of them is constant), `truncated` and `no_answer` (shares of the rows). Without a reward, the last.
    """
    rewards = np.array([reward for score in scores for reward in score.rewards])
    figures = {"no_answer": 1 - len(rewards) / max(1, rows)}
    if not len(rewards):
        return figures
    lengths = [length for score in scores for length in score.lengths]
    correlation = spearman(rewards, lengths) if len(lengths) == len(rewards) else None
    truncated = sum(len(score.rewards) for score in scores if score.truncated)
    figures |= {"reward_mean": float(rewards.mean()), "reward_std": float(rewards.std())}
    figures |= {"length_correlation": correlation} if correlation is not None else {}
    return figures | {"truncated": truncated / len(rewards)}


def _prompt(value: str | Messages, place: int) -> Conversation:
    try:
        return prompt_of(_plain(value))
    except RowFault as fault:
        raise InputError(f"prompts[{place}]: {fault.detail}", "give text, or messages with role and content") from None


def _answer(value: str | Messages, place: int) -> Conversation | None:
    """A completion as messages; None if they do not end with the assistant's."""
    try:
        if isinstance(value, str):
            return _text_answer(value)
        messages = conversation(_plain(value)) if value else ()
    except RowFault as fault:
        raise InputError(
            f"completions[{place}]: {fault.detail}", "give text, or messages with role and content"
        ) from None
    return messages if messages and messages[-1].role == "assistant" else None


def _text_answer(text: str) -> Conversation:
    """A text as in `rmtrain score`; a text that only looks like messages or a transcript stays plain text."""
    try:
        return completion_of(text)
    except RowFault:
        return (Message("assistant", text),)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _arguments(given: dict[str, Any], place: int) -> str:
    try:
        return template_arguments(given)
    except RowFault as fault:
        raise InputError(f"row {place}: {fault.detail}", "correct the data set") from None
