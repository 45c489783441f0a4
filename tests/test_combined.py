"""One calibration error of several benchmarks together, `evaluation.combine`."""

import json

import pytest
from helpers.configurations import settings
from helpers.runs import run

from carerft.config.checks import check_evaluate
from carerft.errors import ConfigError
from carerft.report.build import build


def test_the_papers_benchmarks_have_one_calibration_error_together():
    paper = settings("benchmark=paper", verb="evaluate")
    assert set(paper.evaluation.combine) < paper.benchmark.keys()
    assert list(paper.benchmark) == ["math", "gsm8k", "selfaware", "truthfulqa", "truthfulqa_options"]


def test_a_run_combines_no_benchmark_that_it_lacks():
    with pytest.raises(ConfigError, match=r"evaluation\.combine names gsm8k"):
        check_evaluate(settings("benchmark=world_truth", "evaluation.combine=[world_truth,gsm8k]", verb="evaluate"))
    combined = ["benchmark=world_truth", "evaluation.combine=[world_truth]"]
    for tokens, message in ((0, "evaluation.combine needs its answers"), (-1, "must be at least 0")):
        with pytest.raises(ConfigError, match=message):
            check_evaluate(settings(*combined, f"benchmark.world_truth.max_tokens={tokens}", verb="evaluate"))


def test_an_evaluation_gives_one_calibration_error_of_several_benchmarks(tmp_path):
    overrides = ["benchmark=[world_truth,world_honesty]", "evaluation.combine=[world_truth,world_honesty]"]
    assert run(tmp_path / "run", *overrides, verb="evaluate") == 0
    benchmarks = json.loads((tmp_path / "run" / "evaluation.json").read_text())["benchmarks"]
    assert benchmarks["combined"]["n"] == benchmarks["world_truth"]["n"] + benchmarks["world_honesty"]["n"]
    page = build([tmp_path / "run"]).parent / "table.md"
    assert "All together" in page.read_text()
