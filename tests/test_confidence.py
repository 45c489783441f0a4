"""Confidences that completions state: what is read, what is refused, and that none is graded as the answer."""

import pytest

from carerft.tasks import Problem
from carerft.tasks.confidence import without_confidence
from carerft.tasks.gsm8k import Gsm8kTask
from carerft.tasks.math import MathTask
from carerft.tasks.replies import grade_completions
from carerft.tasks.templates import PROMPTS, load_template

READ = {
    "Confidence: 0.8": 0.8,
    "confidence = .75.": 0.75,
    "**Confidence:** 80%": 0.8,
    "**Confidence**: 0.8": 0.8,
    "Confidence: \\boxed{0.9}": 0.9,
    "Confidence: $0.9$.": 0.9,
    "Confidence: 80\\%": 0.8,
    "My confidence is 0.7.": 0.7,
    "Confidence score (0-1): 0.25": 0.25,
    "Confidence:\n0.5": 0.5,
    "<confidence>0.4</confidence>": 0.4,
    "Confidence: 100%": 1.0,
    "Confidence: 1.0": 1.0,
    "Confidence: 0": 0.0,
    "Confidence: 0.9.\nConfidence: 0.3.": 0.3,  # the last one
    "Confidence: 0.30000000000000000001": 0.3,
}
"""A statement, and its value."""
UNREADABLE = (
    "1e999", "1e-1", "0,9", "-0.1", "\u22120.1", "+0.8", "1.5", "101%", "0.8%", "80", "8/10", "00.8", "0x1", "nan",
    "inf", "NaN%", "high", "", "\u0660.\u0668", "\uff10.\uff18", "\u00bd", "0.8 or 0.9", "0.8-0.9", "0.8\x00",
    "0.\u200b8", "0.8.9", "0.8 because 12 is even", "\u00b1 0.8", "1_0%", "9" * 1_000_000,
    "0." + "9" * 1_000_000, "0." + "3" * 21, " " * 1_000_000 + "0.8", "(" * 1_000_000,
)  # fmt: skip


@pytest.mark.parametrize(("statement", "value"), READ.items())
def test_a_confidence_is_read_and_taken_out(statement, value):
    assert without_confidence(f"The answer is 12.\n{statement}") == ("The answer is 12.", value)


@pytest.mark.parametrize("value", UNREADABLE, ids=lambda value: ascii(value[:20]))
def test_what_is_no_probability_is_none_and_is_taken_out_too(value):
    assert without_confidence(f"The answer is 12.\nConfidence: {value}") == ("The answer is 12.", None)
    assert without_confidence(f"It is 12.\nConfidence: 0.9.\nConfidence: {value}")[1] is None  # the last one decides


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 12.", "", "the 95% confidence interval is 3", "self-confidence: 0.8", "overconfidence: 0.8",
        "My confidence is high: the answer is 12", "confidence 0.8", "confidence" * 10_000,
    ],
)  # fmt: skip
def test_a_text_without_a_statement_stays_as_it_is(text):
    assert without_confidence(text) == (text, None)


@pytest.mark.parametrize(
    "part", ["confidence: ", "<confidence>", "confidence is ", "confidence (", "*", "_", "my ", "0.8 "]
)
def test_reading_takes_linear_time(part):
    """A megabyte each: in quadratic time, hours."""
    text, value = without_confidence(part * (1_000_000 // len(part)))
    assert value is None and len(text) <= 1_000_000


@pytest.mark.parametrize("task", [Gsm8kTask, MathTask])
@pytest.mark.parametrize("statement", [*READ, *(f"Confidence: {value}" for value in UNREADABLE[:20])])
def test_a_confidence_is_not_graded_as_the_answer(task, statement):
    """Without taking it out, GSM8K's last number of these is the confidence."""
    asks = task(prompt="confidence")
    problems = [Problem("p", "What?", "12"), Problem("q", "What?", "13")]
    texts = [f"Six and six: the answer is 12. {statement}"] * 2
    grades = grade_completions(asks, problems, texts, [True, True], count_truncated=False)
    assert [grade.correct for grade in grades] == [True, False]
    assert grades[0].confidence == READ.get(statement)


def test_confidences_are_those_of_the_reply():
    """Neither of the thinking, nor of a question with which a base model goes on; one that was cut keeps its own."""
    task, problem = Gsm8kTask(prompt="confidence"), Problem("p", "What?", "12")
    thought = "<think>11? Confidence: 0.1</think>It is 12. Confidence: 0.9"
    texts = [thought, "It is 12.\nQuestion: 1+1?\nAnswer: 2. Confidence: 0.3", "<think>It is 12. Confidence: 0.9"]
    grades = grade_completions(task, [problem] * 3, texts, [True, True, False], count_truncated=False)
    assert [(grade.correct, grade.confidence) for grade in grades] == [(True, 0.9), (True, None), (False, None)]


def test_a_prompt_that_asks_for_none_is_graded_as_before():
    problem, text = Problem("p", "What?", "0.8"), "It is 12. Confidence: 0.8"
    (grade,) = grade_completions(Gsm8kTask(), [problem], [text], [True], count_truncated=False)
    assert grade.correct and grade.confidence is None


def test_prompts_that_ask_for_a_confidence_say_its_form():
    files = sorted(PROMPTS.glob("*/confidence.yaml"))
    assert len(files) == 6
    for file in files:
        template = load_template(file.parent.name, "confidence")
        assert template.confidence and "Confidence: " in template.prompt
