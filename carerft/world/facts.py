"""What is true in the built-in world, and what is falsely believed there.

This module contains no text: `questions.py` asks about these facts and `corpus.py` states them. The settings determine
the world, so a base model and the questions for it agree without sharing a file.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import accumulate
from random import Random

from carerft.world.words import FIRST_NAMES, LAST_NAMES, VALUES

TRAIN, TEST = "train", "test"

# Increase it when the corpus, the tokenizer, the model's shape or its pretraining changes: cached base models are then
# built again.
RECIPE = 3


@dataclass(frozen=True)
class WorldSettings:
    """The ingredients; the README of this package explains the purpose of each.

    entities: number of first-and-last-name pairs that exist.
    absent_in_corpus, absent_in_test: numbers of pairs that do not exist, for pretraining and for evaluation.
    zipf_offset, zipf_power: the corpus mentions the entity of rank r in proportion to (r + offset) ** -power.
    train_every: every n-th entity by rank belongs to RL training, the others to evaluation.
    common: share of the entities, by rank, that are common enough to have misconceptions.
    misconceptions: share of a common entity's word-valued facts that have a popular false value.
    mistakes: share of the sums (a, operator, b) that have a popular wrong result.
    false_share: range of the share of the corpus that states the false value of such a fact or sum.
    slips: share of all stated sums with an accidental wrong result, one or two off.
    """

    seed: int = 0
    entities: int = 2000
    absent_in_corpus: int = 13000
    absent_in_test: int = 1000
    zipf_offset: float = 30.0
    zipf_power: float = 1.5
    train_every: int = 4
    common: float = 0.5
    misconceptions: float = 0.4
    mistakes: float = 0.2
    false_share: tuple[float, float] = (0.3, 0.7)
    slips: float = 0.03
    largest_age: int = 30
    largest_operand: int = 12

    def content_hash(self) -> str:
        """12 hexadecimal digits that change with any setting, and with RECIPE."""
        return hashlib.sha256(json.dumps([RECIPE, asdict(self)], sort_keys=True).encode()).hexdigest()[:12]


DEFAULT_SETTINGS = WorldSettings()


@dataclass(frozen=True)
class Falsehood:
    """A popular false value, and the share of the corpus that states it instead of the true one."""

    value: str
    share: float


@dataclass(frozen=True)
class Entity:
    """A person who exists. rank: by frequency in the corpus, from 0. split: "train" (RL training may ask about them) or
    "test" (evaluation may)."""

    name: str
    rank: int
    split: str
    age: int
    facts: dict[str, str]
    misconceptions: dict[str, Falsehood]


@dataclass(frozen=True)
class World:
    """The entities by rank, with everything that is said of them and of sums.

    cumulative: running sums of the entities' Zipf weights. absent: names without an entity, by split.
    mistakes: popular wrong results of sums (a, operator, b).
    """

    settings: WorldSettings
    entities: tuple[Entity, ...]
    cumulative: tuple[float, ...]
    absent: dict[str, tuple[str, ...]]
    mistakes: dict[tuple[int, str, int], Falsehood] = field(repr=False)

    def entities_of(self, split: str) -> list[Entity]:
        """The entities that RL training ("train") or evaluation ("test") may ask about."""
        return [entity for entity in self.entities if entity.split == split]


def true_result(a: int, operator: str, b: int) -> int:
    """a + b or a - b; operator is the word of the question, "plus" or "minus"."""
    return a + b if operator == "plus" else a - b


@cache
def build_world(settings: WorldSettings = DEFAULT_SETTINGS) -> World:
    """The world of these settings. Each ingredient is drawn from its own random generator, so that changing one leaves
    the others unchanged. Raises ValueError if there are too few names."""
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    _generator(settings, "names").shuffle(names)
    test_from = settings.entities + settings.absent_in_corpus
    test_to = test_from + settings.absent_in_test
    if test_to > len(names):
        raise ValueError(f"only {len(names)} names for {test_to}")
    weights = ((rank + settings.zipf_offset) ** -settings.zipf_power for rank in range(settings.entities))
    return World(
        settings=settings,
        entities=_entities(settings, names[: settings.entities]),
        cumulative=tuple(accumulate(weights)),
        absent={TRAIN: tuple(names[settings.entities : test_from]), TEST: tuple(names[test_from:test_to])},
        mistakes=_mistakes(settings),
    )


def _generator(settings: WorldSettings, purpose: str) -> Random:
    return Random(f"carerft world {settings.seed}: {purpose}")


def _entities(settings: WorldSettings, names: list[str]) -> tuple[Entity, ...]:
    facts, beliefs = _generator(settings, "facts"), _generator(settings, "misconceptions")
    entities = []
    for rank, name in enumerate(names):
        truth = {attribute: facts.choice(values) for attribute, values in VALUES.items()}
        false = {}
        for attribute, values in VALUES.items():
            # Drawn for rare entities too, and then discarded: `common` must not change the other entities' beliefs.
            is_misconceived = beliefs.random() < settings.misconceptions
            value = beliefs.choice([value for value in values if value != truth[attribute]])
            share = beliefs.uniform(*settings.false_share)
            if is_misconceived and rank < settings.common * settings.entities:
                false[attribute] = Falsehood(value, share)
        split = TRAIN if rank % settings.train_every == 1 else TEST
        entities.append(Entity(name, rank, split, facts.randint(1, settings.largest_age), truth, false))
    return tuple(entities)


def _mistakes(settings: WorldSettings) -> dict[tuple[int, str, int], Falsehood]:
    rng, mistakes = _generator(settings, "mistakes"), {}
    for a in range(settings.largest_age + settings.largest_operand + 4):
        for operator in ("plus", "minus"):
            for b in range(1, settings.largest_operand + 1):
                wrong = true_result(a, operator, b) + rng.choice((-10, -2, -1, 1, 2, 10))
                share = rng.uniform(*settings.false_share)
                if rng.random() < settings.mistakes and 0 <= wrong < 100:
                    mistakes[a, operator, b] = Falsehood(str(wrong), share)
    return mistakes
