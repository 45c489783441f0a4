r"""GSM8K and MATH: the rows of every format and source, the errors about bad files, and grades."""

import json
import logging
import os
from collections import Counter

import pytest
from helpers.invented_rows import LOSS, SUM, real_files, write

from carerft.errors import ConfigError, DataError
from carerft.tasks import Grade, gsm8k, math
from carerft.tasks.files import Published, Row, load_rows
from carerft.tasks.gsm8k import Gsm8kTask, extracted_number
from carerft.tasks.math import MathTask, fingerprint


def test_gsm8k_rows_become_problems(tmp_path):
    task = Gsm8kTask("test", path=write(tmp_path / "some.jsonl", SUM, "\n", LOSS))
    first, second = task.problems()
    assert (first.id, second.id) == ("gsm8k/test/0", "gsm8k/test/1")
    assert (first.answer, second.answer) == ("1080", "-10")
    assert first.prompt == f"Question: {SUM['question']}\nAnswer:"
    assert len(Gsm8kTask(path=task.path, limit=1).problems()) == 1


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        (
            {"problem": "1+1?", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{1}+1=\boxed{2}$."},
            "2",
        ),
        ({"problem": "1+1?", "solution": r"\boxed{2}", "answer": r"\frac{4}{2}", "unique_id": "u"}, r"\frac{4}{2}"),
        ({"problem": "1+1?", "answer": "2"}, "2"),
        ({"problem": "1+1?", "answer": 2}, "2"),
        ({"question": "1+1?", "answer": r"so \boxed{2}"}, "2"),
    ],
    ids=["hub and test file", "MATH-500", "of one's own", "a number", "boxed"],
)
def test_every_format_of_math_gives_the_same_problem(tmp_path, row, answer):
    (problem,) = MathTask("test", path=write(tmp_path / "m.jsonl", row)).problems()
    assert (problem.id, problem.answer) == ("math/test/0", answer)
    assert problem.prompt == "Problem: 1+1?\nReason step by step, and put the final answer within \\boxed{}.\nSolution:"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([SUM, '{"question": "x", "ans'], ":2: not JSON"),
        ([SUM, "\n", "[1, 2]\n"], ":3: a JSON list"),
        ([SUM, {"question": "x"}], ":2: no field 'answer'"),
        ([SUM, {"question": ["x"], "answer": "#### 1"}], ":2: the field 'question' is no text"),
        (
            [SUM, {"question": "x", "answer": "about 5 or so #### many"}],
            ":2: the answer does not end in '#### <number>'",
        ),
        ([SUM, LOSS, SUM], ":3: the same problem as .*:1"),
        ([{"question": " ", "answer": "#### 1"}], ":1: the problem is empty"),
        (["\n\n"], "is empty"),
        (["[" * 100_000 + "\n"], ":1: not "),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, lines, message):
    path = write(tmp_path / "bad.jsonl", *lines)
    with pytest.raises(DataError, match=message) as caught:
        Gsm8kTask("test", path=path).problems()
    assert path in caught.value.what
    assert caught.value.remedy


def test_a_file_that_is_not_utf8_or_not_there(tmp_path):
    file = tmp_path / "latin.jsonl"
    file.write_bytes(b'{"question": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"latin.jsonl:1: not UTF-8 at byte 18"):
        Gsm8kTask(path=str(file)).problems()
    for missing in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(DataError, match=str(missing)):
            Gsm8kTask(path=str(missing)).problems()


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path):
    file = tmp_path / "bom.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(SUM).encode() + b"\r\n")
    assert Gsm8kTask(path=str(file)).problems()[0].answer == "1080"


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        (Gsm8kTask, {"split": "validation"}),
        (Gsm8kTask, {"extraction": "regex"}),
        (Gsm8kTask, {"limit": 0}),
        (MathTask, {"split": "math50"}),
        (MathTask, {"extraction": "strict"}),
        (MathTask, {"limit": -1}),
    ],
)
def test_what_a_task_cannot_be(task, arguments):
    (key,) = arguments
    with pytest.raises(ConfigError, match=f"{key}="):
        task(**arguments)


def test_a_published_file_that_is_short(tmp_path, monkeypatch):
    monkeypatch.setenv("CARERFT_DATA", str(tmp_path))
    write(tmp_path / "gsm8k/test.jsonl", SUM, LOSS)
    with pytest.raises(DataError, match=r"gsm8k/test.jsonl:2 is the last: 2 rows, .* 1,319"):
        Gsm8kTask("test").problems()


def test_a_published_file_that_was_changed_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CARERFT_DATA", str(tmp_path))
    write(tmp_path / "few/test.jsonl", SUM, LOSS)
    few = Published(
        "few/test.jsonl", rows=2, sha256="0" * 64, hub="no/where", configs=("main",), split="test", revision="1"
    )
    with caplog.at_level(logging.WARNING):
        assert [row.fields for row in load_rows(few)] == [SUM, LOSS]
    assert "few/test.jsonl is not byte for byte" in caplog.text


def test_no_data_at_all_says_how_to_get_it(tmp_path, monkeypatch):
    """The hub client is really called: at an address of this machine where nothing listens."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CARERFT_DATA", str(tmp_path))
    absent = Published(
        "few/test.jsonl", rows=2, sha256="", hub="no/where", configs=("main",), split="test", revision="1"
    )
    with pytest.raises(DataError) as caught:
        load_rows(absent)
    for hint in ("few/test.jsonl does not exist", "no/where"):
        assert hint in caught.value.what
    for hint in ("task.path=FILE", "CARERFT_DATA=DIRECTORY", "network"):
        assert hint in caught.value.remedy
    assert constants.HF_HUB_OFFLINE is False or "HF_HUB_OFFLINE" in os.environ


def test_training_leaves_out_what_is_tested_on(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("CARERFT_DATA", raising=False)
    tested = "Find the sum of\n $1$ and  $2$."
    rows = [
        {"problem": "Find the sum of $1$ and $2$.", "answer": "3"},
        {"problem": "Find it.", "answer": ""},
        {"problem": "Find $4$.", "answer": "4"},
    ]
    path = write(tmp_path / "own.jsonl", *rows)
    monkeypatch.setattr(math, "IN_BOTH_TRAIN_AND_TEST", frozenset({fingerprint(tested)}))
    with caplog.at_level(logging.WARNING):
        assert [p.id for p in MathTask("train", path=path).problems()] == ["math/train/2"]
    assert "left out 1 without an answer, 1 that are tested on, shown" in caplog.text
    assert [p.id for p in MathTask("test", path=path).problems()] == ["math/test/0", "math/test/2"]
    with pytest.raises(DataError, match="no problem"):
        MathTask("train", path=write(tmp_path / "all.jsonl", *rows[:2])).problems()


def test_a_solution_without_a_box(tmp_path):
    with pytest.raises(DataError, match=r"m.jsonl:1: the solution has no \\boxed"):
        MathTask("test", path=write(tmp_path / "m.jsonl", {"problem": "?", "solution": "It is 2."})).problems()


@pytest.mark.parametrize(
    ("text", "flexible", "strict"),
    [
        ("2 + 3 = 5\n#### 5", "5", "5"),
        ("so she has $1,080.00 left.", "1080", None),
        ("#### 5\nor rather #### $1,234", "1234", "1234"),
        (r"#### 5 and \boxed{6}", "6", "5"),
        (r"\boxed{6\text{ pears}} in 2 days", "6", None),
        (r"\boxed{it is 6}, not 7", "6", None),
        (r"\boxed{\frac{12}{2}}", "6", None),
        ("the rest is -10.", "-10", None),
        ("that is 10-4", "4", None),
        ("#### -3", "-3", "-3"),
        ("#### \u22123", "-3", "-3"),
        ("half, .5 of it", "0.5", None),
        ("none", None, None),
        ("", None, None),
        ("9" * 100_000, None, None),
        ("#### " + "9" * 100, None, None),
    ],
)
def test_the_number_that_a_completion_gives(text, flexible, strict):
    assert extracted_number(text) == flexible
    assert extracted_number(text, strict=True) == strict


def test_gsm8k_grades(tmp_path):
    task = Gsm8kTask("test", path=write(tmp_path / "some.jsonl", SUM, LOSS))
    total, loss = task.problems()
    grades = task.grade([total, total, loss, loss], ["#### 1080", "1,081", "it is -10.0", "?"])
    assert grades == [Grade("1080", True), Grade("1081", False), Grade("-10", True), Grade(None, False)]


def test_math_grades():
    task = MathTask("test")
    problem = math.Problem("math/test/0", "?", r"\frac{\sqrt{3}}{2}")
    texts = [r"\boxed{\sqrt{\frac{3}{4}}}", "The answer is $\\sqrt3/2$.", r"\boxed{1}", "?", r"\boxed{9^{9^{9}}}"]
    grades = task.grade([problem] * 5, texts)
    assert [grade.correct for grade in grades] == [True, True, False, False, False]
    assert [grade.extracted for grade in grades] == [problem.answer] * 2 + ["1", None, "9^{9^9}"]
    assert MathTask(extraction="boxed").grade([problem], texts[1:2]) == [Grade(None, False)]


def test_rows_name_what_they_lack():
    with pytest.raises(DataError, match=r"hub row 3: no field .problem. or .question. .its fields: .text.."):
        Row({"text": "?"}, "hub row 3", 3).text("problem", "question")


@real_files
@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("test", 1319)])
def test_every_reference_solution_of_gsm8k_is_correct(split, rows):
    for extraction in gsm8k.EXTRACTIONS:
        task = Gsm8kTask(split, extraction=extraction)
        problems = task.problems()
        solutions = [row.text("answer") for row in load_rows(gsm8k.SPLITS[split])]
        assert len(problems) == rows
        assert Counter(grade.correct for grade in task.grade(problems, solutions)) == {True: rows}


@real_files
@pytest.mark.parametrize(("split", "left"), [("train", 7496), ("test", 5000), ("math500", 500)])
def test_every_reference_solution_of_math_is_correct(split, left):
    """Of train, two rows have an empty answer and two are in test: these four are left out."""
    task = MathTask(split)
    problems = task.problems()
    assert len(problems) == left
    solutions = [row.text("solution") for row in load_rows(math.SPLITS[split][0])]
    grades = task.grade(problems, [solutions[int(problem.id.rpartition("/")[2])] for problem in problems])
    assert [p.id for p, grade in zip(problems, grades, strict=True) if not grade.correct] == []


@real_files
def test_the_shipped_fingerprints_are_those_of_the_real_files(tmp_path):
    train, test = ({fingerprint(row.text("problem")) for row in load_rows(part)} for part in (math.TRAIN, math.TEST))
    tested = {fingerprint(row.text("problem")) for row in load_rows(math.MATH500)}
    assert train & test == math.IN_BOTH_TRAIN_AND_TEST
    bare = tmp_path / "bare.yaml"
    bare.write_text('prompt: "{question}"\n')
    problems = [p.prompt for p in MathTask("train12000", prompt=str(bare)).problems()]
    assert len(problems) == 11_996  # 7,500 + 4,500, less two without an answer and two that are in both
    assert not {fingerprint(problem) for problem in problems} & tested
