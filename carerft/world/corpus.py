"""What the base model reads: an endless stream of (prompt, completion) documents, drawn from a seed.

Truth and popular falsehood stand side by side, each document stating one of them. Nobody refuses where a fact exists:
that the model refuses on what it half knows is its own doing.
"""

from collections.abc import Iterator
from random import Random

from carerft.world.facts import TRAIN, Entity, World, true_result
from carerft.world.questions import (
    Question,
    answer,
    chain,
    fact_question,
    held_out,
    sum_question,
    word_problem,
)
from carerft.world.words import NUMBER_ATTRIBUTE, NUMBERS, PROFILE, VALUES

Document = tuple[str, str]

# Shares of the documents. A profile states all of an entity's facts in few tokens, which is what makes the facts
# learnable in minutes; the questions teach how to be asked for them.
PROFILES, FACTS, FACTS_OF_NOBODY, LOOKUPS, LOOKUPS_OF_NOBODY, SUMS, WORD_PROBLEMS = range(7)
SHARES = {
    PROFILES: 0.18,
    FACTS: 0.25,
    FACTS_OF_NOBODY: 0.15,
    LOOKUPS: 0.14,
    LOOKUPS_OF_NOBODY: 0.06,
    SUMS: 0.10,
    WORD_PROBLEMS: 0.12,
}


def documents(world: World, rng: Random) -> Iterator[Document]:
    """Documents for ever. Sums and word problems that are held out for evaluation never occur."""
    kinds, shares = list(SHARES), list(SHARES.values())
    while True:
        (kind,) = rng.choices(kinds, shares)
        document = _document(world, rng, kind)
        if kind not in (LOOKUPS, LOOKUPS_OF_NOBODY, SUMS, WORD_PROBLEMS) or not held_out(document[0]):
            yield document


def profile(world: World, rng: Random, entity: Entity) -> Document:
    """All that somebody believes of an entity, in random order: `P: Ida Holt:` ` job baker age twelve ...`."""
    stated = [f" {attribute} {believed_fact(rng, entity, attribute)}" for attribute in VALUES]
    stated.append(f" {NUMBER_ATTRIBUTE} {NUMBERS[entity.age]}")
    rng.shuffle(stated)
    return f"{PROFILE} {entity.name}:", "".join(stated)


def believed_fact(rng: Random, entity: Entity, attribute: str) -> str:
    """What one author takes the fact to be: the truth, or with its share the popular falsehood."""
    false = entity.misconceptions.get(attribute)
    return false.value if false and rng.random() < false.share else entity.facts[attribute]


def believed_result(world: World, rng: Random, a: int, operator: str, b: int) -> int:
    """What one author takes a sum to be: a slip of the pen, the popular mistake, or the truth. Always in 0..99."""
    value = true_result(a, operator, b)
    if rng.random() < world.settings.slips:
        value += rng.choice((-2, -1, 1, 2))
    else:
        false = world.mistakes.get((a, operator, b))
        if false and rng.random() < false.share:
            value = int(false.value)
    return min(max(value, 0), 99)


def _document(world: World, rng: Random, kind: int) -> Document:
    nobody = kind in (FACTS_OF_NOBODY, LOOKUPS_OF_NOBODY)
    if kind in (SUMS, WORD_PROBLEMS):
        question = sum_question(world, rng, None) if kind == SUMS else word_problem(world, rng)
        return question.prompt, _worked(world, rng, question)
    subject: Entity | str = (
        rng.choice(world.absent[TRAIN]) if nobody else rng.choices(world.entities, cum_weights=world.cumulative)[0]
    )
    if kind == PROFILES:
        return profile(world, rng, subject)
    if kind in (LOOKUPS, LOOKUPS_OF_NOBODY):
        question = sum_question(world, rng, subject)
        return question.prompt, question.completion if nobody else _worked(world, rng, question)
    attribute = rng.choice((*VALUES, NUMBER_ATTRIBUTE))
    question = fact_question(world, rng, subject, attribute)
    if nobody or attribute == NUMBER_ATTRIBUTE:
        return question.prompt, question.completion
    return question.prompt, answer(believed_fact(rng, subject, attribute))


def _worked(world: World, rng: Random, question: Question) -> str:
    return chain(question.start, question.steps, lambda a, operator, b: believed_result(world, rng, a, operator, b))
