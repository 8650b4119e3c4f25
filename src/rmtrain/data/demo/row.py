"""One row: a prompt and four completions that meet different requirements of it."""

import random
from collections.abc import Callable
from itertools import permutations
from typing import Any, NamedTuple

from rmtrain.data.demo.forms import PLAIN, draw_breach
from rmtrain.data.demo.questions import FAMILIES, REFUSALS, Question

COMPLETIONS = 4
MODELS = ("demo-north", "demo-east", "demo-south", "demo-west")
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
FAULTS = {
    "addresses": "it does not deal with what was asked",
    "correct": "it does not give a right and complete answer",
    "form": "it does not keep to the form asked for",
}
REFUSED = 0.4  # share of the rows in which a refusal that is out of place may be drawn
FORM_KEPT = 0.55  # share of the completions beside the first that keep the stated form
WRAPPED = 0.3  # share of the completions with an opening sentence, and likewise with a closing one
WRAPPINGS_TRIED = 8
OPENINGS = ("Thanks for asking.", "Good question.", "Let me see.", "Here is my reply.", "All right.")
CLOSINGS = ("I hope this is clear.", "Feel free to ask more.", "Have a nice day.", "There you go.")


class Requirements(NamedTuple):
    """Which requirements a completion meets."""

    addresses: bool  # deals with what was asked
    correct: bool  # the answer is right, whole and harmless
    form: bool  # the stated form is kept; met where none is stated


class Answer(NamedTuple):
    """A completion before it is wrapped and put into its form."""

    text: str
    apply: Callable[[str], str]  # the form
    met: Requirements


def make_row(rng: random.Random, question: Question) -> dict[str, Any]:
    """The question's row in raw UltraFeedback's columns, with at least one preference; the completions are shuffled."""
    answers = _draw_answers(rng, question)
    grades = [sum(answer.met) for answer in answers]
    # Of several draws of wrappers the one is kept in which length tells least about the grade.
    tries = [[_wrap(rng, answer) for answer in answers] for _ in range(WRAPPINGS_TRIED)]
    responses = min(tries, key=lambda texts: _length_bias(grades, texts))
    order = rng.sample(range(COMPLETIONS), COMPLETIONS)
    models = rng.sample(MODELS, COMPLETIONS)
    return {
        "source": f"demo/{question.family}",
        "instruction": question.prompt,
        "models": models,
        "completions": [annotate(responses[i], model, answers[i].met) for i, model in zip(order, models, strict=True)],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


def annotate(response: str, model: str, met: Requirements) -> dict[str, Any]:
    """A completion with its annotations: every aspect is rated 5, less one for each requirement that is missed."""
    faults = [FAULTS[name] for name, is_met in met._asdict().items() if not is_met]
    critique = f"{'; '.join(faults) or 'it meets every requirement'}.".capitalize()
    rating = 5 - len(faults)
    return {
        "model": model,
        "principle": "helpfulness",
        "custom_system_prompt": "",
        "response": response,
        "annotations": {aspect: {"Rating": str(rating), "Rationale": critique} for aspect in ASPECTS},
        "critique": critique,
        "overall_score": 2.0 * rating,
        "fine-grained_score": float(rating),
    }


def _draw_answers(rng: random.Random, question: Question) -> list[Answer]:
    """One answer that meets everything, and three drawn at random: ways of failing don't recur, the right one may."""
    task = question.task
    elsewhere = FAMILIES[rng.choice([name for name in FAMILIES if name not in (question.family, "safety")])](rng)
    right = (task.right, True, True)
    ways = [right, right, *((wordings, True, False) for wordings in task.wrong), (elsewhere.right[:1], False, False)]
    if task.right != REFUSALS and rng.random() < REFUSED:
        ways.append((REFUSALS, False, False))
    while True:
        answers = []
        for place, (wordings, addresses, correct) in enumerate([right, *rng.sample(ways, COMPLETIONS - 1)]):
            kept = place == 0 or question.form is PLAIN or rng.random() < FORM_KEPT
            form = question.form if kept else draw_breach(rng, question.form)
            answers.append(Answer(rng.choice(wordings), form.apply, Requirements(addresses, correct, kept)))
        plain = {answer.apply(answer.text) for answer in answers}
        if len(plain) == COMPLETIONS and not all(all(answer.met) for answer in answers):
            return answers


def _wrap(rng: random.Random, answer: Answer) -> str:
    """The response, with an opening and a closing sentence or without, whatever its grade."""
    opening, closing = (rng.choice(some) if rng.random() < WRAPPED else "" for some in (OPENINGS, CLOSINGS))
    return answer.apply(" ".join(filter(None, (opening, answer.text, closing))))


def _length_bias(grades: list[int], texts: list[str]) -> int:
    """How far "the longer wins" is from being right as often as wrong, in characters and in words."""
    bias = 0
    for sizes in ([len(text) for text in texts], [len(text.split()) for text in texts]):
        pairs = [(sizes[i], sizes[j]) for i, j in permutations(range(COMPLETIONS), 2) if grades[i] > grades[j]]
        bias += abs(sum((better > worse) - (better < worse) for better, worse in pairs))
    return bias
