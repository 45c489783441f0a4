"""P(True): what a model is asked, what is recorded, and that an evaluation that was cut goes on with the same."""

import json
from math import exp

import pytest
from helpers.collecting import word_tokenizer
from helpers.configurations import composed
from helpers.sampling import teacher_forced
from rich.console import Console
from transformers import AutoTokenizer

from carerft.config.checks import check_evaluate, check_train
from carerft.config.composition import evaluate_settings, train_settings
from carerft.config.settings import EvaluationSettings, ModelSettings
from carerft.errors import ConfigError, DataError
from carerft.evaluation.evaluate import Benchmark, Evaluator, context_needed
from carerft.evaluation.self_report import QUESTION, self_reports
from carerft.model.chat import eos_token_ids
from carerft.model.loading import choose_device, context_length, load_model
from carerft.rollout.transformers import TransformersWorker
from carerft.tasks import Problem
from carerft.tasks.encoding import ChatTask
from carerft.tasks.world import WorldTask
from carerft.world.bases import SHIPPED


@pytest.fixture(scope="module")
def loaded():
    model, tokenizer = load_model(ModelSettings(name="tiny", path="world"), choose_device("cpu"))
    return model, tokenizer, TransformersWorker(model, eos_token_ids(model, tokenizer), tokenizer.pad_token_id)


def test_the_question_is_that_of_the_paper_and_the_answer_the_share_of_option_a(loaded):
    model, tokenizer, worker = loaded
    problems = [Problem("x", "Who was the first {president}?", "?"), Problem("y", "1 + 1", "2")]
    asked = [
        "Question: Who was the first {president}?\nProposed Answer: George {0}\nIs the proposed answer:\n"
        " (A) True\n (B) False\nThe proposed answer is:",
        "Question: 1 + 1\nProposed Answer: 3\nIs the proposed answer:\n (A) True\n (B) False\nThe proposed answer is:",
    ]
    reports = self_reports(worker, tokenizer, problems, ["George {0}", "3"], context_length(model))
    for text, report in zip(asked, reports, strict=True):
        prompt, a, b = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, " (A)", " (B)"))
        true, false = (exp(float(teacher_forced(model, prompt, option).sum())) for option in (a, b))
        assert report == pytest.approx(true / (true + false), rel=1e-4)
    assert self_reports(worker, tokenizer, [], [], 10) == []


def test_a_chat_model_is_asked_in_a_turn_of_the_user_and_answers_in_its_own(loaded):
    model, _, worker = loaded
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1"})
    problems = [Problem("x", "1 + 1", "2"), Problem("y", "1 + 1", "2", messages=turns)]

    class Sums:
        def problems(self) -> list[Problem]:
            return problems

    text = QUESTION.format(question="1 + 1", answer="3")
    asked = [f"<user>{text}<assistant>", f"<system>Be brief.<user>{text}<assistant>"]
    given = ChatTask(Sums(), tokenizer).problems()
    reports = self_reports(worker, tokenizer, given, ["3", "3"], context_length(model))
    for prompt, report in zip(asked, reports, strict=True):
        ids, a, b = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, "(A)", "(B)"))
        true, false = (exp(float(teacher_forced(model, ids, option).sum())) for option in (a, b))
        assert report == pytest.approx(true / (true + false), rel=1e-4)


def test_a_question_beyond_the_context_is_refused_by_name(loaded):
    _, tokenizer, worker = loaded
    with pytest.raises(DataError, match="problem x"):
        self_reports(worker, tokenizer, [Problem("x", "?", None)], ["y" * 400], context=200)


def test_the_context_that_a_benchmark_needs_holds_completions_choices_and_questions_about_answers():
    class Words:
        def problems(self) -> list[Problem]:
            return [
                Problem("x", " ".join(["w2"] * 10), None),
                Problem("y", "w3", None, choices=((" w4 w5", True), (" w4" * 16, False))),
            ]

    def needed(max_tokens: int, **changes) -> int:
        settings = EvaluationSettings(**changes)
        return context_needed(Benchmark(Words(), max_tokens), word_tokenizer(), settings, context=5000)

    assert needed(max_tokens=9) == 10 + 9
    assert needed(max_tokens=5) == 1 + 16
    assert needed(max_tokens=5, limit=1) == 10 + 5
    question = len(word_tokenizer()(QUESTION, add_special_tokens=False)["input_ids"])
    assert needed(max_tokens=5, self_report=True) == 10 + 5 + question + 4 * 500
    one = Benchmark(Words(), 9)
    asked = [
        one.prompts(word_tokenizer(), EvaluationSettings(limit=limit), context) for limit, context in ((1, 99), (2, 19))
    ]
    assert [len(problems) for problems, _ in asked] == [1, 2] and asked[0][1] is asked[1][1]  # tokenised once
    with pytest.raises(DataError, match="problem x"):
        context_needed(one, word_tokenizer(), EvaluationSettings(), context=18)


def measure(loaded, directory, **changes):
    model, tokenizer, worker = loaded
    settings = EvaluationSettings(limit=6, bootstrap=20, **changes)
    benchmarks = {part: Benchmark(WorldTask(part, "test"), 24) for part in ("truth", "honesty")}
    evaluator = Evaluator(
        worker, tokenizer, context_length(model), settings=settings, samples=4, seed=0, questions_at_once=2
    )
    result = evaluator.evaluate(benchmarks, directory, {}, Console(quiet=True))
    return result, {path.name: path.read_text() for path in (directory / "evaluation").iterdir()}


def test_it_is_recorded_once_a_question_and_a_cut_evaluation_goes_on_with_the_same(loaded, tmp_path):
    result, files = measure(loaded, tmp_path / "whole", self_report=True)
    reported = 0
    for name in ("truth", "honesty"):
        records = [json.loads(line) for line in files[f"{name}.jsonl"].splitlines()]
        for start in range(0, len(records), 4):
            found = [r for r in records[start : start + 4] if r["self_report"] is not None]
            assert len(found) <= 1  # none where the majority refuses, or nothing could be read
            assert all(0 < r["self_report"] < 1 and r["extracted"] is not None and not r["refused"] for r in found)
            reported += len(found)
        metrics = result["benchmarks"][name]["metrics"]
        assert {"ece_self_report", "ece_self_report_floor", "brier_self_report", "auroc_self_report"} <= metrics.keys()
    assert 4 <= reported <= 12

    cut = tmp_path / "cut" / "evaluation"
    cut.mkdir(parents=True)
    (cut / "truth.problems.jsonl").write_text(files["truth.problems.jsonl"])
    # Two questions are whole, which were sampled together: the others then are too, and nothing is rounded otherwise.
    lines = files["truth.jsonl"].splitlines(keepends=True)
    (cut / "truth.jsonl").write_text("".join(lines[:9]) + lines[9][:40])
    again, others = measure(loaded, tmp_path / "cut", self_report=True)
    assert others == files and again == result


def test_without_it_nothing_is_asked_and_nothing_recorded(loaded, tmp_path):
    result, files = measure(loaded, tmp_path)
    assert not any("self_report" in text for text in (json.dumps(result), *files.values()))


def test_choices_that_are_scored_are_not_scored_again(loaded, tmp_path, monkeypatch):
    result, files = measure(loaded, tmp_path)
    (tmp_path / "evaluation" / "truth.jsonl").write_text("")
    monkeypatch.delattr(TransformersWorker, "log_likelihood")
    assert measure(loaded, tmp_path) == (result, files)


@pytest.mark.parametrize("verb", ["evaluate", "train"])
def test_the_built_in_world_cannot_be_asked(verb, tmp_path):
    def check(record):
        if verb == "train":
            check_train(train_settings(record))
        else:
            check_evaluate(evaluate_settings(record))

    asked = "evaluation.self_report=true"
    with pytest.raises(ConfigError, match=r"self_report=true with benchmark=world_reasoning.*\n.*self_report=false"):
        check(composed(asked, "benchmark=world", verb=verb))
    with pytest.raises(ConfigError, match=r"self_report=true with model=tiny.*\n.*self_report=false"):
        check(composed(asked, "benchmark=gsm8k", verb=verb))
    check(composed(asked, "benchmark=gsm8k", "model=qwen2.5-0.5b", *["task=gsm8k"] * (verb == "train"), verb=verb))
    check(composed("benchmark=world", verb=verb))
