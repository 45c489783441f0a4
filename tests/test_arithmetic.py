"""task=arithmetic: the answers of its problems, by a reading of their sentences of its own, and its splits."""

import re
from itertools import accumulate

import pytest
from helpers.configurations import settings

from carerft.errors import ConfigError
from carerft.tasks import Grade
from carerft.tasks.arithmetic import STORIES, ArithmeticTask
from carerft.training.rewards import arguments

FEWER = re.compile(r"gives \d+ to|loses|sells|takes|removes|off|spends|lends|younger|fewer")


def numbers(question: str) -> list[int]:
    """The number with which a story starts, and what each further sentence makes of it."""
    story = re.split(r"(?<=\.) ", question)[:-1]
    changes = [int(re.findall(r"\d+", sentence)[0]) * (-1 if FEWER.search(sentence) else 1) for sentence in story]
    return list(accumulate(changes))


@pytest.mark.parametrize("size", [10, 20, 99])
def test_answers_are_right_and_no_number_is_larger_than_the_size(size):
    problems = ArithmeticTask(size=size).problems()
    for problem in problems:
        question = problem.columns["question"]
        values = numbers(question)
        assert problem.answer == str(values[-1]), question
        assert len(values) == 1 + problem.columns["steps"] and min(values) >= 1
        assert max(*values, *map(int, re.findall(r"\d+", question))) <= size
    assert {(p.columns["kind"], p.columns["steps"]) for p in problems} == {(k, n) for k in STORIES for n in (1, 2)}
    assert {p.columns["size"] for p in problems} == {size}


def test_no_text_of_the_test_split_is_in_training_whatever_size_and_seed():
    splits = {
        split: {
            problem.columns["question"]
            for size in (20, 99)
            for seed in (0, 1)
            for problem in ArithmeticTask(split=split, size=size, seed=seed, limit=4000).problems()
        }
        for split in ("train", "test")
    }
    assert len(splits["train"]) > 12_000 < len(splits["test"])
    assert not splits["train"] & splits["test"]


def test_the_same_settings_give_the_same_problems_and_a_larger_limit_only_adds_some():
    few, many = ArithmeticTask(split="test", limit=5).problems(), ArithmeticTask(split="test").problems()
    assert len(many) == 1000 and few == many[:5]
    # Written down: a finished run's questions must be those of the next version, too.
    assert (few[0].id, few[0].columns["question"], few[0].answer) == (
        "arithmetic/20/any/test/0/0",
        "Rosa has 16 plates. Nina has 9 fewer than Rosa. Ella has 13 more plates than Nina. "
        "How many plates does Ella have?",
        "20",
    )
    assert few[0].prompt == f"Question: {few[0].columns['question']}\nAnswer:"
    assert {p.columns["steps"] for p in ArithmeticTask(steps=2, limit=50).problems()} == {2}
    other = ArithmeticTask(split="test", seed=1, limit=5).problems()
    assert not {p.id for p in other} & {p.id for p in few} and other[0].prompt != few[0].prompt


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        (" Ella has 20 plates.", True),
        (" 16 - 9 = 7, and 7 + 13 = 20.", True),
        (r" So it is \boxed{20}, not 16.", True),
        (" 20\nQuestion: Tom has 5 pens. How many?\nAnswer: 5", True),
        (" Ella has 20, Rosa 16.", False),
        (" None.", False),
    ],
)
def test_the_last_number_of_a_reply_is_its_answer(text, correct):
    task = ArithmeticTask(split="test", limit=1)
    (grade,) = task.grade(task.problems(), [text])
    assert grade.correct is correct


def test_the_settings_are_checked():
    for wrong, says in (({"size": 5}, "size=5: must be at least 10"), ({"split": "dev"}, "must be one of train, test")):
        with pytest.raises(ConfigError, match=says):
            ArithmeticTask(**wrong)


def test_a_benchmark_asks_both_sizes_and_a_reward_of_ones_own_gets_the_columns():
    benchmarks = settings("task=arithmetic", "model=path", "model.path=/a").benchmark
    assert {name: (entry.size, entry.split) for name, entry in benchmarks.items()} == {
        "arithmetic_20": (20, "test"),
        "arithmetic_99": (99, "test"),
    }
    problem = ArithmeticTask(limit=1).problems()[0]
    given = arguments([problem], ["5"], [[1]], [Grade("5", False)])
    assert {name: given[name] for name in ("size", "steps", "kind")} == {
        name: [problem.columns[name]] for name in ("size", "steps", "kind")
    }
