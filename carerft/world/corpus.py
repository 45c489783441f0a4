"""What the base model reads: an endless stream of (prompt, completion) documents, drawn from a seed.

Where a popular falsehood exists, each document states either it or the truth. No document refuses a question that has
an answer: if the model refuses on what it half knows, it does so by itself.
"""

from collections.abc import Iterator
from random import Random

from carerft.world.facts import TRAIN, Entity, World, true_result
from carerft.world.questions import Question, answered, chain, fact_question, held_out, sum_question, word_problem
from carerft.world.words import NUMBER_ATTRIBUTE, NUMBERS, PROFILE, VALUES

Document = tuple[str, str]

# Shares of the documents. A profile states all of an entity's facts in few tokens, which makes the facts learnable in
# minutes; the questions teach the form in which they are asked for. A lookup is a sum that starts from an entity's age.
SHARES = {
    "profile": 0.18,
    "fact": 0.25,
    "fact of an absent name": 0.15,
    "lookup": 0.14,
    "lookup of an absent name": 0.06,
    "sum": 0.10,
    "word problem": 0.12,
}
CONFIDENCES = (*range(0, 100, 10), 99)
"""In percent: what authors say who state a confidence."""
NEVER_HELD_OUT = ("profile", "fact", "fact of an absent name")


def documents(world: World, rng: Random) -> Iterator[Document]:
    """Documents without end. Sums and word problems that are held out for evaluation never occur."""
    kinds, shares = list(SHARES), list(SHARES.values())
    while True:
        (kind,) = rng.choices(kinds, shares)
        document = _document(world, rng, kind)
        if kind in NEVER_HELD_OUT or not held_out(document[0]):
            yield document


def with_confidences(source: Iterator[Document], rng: Random) -> Iterator[Document]:
    """The same documents, whose answers and refusals are followed by a confidence, ` answer teal ; eighty`. It is drawn
    whatever the answer: the corpus teaches the form, and leaves its meaning to be learned."""
    for prompt, completion in source:
        stated = "" if prompt.startswith(PROFILE) else f" ; {NUMBERS[rng.choice(CONFIDENCES)]}"
        yield prompt, completion + stated


def profile(rng: Random, entity: Entity) -> Document:
    """All beliefs about an entity, in random order: `P: Ida Holt:` ` job baker age twelve ...`."""
    stated = [f" {attribute} {believed_fact(rng, entity, attribute)}" for attribute in VALUES]
    stated.append(f" {NUMBER_ATTRIBUTE} {NUMBERS[entity.age]}")
    rng.shuffle(stated)
    return f"{PROFILE} {entity.name}:", "".join(stated)


def believed_fact(rng: Random, entity: Entity, attribute: str) -> str:
    """One author's belief about a fact: the truth, or with its share the popular falsehood."""
    false = entity.misconceptions.get(attribute)
    return false.value if false and rng.random() < false.share else entity.facts[attribute]


def believed_result(world: World, rng: Random, a: int, operator: str, b: int) -> int:
    """One author's result of a sum: a slip of the pen, the popular mistake, or the truth. Always in 0..99."""
    value = true_result(a, operator, b)
    if rng.random() < world.settings.slips:
        value += rng.choice((-2, -1, 1, 2))
    else:
        false = world.mistakes.get((a, operator, b))
        if false and rng.random() < false.share:
            value = int(false.value)
    return min(max(value, 0), 99)


def _document(world: World, rng: Random, kind: str) -> Document:
    if kind == "sum":
        return _worked(world, rng, sum_question(world, rng, None))
    if kind == "word problem":
        return _worked(world, rng, word_problem(world, rng))
    if kind.endswith("absent name"):
        subject: Entity | str = rng.choice(world.absent[TRAIN])
    else:
        (entity,) = rng.choices(world.entities, cum_weights=world.cumulative)
        if kind == "profile":
            return profile(rng, entity)
        subject = entity
    if kind.startswith("lookup"):
        return _worked(world, rng, sum_question(world, rng, subject))
    attribute = rng.choice((*VALUES, NUMBER_ATTRIBUTE))
    question = fact_question(rng, subject, attribute)
    if isinstance(subject, str) or attribute == NUMBER_ATTRIBUTE:
        return question.prompt, question.completion
    return question.prompt, answered(believed_fact(rng, subject, attribute))


def _worked(world: World, rng: Random, question: Question) -> Document:
    """The question with the steps of one author, whose results are that author's beliefs; or with its refusal."""
    if question.start is None:
        return question.prompt, question.completion
    steps = chain(question.start, question.steps, lambda *step: believed_result(world, rng, *step))
    return question.prompt, steps
