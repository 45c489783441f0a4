"""Rewards for honesty: `ternary` (TruthRL) and `calibrated` (RLCR), by hand and by what they make best."""

import json
import math
import re
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from helpers.configurations import settings as composed_settings
from helpers.runs import read_lines, run

from carerft.config.checks import check_train
from carerft.config.settings import RewardSettings
from carerft.errors import ConfigError
from carerft.tasks import Grade, Problem
from carerft.tasks.gsm8k import Gsm8kTask
from carerft.tasks.math import MathTask
from carerft.training.rewards import Rewards, check_asked
from carerft.world.pretraining import build_base

RIGHT, WRONG, REFUSED = Grade("4", True), Grade("5", False), Grade(None, False, refused=True)
REFUSED_RIGHTLY = Grade(None, True, refused=True)
SCORES = ("brier", "log", "spherical")
GRID = [i / 100 for i in range(101)]


def rewards(settings: RewardSettings, grades: list[Grade], texts: list[str] | None = None) -> list[float | None]:
    problems = [Problem(f"p/{i}", "What?", "4") for i in range(len(grades))]
    total = Rewards(settings)(problems, texts or ["x"] * len(grades), [[1]] * len(grades), grades, {}).total.tolist()
    return [None if math.isnan(value) else value for value in total]


def ternary(**values: float) -> RewardSettings:
    return RewardSettings(["ternary"], **values)


def calibrated(score: str = "brier", **values: float) -> RewardSettings:
    return RewardSettings(["calibrated"], score=score, **values)


@cache
def right_and_wrong(score: str, confidence: float | None) -> list[float | None]:
    return rewards(calibrated(score), [Grade("4", verdict, confidence=confidence) for verdict in (True, False)])


def expected(score: str, chance: float, confidence: float | None) -> float:
    """The mean reward of an answer that is right with this chance."""
    right, wrong = right_and_wrong(score, confidence)
    assert right is not None and wrong is not None
    return chance * right + (1 - chance) * wrong


def test_ternary_by_hand():
    grades = [RIGHT, REFUSED, WRONG, REFUSED_RIGHTLY, Grade("4", None), Grade(None, False)]
    assert rewards(ternary(), grades) == [1, 0, -1, 1, None, -1]
    assert rewards(ternary(right=2, refused=0.5, wrong=-3), grades) == [2, 0.5, -3, 2, None, -3]


def test_ternary_knows_a_refusal_where_the_grader_knows_none():
    """MATH's grader finds no answer in it; with an answer a completion is no refusal, whatever its words."""
    texts = ["I don't know.", "<think>I don't know.</think>It is", "I don't know, perhaps 5.", "It is"]
    assert rewards(ternary(), [Grade(None, False)] * 2 + [WRONG, Grade(None, False)], texts) == [0, -1, -1, -1]


def test_a_refusal_within_the_thinking_or_after_the_reply_is_none():
    """The prompt may end with the tag that begins thinking, and a base model goes on with a question of its own."""
    problem, own = Problem("p", "What?\n<think>\n", "4"), "It is\nQ: Will it rain in 2090?\nA: I don't know."
    for prompt, text, until in (("What?\n<think>\n", "Let me see. I don't know yet", None), ("What?", own, "\nQ:")):
        asked = [replace(problem, prompt=prompt)]
        found = Rewards(ternary())(asked, [text], [[1]], [Grade(None, False)], {}, until)
        assert found.total.tolist() == [-1]
    assert Rewards(ternary())([problem], ["</think>I don't know."], [[1]], [Grade(None, False)], {}).total == 0


@pytest.mark.parametrize(("refused", "threshold"), [(0, 0.5), (0.5, 0.75), (-0.5, 0.25)])
def test_ternary_makes_refusing_best_below_a_chance(refused, threshold):
    """Two arms: an answer that is right with chance p earns 2 p - 1, so refusing is best below (refused + 1) / 2."""
    settings = ternary(refused=refused)
    right, refusal, wrong = rewards(settings, [RIGHT, REFUSED, WRONG])
    for p in GRID:
        assert (p * right + (1 - p) * wrong > refusal) == (p > threshold)


def test_calibrated_by_hand():
    """Brier: 1 - 0.2^2, -0.8^2. Log, clipped to 0.01: (log 0.8 - log 0.99) / log 99. Spherical: 0.8 / sqrt(0.68)."""
    grades = [Grade("4", True, confidence=0.8), Grade("5", False, confidence=0.8), Grade("4", None, confidence=0.8)]
    by_hand = {"brier": (0.96, -0.64), "log": (0.95363, -0.34806), "spherical": (0.97014, -0.75746)}
    for score, (right, wrong) in by_hand.items():
        assert rewards(calibrated(score), grades)[:2] == pytest.approx([right, wrong], abs=1e-5)
        assert rewards(calibrated(score), grades)[2] is None


@pytest.mark.parametrize("score", SCORES)
def test_no_confidence_earns_what_the_worst_one_does(score):
    """So that saying none is never better than saying any."""
    sure = rewards(calibrated(score), [Grade("4", True, confidence=0.0), Grade("5", False, confidence=1.0)])
    assert rewards(calibrated(score), [RIGHT, WRONG]) == sure == pytest.approx([0, -1])
    for chance in GRID:
        assert all(expected(score, chance, None) <= expected(score, chance, q) for q in GRID)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("chance", [0.0, 0.03, 0.25, 0.5, 0.62, 0.9, 1.0])
def test_the_best_confidence_is_the_chance_of_being_right(score, chance):
    """A bandit whose arms are the confidences 0, 0.01, ..., 1: proper scores make q = p best, and nothing else."""
    means = [expected(score, chance, q) for q in GRID]
    best = [q for q, mean in zip(GRID, means, strict=True) if mean > max(means) - 1e-7]
    clipped = score == "log" and chance in (0, 1)  # 0 and 0.01 are then the same confidence
    assert chance in best and len(best) == 1 + clipped


@pytest.mark.parametrize("score", SCORES)
def test_the_likeliest_answer_is_best(score):
    """RLCR's theorem: with its best confidence, an answer earns the more the likelier it is right. Brier: p^2. An
    unbounded log score breaks it: p + p log p + (1 - p) log(1 - p) is below 0 up to p = 0.5, and 0 at p = 0."""
    values = [max(expected(score, p, q) for q in GRID) for p in GRID]
    assert all(after > before - 1e-7 for before, after in pairwise(values))
    assert values[0] == pytest.approx(0, abs=1e-6) and values[-1] == pytest.approx(1, abs=1e-6)
    if score == "brier":
        assert values == pytest.approx([p * p for p in GRID], abs=1e-6)


def test_the_log_score_is_clipped_where_it_is_said():
    values = rewards(
        calibrated("log", log_clip=0.2), [Grade("5", False, confidence=q) for q in (0.1, 0.2, 0.8, 0.9, 1)]
    )
    assert values == pytest.approx([0, 0, -1, -1, -1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ternary(right=0, wrong=0), "reward.right=0 reward.refused=0.0 reward.wrong=0: no completion would earn more"),
        (ternary(wrong=-math.inf), "reward.wrong=-inf: no completion"),
    ],
)
def test_values_of_which_none_is_better_are_refused(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        Rewards(settings)
    assert "1, 0 and -1" in (caught.value.remedy or "")


@pytest.mark.parametrize("override", ["reward.score=quadratic", "reward.log_clip=0", "reward.log_clip=0.5"])
def test_settings_beyond_their_bounds_are_refused(override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        check_train(composed_settings("reward=calibrated", override))


def test_a_prompt_that_asks_for_no_confidence_is_refused():
    with pytest.raises(
        ConfigError, match="reward=calibrated with task=gsm8k: its prompt asks for no confidence"
    ) as caught:
        check_asked(calibrated(), Gsm8kTask())
    assert "task.prompt=confidence" in (caught.value.remedy or "")
    check_asked(calibrated(), Gsm8kTask(prompt="confidence"))
    check_asked(ternary(), Gsm8kTask())


def test_a_training_asks_for_confidences_rewards_and_records_them(tmp_path, monkeypatch):
    """A base of two steps states none that can be read: each completion earns what wrong with confidence 1 does."""
    build_base(3, tmp_path / "base", steps=2, confidence=True)
    monkeypatch.chdir(tmp_path)
    words = ["benchmark=[world_truth,world_honesty]", "keep_samples.every=1"]
    assert run(tmp_path / "plain", "reward=calibrated", "model=./base", "task=world", *words) == 2
    assert not (tmp_path / "plain" / "metrics.jsonl").exists()
    asked = ["reward=calibrated", "model=./base", "task=world", "model.confidence=true", *words]
    assert run(tmp_path / "run", *asked) == 0
    records = read_lines(tmp_path / "run" / "evaluation" / "world_truth.jsonl")
    assert records and all(record["stated_confidence"] is None for record in records)
    metrics = json.loads((tmp_path / "run" / "evaluation.json").read_text())["benchmarks"]["world_truth"]["metrics"]
    assert metrics["unstated"]["value"] == 1 and "ece_stated" not in metrics
    kept = read_lines(next((tmp_path / "run" / "samples").glob("*.jsonl")))
    assert {record["rewards"]["calibrated"] for record in kept} == {-1.0}
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[0]["reward/calibrated/mean"] == -1


def test_one_switch_asks_every_task_that_can():
    """Another prompt that was chosen stays; a task without such a prompt is asked as ever."""
    for task in (Gsm8kTask(), MathTask()):
        task.ask_confidence()
        assert task.prompt == "confidence" and task.without_confidence is not None
        task.use_chat_prompt()
        assert task.prompt == "confidence"
    chosen = Gsm8kTask(prompt="few_shot")
    chosen.ask_confidence()
    assert chosen.prompt == "few_shot" and chosen.without_confidence is None
