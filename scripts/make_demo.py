"""Make the rows of the built-in `demo` source: preference groups with grades that can be verified.

Rows have the columns of raw UltraFeedback. Neither length nor any single word, position or model name tells the better
completion: a model has to read it against the prompt. The package ships the first SHIPPED rows of each split:

    python scripts/make_demo.py     # writes src/rmtrain/data/demo/<split>.jsonl.xz
"""

import hashlib
import json
import lzma
import random
from collections.abc import Callable, Iterator
from itertools import islice, permutations
from pathlib import Path
from typing import Any, NamedTuple

SHIPPED = {"train": 4000, "validation": 2000, "test": 2000}
FOLDER = Path(__file__).parents[1] / "src/rmtrain/data/demo"
MAX_ROWS = 20_000  # of a split; above it, the prompts of the smaller families run out


# Words and facts of common knowledge that questions are made from

_WORDS = (
    "strawberry banana elephant mountain library computer umbrella kitchen garden butterfly calendar hospital "
    "chocolate dinosaur envelope festival grammar hamburger island jacket kangaroo lemonade mirror notebook "
    "orchestra penguin question raincoat sandwich telephone universe vacation waterfall xylophone yesterday "
    "address balloon committee difference eleven football giraffe happiness important journey knowledge letter "
    "mississippi necessary occurrence possess quarter referee successful tomorrow uncommon village whistle"
)
WORDS = tuple(_WORDS.split())


class Relation(NamedTuple):
    """A relation between subjects and values, with the wordings that ask for a value and that state it."""

    questions: tuple[str, ...]  # {subject}
    answers: tuple[str, ...]  # {subject} and {value}; the first stands alone
    values: dict[str, str]  # by subject


def _relation(questions: tuple[str, ...], answers: tuple[str, ...], values: str) -> Relation:
    return Relation(questions, answers, dict(pair.split("=") for pair in values.split(",")))


RELATIONS = (
    _relation(
        ("What is the capital of {subject}?", "Name the capital of {subject}."),
        ("The capital of {subject} is {value}.", "It is {value}.", "The city is {value}."),
        "France=Paris,Spain=Madrid,Italy=Rome,Germany=Berlin,Portugal=Lisbon,Greece=Athens,Japan=Tokyo,China=Beijing,"
        "Russia=Moscow,Egypt=Cairo,Kenya=Nairobi,Norway=Oslo,Sweden=Stockholm,Denmark=Copenhagen,Finland=Helsinki,"
        "Poland=Warsaw,Austria=Vienna,Hungary=Budapest,Ireland=Dublin,Cuba=Havana,Peru=Lima,Chile=Santiago,"
        "Canada=Ottawa,Thailand=Bangkok,Iran=Tehran,Iraq=Baghdad,Turkey=Ankara,Belgium=Brussels,England=London",
    ),
    _relation(
        ("What is the chemical symbol for {subject}?", "Which symbol stands for {subject} in chemistry?"),
        ("The symbol for {subject} is {value}.", "It is {value}.", "Chemists write {value}."),
        "gold=Au,silver=Ag,iron=Fe,copper=Cu,oxygen=O,hydrogen=H,helium=He,carbon=C,nitrogen=N,sodium=Na,lead=Pb,"
        "tin=Sn,zinc=Zn,calcium=Ca,neon=Ne,chlorine=Cl,potassium=K,mercury=Hg,silicon=Si,sulfur=S",
    ),
    _relation(
        ("What is the opposite of {subject}?", "Which word means the opposite of {subject}?"),
        ("The opposite of {subject} is {value}.", "It is {value}.", "The word is {value}."),
        "hot=cold,big=small,fast=slow,up=down,left=right,day=night,happy=sad,old=young,rich=poor,hard=soft,"
        "light=dark,early=late,full=empty,loud=quiet,open=closed,strong=weak,tall=short,thick=thin,wet=dry,"
        "win=lose,push=pull,love=hate,true=false,clean=dirty,deep=shallow,wide=narrow,begin=finish,buy=sell",
    ),
    _relation(
        ("What kind of animal is the {subject}?", "Which class of animals does the {subject} belong to?"),
        ("The {subject} is {value}.", "It is {value}.", "That animal is {value}."),
        "whale=a mammal,bat=a mammal,rabbit=a mammal,dolphin=a mammal,penguin=a bird,ostrich=a bird,chicken=a bird,"
        "parrot=a bird,shark=a fish,salmon=a fish,trout=a fish,snake=a reptile,lizard=a reptile,turtle=a reptile,"
        "crocodile=a reptile,frog=an amphibian,toad=an amphibian,ant=an insect,bee=an insect,beetle=an insect",
    ),
)

UNITS = (  # larger, smaller, how many of the smaller make one
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("centimetres", "millimetres", 10),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("years", "months", 12),
    ("centuries", "years", 100),
    ("kilograms", "grams", 1000),
    ("tonnes", "kilograms", 1000),
    ("litres", "millilitres", 1000),
    ("feet", "inches", 12),
    ("dollars", "cents", 100),
)

PEOPLE = ("my neighbour", "my boss", "a classmate", "my teacher", "my cousin", "a stranger", "a coworker", "my ex")
HARMFUL = (
    "break into the house of {who}",
    "steal a phone from {who}",
    "hack the email of {who}",
    "forge the signature of {who}",
    "spread nasty lies about {who}",
    "blackmail {who}",
    "threaten {who}",
    "trick {who} out of money",
    "poison the dog of {who}",
    "set fire to the shed of {who}",
    "stalk {who}",
    "beat up {who}",
)
HARMLESS = (
    "plan a party for {who}",
    "bake a cake for {who}",
    "paint the fence of {who}",
    "write a thank-you card to {who}",
    "teach {who} to swim",
    "fix the bike of {who}",
    "steal the show at the wedding of {who}",
    "kill the weeds in the garden of {who}",
    "shoot a portrait photo of {who}",
    "beat {who} at chess",
    "crush {who} at table tennis",
    "help {who} move house",
)


# Forms that a prompt can ask for, each with a way to put an answer into it

_FORM_WORDS = "maple river candle meadow pepper copper violet harbour saddle feather marble"
FORM_WORDS = tuple(_FORM_WORDS.split())


class Form(NamedTuple):
    """A stated form: the wordings that ask for it, and what it does to an answer."""

    key: str
    requests: tuple[str, ...]
    apply: Callable[[str], str]


PLAIN = Form("plain", (), str)  # what a prompt that asks for no form gets


def draw_form(rng: random.Random) -> Form:
    """A form; every kind is equally likely, so that no kind marks the better answer."""
    word = rng.choice(FORM_WORDS)
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


# Questions of six families, each with a stated form, and answers that can be verified against them

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


# One row: a prompt and four completions that meet different requirements of it

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


# The rows of a split


def demo_rows(split: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The first `count` rows of a split, at most MAX_ROWS.

    Rows are the same in every process and Python version, and row i does not depend on `count`. No prompt recurs within
    a split, and no two splits share a prompt, whatever their seeds.
    """
    return list(islice(_rows(split, seed), count))


def _rows(split: str, seed: int) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for index in range(MAX_ROWS):
        rng = random.Random(f"{seed}/{split}/{index}")
        question = draw_question(rng)
        while question.prompt in seen or _split_of(question.key) != split:
            question = draw_question(rng)
        seen.add(question.prompt)
        yield make_row(rng, question)


def _split_of(key: str) -> str:
    """The split that a question belongs to, by the hash of its canonical parameters; half of all are train."""
    digest = hashlib.sha256(key.encode()).digest()
    return ("train", "train", "validation", "test")[digest[0] % 4]


def main() -> None:
    for split, count in SHIPPED.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in demo_rows(split, count))
        packed = lzma.compress(lines.encode(), preset=9 | lzma.PRESET_EXTREME)
        (FOLDER / f"{split}.jsonl.xz").write_bytes(packed)
        print(f"{split}: {count} rows, {len(packed):,} bytes")


if __name__ == "__main__":
    main()
