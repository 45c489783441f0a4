"""Questions of a user's own: graders by name and of one's own, conversations, and runs on them."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
from helpers.questions import lines, task
from helpers.runs import run

from carerft import cli
from carerft.errors import ConfigError, DataError, UserCodeError
from carerft.tasks.encoding import ChatTask
from carerft.tasks.letters import named_letter
from carerft.tasks.questions import QuestionsTask
from carerft.world.bases import SHIPPED


def graded(path, gold, texts, **settings) -> list[tuple]:
    one = task(lines(path / "g.jsonl", {"prompt": "Q?", "answer": gold}), **settings)
    return [(g.correct, g.refused) for g in one.grade([one.problems()[0]] * len(texts), texts)]


@pytest.mark.parametrize(
    ("grader", "answer", "right", "wrong"),
    [
        ("exact", "Oslan", ["Oslan", " Oslan\n"], ["oslan", "Oslan.", ""]),
        ("number", "1,080", ["It is 1080", r"\boxed{1080.0}", "#### 1,080"], ["1081", "none", "1080/7"]),
        ("number", 42, ["so 42"], ["43"]),
        ("math", r"\frac{1}{2}", [r"\boxed{0.5}", "The answer is 1/2."], [r"\boxed{2}", "half"]),
        ("choice", "C", ["(C)", "C", "The answer is c", "I think it is C."], ["(A)", "A or C", "No idea at all"]),
        ("contains", "The grey brook!", ["It's the Grey Brook, I think"], ["the greybrook", "grey"]),
        ("regex", r"\bgr[ea]y\b", ["so gray it is"], ["greyish"]),
    ],
)
def test_graders(tmp_path, grader, answer, right, wrong):
    verdicts = graded(tmp_path, answer, right + wrong, grader=grader)
    assert [correct for correct, _ in verdicts] == [True] * len(right) + [False] * len(wrong)


def test_an_answer_of_null_means_that_refusing_is_right(tmp_path):
    texts = ["I don't know.", "7", ""]
    for grader in ("number", "exact", "contains", "math", "choice", "regex"):
        assert graded(tmp_path, None, texts, grader=grader) == [(True, True), (False, False), (False, False)], grader
    assert graded(tmp_path, "7", texts, grader="number")[:2] == [(False, True), (True, False)]
    file = tmp_path / "null.csv"
    file.write_text("prompt,answer\nWho?,null\n")
    assert task(file).problems()[0].answer is None


def test_a_hostile_pattern_has_no_verdict_and_none_never_judges(tmp_path):
    assert graded(tmp_path, "(a|aa)+$", ["a" * 5000 + "b"], grader="regex") == [(None, False)]
    assert graded(tmp_path, "7", ["7", "I don't know"], grader="none", answer=None) == [(None, False)] * 2


OWN = """
import os, sys, time
from numpy import bool_
def grade(completion, answer, level=None):
    match completion.split(" ")[0]:
        case "raise": raise KeyError("why")
        case "hang": time.sleep(1000)
        case "die": os._exit(3)
        case "leave": sys.exit(3)
    special = {"text": "True", "list": [True], "number": 0.5, "?": None, "numpy": bool_(True), "one": 1}
    return special.get(completion, completion == answer + str(level))
async def slowly(completion, **columns): return completion == columns["answer"]
def reply(reply, answer): return True
def knows_null(completion, answer): return "weiß ich nicht" in completion if answer is None else answer in completion
"""


def own_task(path, name="grade", **settings) -> QuestionsTask:
    (path / "mine.py").write_text(OWN)
    rows = lines(path / "a.jsonl", {"prompt": "Q", "answer": "a", "level": 3})
    return task(rows, grader=f"{path}/mine.py:{name}", **settings)


def verdicts(own: QuestionsTask, *texts: str) -> list[bool | None]:
    return [grade.correct for grade in own.grade([own.problems()[0]] * len(texts), texts)]


def test_a_function_of_ones_own_grades(tmp_path):
    assert verdicts(own_task(tmp_path), "a3", "a", "?", "numpy", "one") == [True, False, None, True, True]
    assert verdicts(own_task(tmp_path, "slowly"), "a", "b") == [True, False]


def test_what_a_function_calls_right_where_no_answer_is_right_is_a_refusal(tmp_path):
    own = own_task(tmp_path, "knows_null")
    (problem,) = own.problems()
    texts = ["Das weiß ich nicht.", "I don't know.", "a"]
    grades = own.grade([replace(problem, answer=None)] * 3, texts)
    assert [(g.correct, g.refused, g.extracted) for g in grades] == [
        (True, True, None), (True, True, None), (False, False, "a"),
    ]  # fmt: skip
    assert [g.refused_in_any_words for g in grades] == [False, True, False]
    assert [(g.correct, g.refused) for g in own.grade([problem] * 3, texts)] == [
        (True, False), (False, True), (True, False),
    ]  # fmt: skip


def test_where_it_fails_there_is_no_verdict_and_the_others_are_graded(tmp_path, caplog):
    own = own_task(tmp_path, timeout_s=0.5)
    assert verdicts(own, "raise", "a3", "hang", "a3", "die", "leave", "a") == [
        None,
        True,
        None,
        True,
        None,
        None,
        False,
    ]
    assert "mine.py:grade failed on 4 of 7 completions, which have no verdict. The first: " in caplog.text
    assert "mine.py:6: KeyError: 'why', on problem a/0 and the completion 'raise'" in caplog.text
    assert verdicts(own, "hang") == [None] and "no answer within 0.5 s; the process was ended" in caplog.text
    assert verdicts(own, *["raise"] * 20) == [None] * 20 and "failed on 20 of 20" in caplog.text
    assert verdicts(own, "die") == [None] and "has ended (exit status 3)" in caplog.text


def test_a_grader_that_hangs_does_not_outlive_a_run_that_is_killed(tmp_path):
    own_task(tmp_path)
    script = (
        "from carerft.tasks.questions import QuestionsTask\n"
        f"own = QuestionsTask(path='{tmp_path}/a.jsonl', question='prompt', grader='{tmp_path}/mine.py:grade')\n"
        "print(own._function._child.process.pid, flush=True)\n"
        "own.grade(own.problems()[:1], ['hang'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        grader = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.5)
        parent.kill()
    assert psutil.wait_procs([grader], timeout=60)[1] == []


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        ("grade", ["text"], r"returned 'True', which is neither .*a/0 and the completion 'text'"),
        ("grade", ["list"], r"returned \[True\], which is neither"),
        ("grade", ["number"], r"returned 0.5, which is neither"),
        ("grade", ["a", *(f"raise {i}" for i in range(8))], r"failed on 8 completions one .*: mine.py:6: KeyError"),
        ("reply", ["a"], r"has a parameter 'reply'; it can be given prompt, answer, level, completion"),
    ],
)
def test_a_grader_that_cannot_be_right_stops(tmp_path, name, texts, message):
    with pytest.raises(UserCodeError, match=rf"grader=.*mine.py:{name} {message}") as caught:
        verdicts(own_task(tmp_path, name), *texts)
    assert caught.value.remedy


def test_a_file_that_leaves_or_imports_relatively_is_refused_at_once(tmp_path):
    (tmp_path / "other.py").write_text("x = 1\n")
    for name, text, says in (
        ("leaves", "raise SystemExit(0)", "leaves.py:1: SystemExit: 0"),
        ("dies", "import os; os._exit(4)", r"exit status 4\), while the file was run"),
        ("relative", "from .other import x", r"relative.py:1: ImportError: .*\n  import a file beside it by its name"),
        ("beside", "from other import y", r"beside.py:1: ImportError: cannot import name 'y' from 'other'"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(ConfigError, match=says):
            task("any.jsonl", grader=f"{tmp_path}/{name}.py:grade")


def test_options_are_shown_with_letters(tmp_path):
    rows = [{"prompt": "Which?", "o": ["red", "blue", "green"], "answer": answer} for answer in ("B", "(b)", "blue", 1)]
    made = task(lines(tmp_path / "o.jsonl", *rows), grader="choice", choices="o")
    problems = list(made.problems())
    assert [p.answer for p in problems] == ["B"] * 4
    assert problems[0].prompt == "Which?\n(A) red\n(B) blue\n(C) green"
    assert [g.correct for g in made.grade(problems[:2], ["(B) blue", "(D)"])] == [True, False]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("I think E", "E"), ("I am sure", None), ("A lamp", None), ("(i)", "I"), (r"\boxed{D}", "D"), ("J.", "J")],
)
def test_a_letter_among_ten(reply, letter):
    assert named_letter(reply, 10) == letter


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": None}, "neither of them is given"),
        ({"dataset": "a/b"}, "both is given"),
        ({"grader": None}, "how is a reply graded"),
        ({"grader": "exactly"}, "grader=exactly"),
        ({"answer": None}, "answer=null with grader=exact"),
        ({"where": "level"}, "where=level: no condition"),
        ({"where": 3}, "where=3: no condition"),
        ({"grader": "nowhere.py:grade"}, "there is no file .*nowhere.py"),
        ({"prompt": "many"}, "prompt='many' is no prompt of questions"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        QuestionsTask(**({"path": "a.jsonl", "grader": "exact"} | settings))


def test_answers_of_any_source_are_graded_by_the_same_graders(tmp_path, capsys):
    (tmp_path / "in.csv").write_text(
        "name,answer,said\na,grey brook,The Grey Brook\nb,grey brook,no\nc,null,I don't know\n"
    )
    words = ["benchmark=questions", "grader=contains", "id=name", "gold=answer", "text=said"]
    files = [f"input={tmp_path / 'in.csv'}", f"output={tmp_path / 'out.jsonl'}"]
    assert cli.main(["grade", *words, *files]) == 0
    assert "2 correct, 1 wrong, 0 none" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["id"], line["verdict"], line["why"]) for line in lines] == [
        ("a", "correct", ""), ("b", "wrong", ""), ("c", "correct", "refuses"),
    ]  # fmt: skip
    for changed, says in (("grader=exactly", "grader=exactly"), ("text=wrote", "no column 'wrote'")):
        assert cli.main(["grade", *words, *files, changed]) == 2
        assert says in capsys.readouterr().err
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "in.csv").write_text("name,answer,said\na,a,hang\nb,a,aNone\n")
    assert cli.main(["grade", *words, *files, f"grader={tmp_path}/mine.py:grade", "timeout_s=0.5"]) == 0
    assert "1 correct, 0 wrong, 1 none" in capsys.readouterr().out


def test_numbers_are_answers_too_and_words_of_another_benchmark_are_refused(tmp_path, capsys):
    numbers = [{"id": 1, "gold": "5", "text": 5}, {"id": 2, "gold": 0, "text": 0}, {"id": 3, "gold": 1, "text": None}]
    lines(tmp_path / "numbers.jsonl", *numbers)
    files = [f"input={tmp_path / 'numbers.jsonl'}", f"output={tmp_path / 'out.jsonl'}"]
    assert cli.main(["grade", "benchmark=questions", "grader=number", *files]) == 0
    assert "2 correct, 1 wrong, 0 none" in capsys.readouterr().out
    for unused, says in (
        (["grader=contains"], "grader=contains: benchmark=math does not take it\n  write benchmark=questions as well"),
        (["benchmark=gsm8k", "gold=answer"], "gold=answer: benchmark=gsm8k does not take it"),
        (["benchmark=questions", "grader=math", "extraction=boxed"], "extraction=boxed: benchmark=questions does not"),
    ):
        assert cli.main(["grade", *unused, *files]) == 2
        assert says in capsys.readouterr().err


def test_a_training_on_ones_own_rows(tmp_path, capsys):
    """One row is enough; a conversation needs a chat model; a question that is too long is named."""
    words = ["task=questions", "task.question=prompt", "task.grader=contains", "benchmark=none", "rollout.max_tokens=8"]
    one = lines(tmp_path / "one.jsonl", {"prompt": "Q: two plus three?\nA:", "answer": "five"})
    assert run(tmp_path / "a", *words, f"task.path={one}") == 0
    assert run(tmp_path / "b", *words, f"task.path={one}", "task.system=Be brief.") == 2
    assert "task.system with a model that is asked without a chat template" in capsys.readouterr().err
    turns = lines(tmp_path / "turns.jsonl", {"prompt": [{"role": "user", "content": "Q: two?"}], "answer": "2"})
    assert run(tmp_path / "c", *words, f"task.path={turns}") == 2
    assert "the conversations in 'prompt'" in capsys.readouterr().err
    long = lines(tmp_path / "long.jsonl", {"prompt": "two " * 25_000, "answer": "2"})
    assert run(tmp_path / "d", *words, f"task.path={long}") == 2
    assert "problem long/0 has 25" in capsys.readouterr().err
    measured = ["benchmark=questions", "benchmark.questions.question=prompt", "benchmark.questions.grader=contains"]
    assert run(tmp_path / "d2", *words[:3], f"task.path={one}", *measured, f"benchmark.questions.path={long}") == 2
    assert "problem long/0 has 25" in capsys.readouterr().err and not (tmp_path / "d2/metrics.jsonl").exists()
    assert run(tmp_path / "e", *words, f"task.path={one}", "task.grader=none") == 2
    assert "no completion would earn anything" in capsys.readouterr().err
    assert run(tmp_path / "f", *words, f"task.path={one}", "task.grader=exactly") == 2
    assert "error: grader=exactly: how is a reply graded?\n  write one of exact" in capsys.readouterr().err


def test_conversations_and_system_messages_go_into_the_chat_template(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    rows = [{"prompt": "one", "answer": "1"}, {"prompt": turns, "answer": "1"}]
    plain, talk = ChatTask(task(lines(tmp_path / "m.jsonl", *rows), system="Be brief."), tokenizer).problems()
    assert plain.prompt == "<system>Be brief.<user>one<assistant>" and plain.untemplated == "one"
    assert talk.prompt == "<system>Be brief.<user>a<assistant>b<user>c<assistant>"
    tokenizer.chat_template = "{{ raise_exception('no system messages') }}"
    with pytest.raises(DataError, match=r"problem m/0: the model's chat template refuses a .* of system, user"):
        list(ChatTask(task(lines(tmp_path / "m.jsonl", *rows), system="x"), tokenizer).problems())
