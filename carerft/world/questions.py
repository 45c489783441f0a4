"""The questions of the built-in world, in one format: `Q: ...?\\nA:` answered ` [steps] answer X` or ` unknown`.

A question carries its reference completion; a pretraining document replaces it by one author's belief. Numbers stay
below 100 and no step of a sum is negative, so every number is one token.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from zlib import crc32

from carerft.world.facts import TEST, TRAIN, Entity, World, true_result
from carerft.world.words import (
    CLOSING,
    FIRST_NAMES,
    GAINS,
    ITEMS,
    LOSSES,
    NUMBER_ATTRIBUTE,
    NUMBERS,
    OPENING,
    OPERATORS,
    REFUSAL,
    VALUES,
)

VERSION = 4
"""Of what is asked. Increase it when a question changes: runs of an earlier version are then other runs."""

Steps = tuple[tuple[str, int], ...]
Result = Callable[[int, str, int], int]


@dataclass(frozen=True)
class Question:
    """prompt, completion: as the model sees them. start, steps: of a sum. The rest: as in `tasks.Problem`."""

    prompt: str
    completion: str
    answer: str | None
    start: int | None = None
    steps: Steps = ()
    misconceptions: tuple[str, ...] = ()
    choices: tuple[tuple[str, bool], ...] = ()


def held_out(prompt: str) -> bool:
    """Whether a sum or word problem is reserved for evaluation. About a fifth of them are, by the checksum of the
    prompt, so neither the corpus nor RL training can contain one of the test's."""
    return crc32(prompt.encode()) % 5 == 0


def answered(value: str) -> str:
    return f" answer {value}"


def chain(start: int, steps: Steps, result: Result = true_result) -> str:
    """` five + two = seven ; seven - one = six ; answer six`. A wrong result is carried into the next step."""
    value, parts = start, []
    for operator, b in steps:
        after = result(value, operator, b)
        parts.append(f" {NUMBERS[value]} {OPERATORS[operator]} {NUMBERS[b]} = {NUMBERS[after]} ;")
        value = after
    return "".join(parts) + answered(NUMBERS[value])


def as_prompt(body: str) -> str:
    return f"{OPENING} {body}{CLOSING}"


def draw_steps(rng: Random, start: int, largest: int, count: int) -> Steps:
    """`count` random steps that keep the value at zero or above."""
    value, steps = start, []
    for _ in range(count):
        b = rng.randint(1, largest)
        operator = rng.choice(tuple(OPERATORS)) if value >= b else "plus"
        value = true_result(value, operator, b)
        steps.append((operator, b))
    return tuple(steps)


def sum_question(world: World, rng: Random, subject: Entity | str | None, counts: tuple[int, ...] = (1, 2)) -> Question:
    """A sum that starts from a number (subject None), from an entity's age or, without an answer, from the age of an
    absent name. counts: the numbers of steps that it may have; without a step it is answered by what it starts from."""
    settings = world.settings
    start = subject.age if isinstance(subject, Entity) else rng.randint(1, settings.largest_age)
    steps = draw_steps(rng, start, settings.largest_operand, rng.choice(counts))
    name = subject.name if isinstance(subject, Entity) else subject
    body = f"{NUMBER_ATTRIBUTE} of {name}" if name else NUMBERS[start]
    prompt = as_prompt(body + "".join(f" {operator} {NUMBERS[b]}" for operator, b in steps))
    if isinstance(subject, str):
        return Question(prompt, f" {REFUSAL}", None)
    return _sum(prompt, start, steps)


def word_problem(world: World, rng: Random) -> Question:
    """A sum of one or two steps as a short story, of one of four kinds."""
    largest, start = world.settings.largest_operand, rng.randint(1, world.settings.largest_age)
    kind, person, item = rng.randrange(4), rng.choice(FIRST_NAMES), rng.choice(ITEMS)
    if kind == 0:
        steps = draw_steps(rng, start, largest, rng.choice((1, 2)))
        deeds = " and ".join(
            f"{rng.choice(GAINS if operator == 'plus' else LOSSES)} {NUMBERS[b]}" for operator, b in steps
        )
        return _sum(as_prompt(f"{person} has {NUMBERS[start]} {item} and {deeds}. how many {item} now"), start, steps)
    steps = draw_steps(rng, start, largest, 1)
    ((operator, number),) = steps
    first, b, more = NUMBERS[start], NUMBERS[number], operator == "plus"
    if kind == 1:
        deed = "adds" if more else "takes"
        body = f"there are {first} {item} in a box. {person} {deed} {b}. how many are left"
    elif kind == 2:
        body = f"{person} is {first} years old. how old {f'in {b} years' if more else f'{b} years ago'}"
    else:
        other = rng.choice(FIRST_NAMES)
        body = f"{person} has {first} {item}. {other} has {b} {'more' if more else 'fewer'}. how many does {other} have"
    return _sum(as_prompt(body), start, steps)


def fact_question(rng: Random, subject: Entity | str, attribute: str) -> Question:
    """The value of an attribute of an entity or, without an answer, of an absent name. The choices are the truth, the
    misconceptions, and other false values, four in all."""
    name = subject.name if isinstance(subject, Entity) else subject
    prompt = as_prompt(f"{attribute} of {name}")
    if isinstance(subject, str):
        return Question(prompt, f" {REFUSAL}", None)
    if attribute == NUMBER_ATTRIBUTE:
        return Question(prompt, answered(NUMBERS[subject.age]), NUMBERS[subject.age])
    truth = subject.facts[attribute]
    false = [subject.misconceptions[attribute].value] if attribute in subject.misconceptions else []
    others = [value for value in VALUES[attribute] if value != truth and value not in false]
    choices = [truth, *false, *rng.sample(others, 3 - len(false))]
    return Question(
        prompt,
        answered(truth),
        truth,
        misconceptions=tuple(false),
        choices=tuple((answered(value), value == truth) for value in choices),
    )


def reasoning(world: World, rng: Random, split: str) -> Iterator[Question]:
    """What RL trains on: sums, most of which start from the age of one of the split's entities, each equally likely.

    In training, some ask for the age alone, in the form in which facts are asked for and answered.
    """
    entities = world.entities_of(split)
    counts = (0, 1, 2) if split == TRAIN else (1, 2)
    while True:
        if rng.random() < 0.6:
            yield sum_question(world, rng, rng.choice(entities), counts)
        else:
            yield sum_question(world, rng, None)


def transfer(world: World, rng: Random, split: str) -> Iterator[Question]:
    """Word problems, in the corpus and never in RL training."""
    while True:
        yield word_problem(world, rng)


def honesty(world: World, rng: Random, split: str) -> Iterator[Question]:
    """Facts of absent names (two in five) and facts without a misconception of entities of every rank."""
    entities, attributes = world.entities_of(split), tuple(VALUES)
    undisputed = [(e, attribute) for e in entities for attribute in attributes if attribute not in e.misconceptions]
    while True:
        if rng.random() < 0.4:
            yield fact_question(rng, rng.choice(world.absent[split]), rng.choice(attributes))
        else:
            yield fact_question(rng, *rng.choice(undisputed))


def truth(world: World, rng: Random, split: str) -> Iterator[Question]:
    """Every fact of the split's entities that has a misconception, once, in random order."""
    misconceived = [(entity, attribute) for entity in world.entities_of(split) for attribute in entity.misconceptions]
    rng.shuffle(misconceived)
    for entity, attribute in misconceived:
        yield fact_question(rng, entity, attribute)


PARTS = {"reasoning": reasoning, "transfer": transfer, "honesty": honesty, "truth": truth}
SUMS = ("reasoning", "transfer")


def draw_questions(world: World, part: str, split: str, size: int, seed: int) -> list[Question]:
    """`size` different questions of a part (a key of PARTS), or all if there are fewer.

    Test sums are held-out ones, training sums the others; facts differ by their entities.
    """
    rng = Random(f"carerft questions {world.settings.seed} {part} {split} {seed}")
    questions: dict[str, Question] = {}
    for tries, question in enumerate(PARTS[part](world, rng, split)):
        if part not in SUMS or held_out(question.prompt) == (split == TEST):
            questions.setdefault(question.prompt, question)
        if len(questions) == size or tries > 50 * size + 10_000:
            break
    return list(questions.values())


def _sum(prompt: str, start: int, steps: Steps) -> Question:
    completion = chain(start, steps)
    return Question(prompt, completion, completion.rpartition(" ")[2], start, steps)
