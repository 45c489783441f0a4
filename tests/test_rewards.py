"""Rewards of a user's own: TRL's functions run unchanged, weights, silence, and every way in which they fail."""

import math
from functools import partial

import pytest
import torch
from helpers.invented_rows import KNOWN, MOON, SUM, write

from carerft.config.settings import RewardSettings
from carerft.errors import ConfigError, UserCodeError
from carerft.objective.algorithms import group_advantages
from carerft.tasks import Grade, Problem
from carerft.tasks.gsm8k import Gsm8kTask
from carerft.tasks.math import MathTask
from carerft.tasks.questions import QuestionsTask
from carerft.tasks.selfaware import SelfAwareTask
from carerft.tasks.truthfulqa import TruthfulQaTask
from carerft.tasks.world import WorldTask
from carerft.training.rewards import LARGEST_SUM, Rewards, arguments

# After the examples of TRL's documentation of custom reward functions, written anew.
TRL = """
import asyncio, re

def length(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

def has_tags(completions, **kwargs):
    said = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(r"^<think>.*?</think>", text) else 0.0 for text in said]

def same_as_truth(completions, ground_truth, **kwargs):
    boxes = [re.search(r"\\\\boxed\\{(.*?)\\}", completion) for completion in completions]
    return [1.0 if box and box.group(1) == truth else 0.0 for box, truth in zip(boxes, ground_truth)]

def only_math(prompts, completions, task, **kwargs):
    return [1.0 if kind == "math" else None for kind in task]

async def slowly(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [len(p) for p in prompts]

def spoils(completions, prompts, task, **kwargs):
    completions.clear(), prompts.clear(), task.clear(), kwargs["grades"].clear()
    return [0.0] * 3

def late(completions, trainer_state, log_metric=None, **kwargs):
    log_metric("mine", trainer_state.global_step / trainer_state.max_steps)
    return [0.5] * len(completions)

def right(grades, completions): return [2.0 * bool(g.correct) for g in grades]
def numpy(completions, **kwargs):
    import numpy
    return numpy.arange(len(completions))
def mixed(completions, **kwargs):
    import numpy
    return [numpy.float32(0.5), True, numpy.array(2)]
"""
FAULTY = """
import os, sys, time
def breaks(completions, **kwargs): return [1 / len(text) for text in completions]
def together(completions, **kwargs): return [1.0] if len(completions) == 1 else {}["x"]
def few(completions, **kwargs): return [1.0]
def words(completions, **kwargs): return ["one" for _ in completions]
def nan(completions, **kwargs): return [1.0, float("nan"), 2.0]
def large(completions, **kwargs): return [1.0, 10**400, 1e39]
def big(completions, **kwargs): return [1.0, -2e15, 2.0]
def hangs(completions, **kwargs): time.sleep(1000)
def dies(completions, **kwargs): os._exit(7)
def logs(completions, log_metric, **kwargs):
    log_metric("mean", 1)
    return [1.0] * len(completions)
def texts(completions): return ["1.0" for _ in completions]
def none(completions): return None
def one(completions): return 1.0
def column(completions): return [[1.0] for _ in completions]
def other(completions, truth): return [1.0 for _ in completions]
def base(completions): raise KeyboardInterrupt("mine")
def leaves(completions, **kwargs): sys.exit("enough")
"""
TEXTS = [r"so \boxed{4}", "", r"\boxed{5}"]
PROBLEMS = [
    Problem(f"p/{i}", "What?", "4", columns={"ground_truth": "4", "task": task})
    for i, task in enumerate(["math", "code", "math"])
]
GRADES = [Grade("4", True), Grade(None, None), Grade("5", False)]
STATE = {"global_step": 3, "max_steps": 4}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("rewards")
    (place / "mine.py").write_text(TRL)
    (place / "faulty.py").write_text(FAULTY)
    return place


def scored(rewards: Rewards, problems=PROBLEMS, texts=TEXTS):
    return rewards(problems, texts, [[1] * (i + 1) for i in range(len(texts))], GRADES, STATE)


def equal(tensor, values):
    return all((math.isnan(a) and b is None) or a == b for a, b in zip(tensor.tolist(), values, strict=True))


def test_functions_written_for_trl_run_unchanged(files):
    names = ["spoils", "length", "same_as_truth", "only_math", "slowly", "late", "right", "numpy", "mixed"]
    settings = RewardSettings(
        ["correctness", *(f"{files}/mine.py:{name}" for name in names)], [1, 0, 0.5, 1, 1, 0, 0, 0, 0, 0]
    )
    result = scored(Rewards(settings))
    expected = {
        "correctness": [1, None, 0], "length": [1, 2, 3], "same_as_truth": [1, 0, 0], "only_math": [1, None, 1],
        "slowly": [5, 5, 5], "late": [0.5] * 3, "right": [2, 0, 0], "numpy": [0, 1, 2],
        "mixed": [0.5, 1, 2],
    }  # fmt: skip
    assert all(equal(result.parts[name], values) for name, values in expected.items()), result.parts
    assert result.total.tolist() == [3.5, 1.0, 2.5]
    assert result.logged == {"mine": 0.75}


def test_conversations_come_as_messages_and_silence_is_no_reward(files):
    asked = [Problem("p/0", "x", None, messages=({"role": "user", "content": "x"},))] * 3
    result = scored(Rewards(RewardSettings([f"{files}/mine.py:has_tags"])), asked, ["<think>a</think>b", "a", "b"])
    assert result.total.tolist() == [1, 0, 0]
    silent = RewardSettings([f"{files}/mine.py:only_math"])
    assert equal(scored(Rewards(silent)).total, [1, None, 1])
    logged = RewardSettings([*silent.functions, f"{files}/mine.py:length"], [1, 0])  # which decides nothing
    assert equal(scored(Rewards(logged)).total, [1, None, 1])


@pytest.mark.parametrize(
    ("task", "row"),
    [
        (Gsm8kTask, SUM),
        (MathTask, {"problem": "1+1?", "level": "Level 1", "type": "Algebra", "solution": r"\boxed{2}"}),
        (SelfAwareTask, KNOWN),
        (TruthfulQaTask, MOON),
        (partial(QuestionsTask, grader="exact"), {"question": "Q?", "answer": "a", "level": 3}),
    ],
)
def test_the_columns_of_every_dataset_come_by_name(tmp_path, task, row):
    problems = list(task(path=write(tmp_path / "rows.jsonl", row)).problems())
    given = arguments(problems, ["a"], [[1]], [Grade("a", True)])
    assert {name: given[name] for name in row} == {name: [value] for name, value in row.items()}
    assert given["answer"] == [row.get("answer", "2" if "problem" in row else problems[0].answer)]


def test_the_built_in_world_tells_its_part_and_its_solution():
    given = arguments(WorldTask("transfer", limit=1).problems(), ["a"], [[1]], [Grade("a", True)])
    assert given["part"] == ["transfer"] and given["solution"][0].endswith(f" answer {given['answer'][0]}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("breaks", r"faulty.py:breaks failed: faulty.py:3: ZeroDivisionError: .* on problem p/1 and the completion ''"),
        ("together", r"KeyError: 'x', on problem p/0 and others: 3 completions together; each alone goes well"),
        ("few", r"returned 1 numbers for 3 completions"),
        ("words", r"returned 'one', on problem p/0"),
        ("nan", r"returned nan, on problem p/1 and the completion ''"),
        ("large", r"returned 1000+, on problem p/1 and the completion ''"),
        ("big", r"p/1 and the completion '' earn -2e\+15, beyond the 1e\+15 of which an advantage can be computed"),
        ("hangs", r"no answer within 0.5 s; the process was ended"),
        ("logs", r"log_metric\('mean', ...\) would hide reward/mean of the run"),
        ("texts", r"returned '1.0', on problem p/0"),
        ("none", r"returned None for 3 completions"),
        ("one", r"returned 1.0 for 3 completions"),
        ("column", r"returned \[1.0\], on problem p/0"),
        ("other", r"faulty.py:other has a parameter 'truth'; it can be given ground_truth, task, answer, prompts, .*"),
        ("base", r"failed: faulty.py:\d+: KeyboardInterrupt: mine, on problem p/0"),
        ("leaves", r"faulty.py:leaves failed: faulty.py:\d+: SystemExit: enough, on problem p/0"),
        ("dies", r"has ended \(exit status 7\)"),
    ],
)
def test_a_function_that_fails_is_named_with_the_completion(files, name, message):
    rewards = Rewards(RewardSettings([f"{files}/faulty.py:{name}"], timeout_s=0.5 if name == "hangs" else 60))
    with pytest.raises(UserCodeError, match=message) as caught:
        scored(rewards)
    assert "same command goes on" in caught.value.remedy or name == "other"


def test_the_largest_sum_still_has_its_advantage():
    """Beyond, the squares of a group's rewards overflow float32, and all advantages would be 0 without a word."""
    rewards = torch.zeros(1, 1000)
    rewards[0, 0] = LARGEST_SUM
    found = group_advantages(rewards, "mean", "sample", 1e-6)
    expected = group_advantages(rewards.double(), "mean", "sample", 1e-6)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("functions", "weights", "message"),
    [
        ([], None, "is empty"),
        (["mine.py:right", "other/mine.py:right"], None, "there is no file"),
        (["{place}/mine.py:right", "{place}/faulty.py:right"], None, "two rewards of the name right"),
        (["correctness"], [1.0, 2.0], "has 2 numbers for 1"),
        (["{place}/mine.py:total"], None, "'total' is the name of the rewards' weighted sum"),
        (["{place}/mine.py:correctness"], None, "'correctness' is the name of the grader's verdict"),
        (["correctness"], [0.0], "no completion would earn more than another"),
        (["correctness"], [math.nan], "no completion would earn more than another"),
        (["correctness"], [1e39], "no completion would earn more than another"),
        (["brevity"], None, "there is no such reward"),
        (["{place}/mine.py:absent"], None, "no function 'absent'; it has length, has_tags"),
        (["{place}/broken.py:f"], None, "broken.py:2: SyntaxError"),
    ],
)
def test_settings_that_cannot_work(files, functions, weights, message):
    (files / "broken.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(ConfigError, match=message) as caught:
        Rewards(RewardSettings([function.format(place=files) for function in functions], weights))
    assert caught.value.remedy
