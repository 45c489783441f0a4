"""Rewards of a user's own: TRL's functions run unchanged, weights, silence, and every way in which they fail."""

import math

import pytest

from carerft.config.settings import RewardSettings
from carerft.errors import ConfigError, UserCodeError
from carerft.tasks import Grade, Problem
from carerft.training.rewards import Rewards

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

def late(completions, trainer_state, log_metric=None, **kwargs):
    log_metric("mine", trainer_state.global_step / trainer_state.max_steps)
    return [0.5] * len(completions)

def right(grades, completions): return [2.0 * bool(g.correct) for g in grades]
def numpy(completions, **kwargs):
    import numpy
    return numpy.arange(len(completions))
"""
FAULTY = """
import os, sys, time
def breaks(completions, **kwargs): return [1 / len(text) for text in completions]
def together(completions, **kwargs): return [1.0] if len(completions) == 1 else {}["x"]
def few(completions, **kwargs): return [1.0]
def words(completions, **kwargs): return ["one" for _ in completions]
def nan(completions, **kwargs): return [1.0, float("nan"), 2.0]
def large(completions, **kwargs): return [1.0, 10**400, 1e39]
def hangs(completions, **kwargs): time.sleep(1000)
def dies(completions, **kwargs): os._exit(7)
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
    names = ["length", "same_as_truth", "only_math", "slowly", "late", "right", "numpy"]
    settings = RewardSettings(
        ["correctness", *(f"{files}/mine.py:{name}" for name in names)], [1, 0.5, 1, 1, 0, 0, 0, 0]
    )
    result = scored(Rewards(settings))
    expected = {
        "correctness": [1, None, 0], "length": [1, 2, 3], "same_as_truth": [1, 0, 0], "only_math": [1, None, 1],
        "slowly": [5, 5, 5], "late": [0.5] * 3, "right": [2, 0, 0], "numpy": [0, 1, 2],
    }  # fmt: skip
    assert all(equal(result.parts[name], values) for name, values in expected.items()), result.parts
    assert result.total.tolist() == [3.5, 1.0, 2.5]
    assert result.logged == {"mine": 0.75}


def test_conversations_come_as_messages_and_silence_is_no_reward(files):
    asked = [Problem("p/0", "x", None, messages=({"role": "user", "content": "x"},))] * 3
    result = scored(Rewards(RewardSettings([f"{files}/mine.py:has_tags"])), asked, ["<think>a</think>b", "a", "b"])
    assert result.total.tolist() == [1, 0, 0]
    silent = Rewards(RewardSettings([f"{files}/mine.py:only_math"]))
    assert equal(scored(silent).total, [1, None, 1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("breaks", r"faulty.py:breaks failed: faulty.py:3: ZeroDivisionError: .* on problem p/1 and the completion ''"),
        ("together", r"KeyError: 'x', on problem p/0 and others: 3 completions together; each alone goes well"),
        ("few", r"returned 1 numbers for 3 completions"),
        ("words", r"returned 'one', on problem p/0"),
        ("nan", r"returned nan, on problem p/1 and the completion ''"),
        ("large", r"returned 1000+, on problem p/1 and the completion ''"),
        ("hangs", r"no answer within 0.5 s; the process was ended"),
        ("leaves", r"faulty.py:leaves failed: faulty.py:\d+: SystemExit: enough, on problem p/0"),
        ("dies", r"has ended \(exit status 7\)"),
    ],
)
def test_a_function_that_fails_is_named_with_the_completion(files, name, message):
    rewards = Rewards(RewardSettings([f"{files}/faulty.py:{name}"], timeout_s=0.5 if name == "hangs" else 60))
    with pytest.raises(UserCodeError, match=message) as caught:
        scored(rewards)
    assert "same command goes on" in caught.value.remedy + caught.value.what


@pytest.mark.parametrize(
    ("functions", "weights", "message"),
    [
        ([], None, "is empty"),
        (["mine.py:right", "other/mine.py:right"], None, "there is no file"),
        (["{place}/mine.py:right", "{place}/faulty.py:right"], None, "two rewards of the name right"),
        (["correctness"], [1.0, 2.0], "has 2 numbers for 1"),
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
