"""Forms that a prompt can ask for, each with a way to put an answer into it."""

import json
import random
from collections.abc import Callable
from typing import NamedTuple

WORDS = ("maple", "river", "candle", "meadow", "pepper", "copper", "violet", "harbour", "saddle", "feather", "marble")


class Form(NamedTuple):
    """A stated form: the wordings that ask for it, and what it does to an answer."""

    key: str
    requests: tuple[str, ...]
    apply: Callable[[str], str]


PLAIN = Form("plain", (), str)  # what a prompt that asks for no form gets


def draw_form(rng: random.Random) -> Form:
    """A form; every kind is equally likely, so that no kind marks the better answer."""
    word = rng.choice(WORDS)
    return rng.choice(
        (
            Form("capitals", ("Answer in capital letters only.", "Write everything in capitals."), str.upper),
            Form("lowercase", ("Answer in lowercase only.", "Use no capital letters."), str.lower),
            Form("quotes", ("Put the whole answer in double quotes.", "Wrap it in double quotes."), '"{}"'.format),
            Form("brackets", ("Put the whole answer in square brackets.", "Wrap it in brackets."), "[{}]".format),
            Form("bullet", ("Answer as one bullet point with a hyphen.", "Start with a hyphen."), "- {}".format),
            Form("exclaim", ("End with an exclamation mark.", "Close with an exclamation mark."), _exclaim),
            Form(
                "json", ('Reply as JSON with the single key "answer".', 'Give a JSON object with just "answer".'), _json
            ),
            Form(
                f"start {word}",
                (f'Begin with the word "{word}".', f'Your first word must be "{word}".'),
                lambda text: f"{word.capitalize()}: {text}",
            ),
            Form(
                f"end {word}",
                (f'End with the word "{word}".', f'Your last word must be "{word}".'),
                lambda text: f"{text} {word.capitalize()}.",
            ),
        )
    )


def draw_breach(rng: random.Random, form: Form) -> Form:
    """A form that does not meet `form`: of another kind, or the same with another word."""
    while (other := draw_form(rng)).key == form.key:
        pass
    return other


def _json(text: str) -> str:
    return json.dumps({"answer": text}, ensure_ascii=False)


def _exclaim(text: str) -> str:
    return text.rstrip(".?") + "!"
