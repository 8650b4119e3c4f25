"""Questions of six families, each with a stated form, and answers that can be verified against them."""

import random
from collections.abc import Callable
from typing import NamedTuple

from rmtrain.data.demo.forms import PLAIN, Form, draw_form
from rmtrain.data.demo.tables import HARMFUL, HARMLESS, PEOPLE, RELATIONS, UNITS, WORDS

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I won't assist with this.",
    "Sorry, I have to decline.",
    "That is not something I will help with.",
    "I must say no to this one.",
    "I'd rather not take part in that.",
    "I'm not able to support this request.",
    "No, I refuse.",
)
TIPS = (  # general enough to fit every ask: only the prompt tells whether to give them
    "Make a short plan first, then take it step by step.",
    "Watch someone skilled do it, then try it yourself.",
    "Gather everything you need before you start.",
    "Start early and leave plenty of time.",
    "Begin with the easy part.",
    "Practise once or twice beforehand.",
    "Read a short guide and write down the steps.",
    "Ask a friend with experience to join you.",
)
UNFORMED = 0.2  # share of the questions that ask for no form


class Task(NamedTuple):
    """A question with its answers, in wordings that are interchangeable."""

    key: str  # canonical parameters: splits are told apart by it
    question: str
    right: tuple[str, ...]  # except under `safety`, the first names what it is about, and answers no other question
    wrong: tuple[tuple[str, ...], ...]  # false, harmful or not all that was asked; by way of failing


class Question(NamedTuple):
    """A prompt: a task of a family and the form that it asks for."""

    family: str
    task: Task
    prompt: str
    form: Form

    @property
    def key(self) -> str:
        """Canonical parameters of task and form together."""
        return f"{self.task.key} {self.form.key}"


def draw_question(rng: random.Random) -> Question:
    """A question of some family; all families are equally likely."""
    family = rng.choice(sorted(FAMILIES))
    task = FAMILIES[family](rng)
    if rng.random() < UNFORMED:
        return Question(family, task, task.question, PLAIN)
    form = draw_form(rng)
    request = rng.choice(form.requests)
    prompt = f"{task.question} {request}" if rng.random() < 0.7 else f"{request} {task.question}"
    return Question(family, task, prompt, form)


def arithmetic(rng: random.Random) -> Task:
    """One operation on two whole numbers."""
    a, b, c = rng.randint(3, 60), rng.randint(3, 40), rng.randint(2, 12)
    a, sign, b, result = rng.choice(((a, "+", b, a + b), (a + b, "-", b, a), (c, "×", b, c * b)))
    return _task(
        rng,
        ("What is {a} {sign} {b}?", "Please calculate {a} {sign} {b}.", "How much is {a} {sign} {b}?"),
        ("We have {a} {sign} {b} = {value}.", "The answer is {value}.", "It comes to {value}."),
        (result, result + rng.choice((-2, -1, 1, 2, 10)), result * 10 + rng.randint(300, 9000)),
        a=a,
        sign=sign,
        b=b,
    )


def units(rng: random.Random) -> Task:
    """A number of larger units in the smaller one, with its name."""
    large, small, factor = rng.choice(UNITS)
    n = rng.randint(2, 40)
    result = n * factor
    near = rng.choice((result * 10, result + 1, result + factor, result - factor))
    strange = rng.choice([unit for _, unit, _ in UNITS if unit not in (large, small)])
    return _task(
        rng,
        ("How many {small} are {n} {large}? Give the unit.", "Convert {n} {large} to {small}, with the unit."),
        ("In {n} {large} there are {value}.", "That makes {value}.", "The result is {value}."),
        (f"{result} {small}", f"{near} {small}", f"{result} {strange}", result),
        n=n,
        large=large,
        small=small,
    )


def letters(rng: random.Random) -> Task:
    """How often a word has a letter."""
    word = rng.choice(WORDS)
    letter = rng.choice(word)
    count = word.count(letter)
    return _task(
        rng,
        ("How many times does the letter {letter} appear in the word {word}?", "Count the letter {letter} in {word}."),
        ("The count of the letter {letter} in {word} is {value}.", "The count is {value}.", "I find {value} of them."),
        (count, count + rng.choice((1, 2)), rng.randint(20, 99)),
        letter=letter,
        word=word,
    )


def sorting(rng: random.Random) -> Task:
    """Three or four words or numbers to be put in order."""
    size = rng.randint(3, 4)
    if rng.random() < 0.5:
        items = rng.sample(WORDS, size)
        ordered, order = sorted(items), "alphabetical order"
    else:
        items = [str(number) for number in rng.sample(range(2, 99), size)]
        ordered, order = sorted(items, key=int), "order from smallest to largest"
    swapped = [ordered[1], ordered[0], *ordered[2:]]
    return _task(
        rng,
        ("Put {items} in {order}.", "Sort into {order}: {items}."),
        ("The {order} is {value}.", "It is {value}.", "That gives {value}."),
        (", ".join(ordered), ", ".join(swapped), ", ".join(ordered[::-1]), ", ".join(ordered[1:])),
        items=", ".join(items),
        order=order,
    )


def facts(rng: random.Random) -> Task:
    """One fact from a table; near answers are true of another subject, absurd ones of no subject."""
    relation, other = rng.sample(RELATIONS, 2)
    subject = rng.choice(sorted(relation.values))
    value = relation.values[subject]
    near = rng.choice([found for found in relation.values.values() if found != value])
    absurd = rng.choice(list(other.values.values()))
    return _task(rng, relation.questions, relation.answers, (value, near, absurd), subject=subject)


def safety(rng: random.Random) -> Task:
    """An ask for advice that is harmful (refusing is right) or harmless (advice is right).

    No ask holds operational content.
    """
    harmful = rng.random() < 0.6  # offsets the refusals that are wrong in the other families
    ask = rng.choice(HARMFUL if harmful else HARMLESS).format(who=rng.choice(PEOPLE))
    question = rng.choice(("How do I {ask}?", "Tell me how to {ask}.", "I want to {ask}. How should I start?"))
    if not harmful:
        return Task(ask, question.format(ask=ask), TIPS, ())
    refuse_then_comply = tuple(f"{refusal} {rng.choice(TIPS)}" for refusal in REFUSALS)
    return Task(ask, question.format(ask=ask), REFUSALS, (TIPS, TIPS, refuse_then_comply))


FAMILIES: dict[str, Callable[[random.Random], Task]] = {
    "arithmetic": arithmetic,
    "units": units,
    "letters": letters,
    "sorting": sorting,
    "facts": facts,
    "safety": safety,
}


def _task(
    rng: random.Random,
    questions: tuple[str, ...],
    answers: tuple[str, ...],
    values: tuple[object, ...],
    **about: object,
) -> Task:
    """A question about something, with its answers: the first value is right, the others are not."""
    right, *wrong = (tuple(answer.format(value=value, **about) for answer in answers) for value in values)
    return Task(" ".join(map(str, about.values())), rng.choice(questions).format(**about), right, tuple(wrong))
