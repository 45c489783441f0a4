r"""Prompts: the shipped templates, examples drawn from MATH's train split, and the errors about bad files."""

import json
from pathlib import Path

import pytest
from helpers.invented_rows import LOSS, MOON, SUM, configured, document, real_files, write
from helpers.runs import run

from carerft.errors import ConfigError
from carerft.tasks import Grade, math
from carerft.tasks.files import Published, load_rows
from carerft.tasks.gsm8k import SPLITS, Gsm8kTask
from carerft.tasks.math import MathTask, fingerprint
from carerft.tasks.templates import PROMPTS, fill, load_template

SHIPPED = sorted((file.parent.name, file.stem) for file in PROMPTS.glob("*/*.yaml"))


@pytest.mark.parametrize(("dataset", "name"), SHIPPED)
def test_every_shipped_template_is_whole(dataset, name):
    template = load_template(dataset, name)
    assert template.prompt.count("{question}") == 1
    # A space at the end would be a token of its own, which no text has before a word.
    assert template.prompt == template.prompt.strip()
    assert bool(template.examples) == bool(template.example) == ("{examples}" in template.prompt)
    text = fill(template.prompt, question="1 + 1?", examples="E", options="O")
    assert "1 + 1?" in text and "{question}" not in text
    if template.until:  # a reply ends where the next question begins as this one did
        beginning = template.until.strip()
        assert template.until == f"\n{beginning}" and f"\n{beginning}" in f"\n{template.prompt}"


def test_each_dataset_has_a_zero_shot_and_a_few_shot_template():
    # Of one's own questions, no template can show any; generated ones are easy enough without.
    datasets = {dataset for dataset, _ in SHIPPED} - {"questions", "arithmetic"}
    assert datasets == {"math", "gsm8k", "selfaware", "truthfulqa"}
    assert {(dataset, name) for dataset in datasets for name in ("zero_shot", "few_shot")} <= set(SHIPPED)


def test_only_the_names_of_values_are_special_and_what_a_value_holds_is_not():
    text = "{question} {x} \\boxed{} {answer}"
    assert fill(text, question="{answer}{x}", answer="{question}") == "{answer}{x} {x} \\boxed{} {question}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt: solve this", "has no key 'prompt' with {question}"),
        ("{question}", "has no key 'prompt'"),
        ("", "has no key 'prompt'"),
        ("prompt: '{question}'\nstop: Q", "there is no key 'stop'"),
        ("prompt: '{question}'\nuntil: 3", "'until' and 'example' are texts"),
        ("prompt: [", "own.yaml: while parsing"),
        (b"prompt: '{question} \xff'", "own.yaml: 'utf-8' codec"),
    ],
)
def test_a_bad_template_of_ones_own_is_named(tmp_path, text, message):
    file = tmp_path / "own.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_template("math", str(file))
    assert message in caught.value.what and str(file) in caught.value.what and caught.value.remedy


def test_a_misspelt_prompt_is_refused_with_the_choices_before_a_model_is_loaded(tmp_path, capsys):
    overrides = ["model.path=/nowhere/at/all", "benchmark=gsm8k", "benchmark.gsm8k.prompt=fewshot"]
    assert run(tmp_path / "run", *overrides, verb="evaluate") == 2
    errors = capsys.readouterr().err
    assert (
        "prompt='fewshot' is no prompt of gsm8k" in errors
        and "few_shot, instruction, zero_shot, or a YAML file such as: prompt: " in errors
    )


# GSM8K


def test_the_eight_examples_and_then_the_question(tmp_path):
    task = Gsm8kTask("test", path=write(tmp_path / "some.jsonl", SUM, LOSS), prompt="few_shot")
    problem = task.problems()[0]
    *examples, last = problem.prompt.split("\n\n")
    assert last == f"Q: {SUM['question']}\nA:"
    assert len(examples) == 8 and all(example.startswith("Q: ") for example in examples)
    answers = [example.rpartition("The answer is ")[2] for example in examples]
    assert answers == ["6.", "5.", "39.", "8.", "9.", "29.", "33.", "8."]  # table 20 of arXiv 2201.11903


@pytest.mark.parametrize(("prompt", "next_question"), [("zero_shot", "\nQuestion: And 7?"), ("few_shot", "\n\nQ: 7?")])
def test_a_question_that_the_model_asks_itself_is_no_part_of_its_answer(tmp_path, prompt, next_question):
    task = Gsm8kTask("test", path=write(tmp_path / "some.jsonl", SUM), prompt=prompt)
    (problem,) = task.problems()
    assert task.grade([problem], [f" The answer is 1,080.{next_question}\nA: 3"]) == [Grade("1080", True)]
    maths = MathTask("test")
    problem = math.Problem("x", "?", "1080")
    assert maths.grade([problem], ["\\boxed{1080}\n\nProblem: 1+1?\nSolution: \\boxed{2}"]) == [Grade("1080", True)]


@real_files
def test_no_example_is_a_row_of_gsm8k():
    parts = load_template("gsm8k", "few_shot").prompt.split("\n\n")
    examples = {example.partition("\n")[0].removeprefix("Q: ") for example in parts}
    assert not examples & {row.text("question") for split in SPLITS.values() for row in load_rows(split)}


# MATH

ROWS = [
    {"problem": "What is $1+1$?", "solution": "It is $\\boxed{2}$.", "answer": "2"},
    {"problem": "What is $2+2$?", "solution": "It is $\\boxed{4}$.", "answer": "4"},
    {"problem": "What is $3+3$?", "solution": "It is $\\boxed{6}$.", "answer": "6"},
]


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """A template that shows the third and the first row of a train split of three."""
    monkeypatch.setenv("CARERFT_DATA", str(tmp_path))
    write(tmp_path / "m.jsonl", *ROWS)
    published = Published("m.jsonl", rows=3, sha256="")
    monkeypatch.setattr(math, "TRAIN", published)
    monkeypatch.setitem(math.SPLITS, "train", (published,))
    marks = [fingerprint(ROWS[i]["problem"]) for i in (2, 0)]
    example = "P: {question}\nS: {solution} So ${answer}$."
    template = {"prompt": "{examples}\n\nP: {question}\nS:", "example": example, "examples": marks}
    return document(tmp_path / "shown.yaml", template)  # JSON is YAML


def test_examples_are_drawn_from_the_train_split_and_left_out_of_what_is_asked(shown, tmp_path):
    (problem,) = MathTask("train", prompt=shown).problems()
    assert (problem.id, problem.answer) == ("math/train/1", "4")
    assert problem.prompt == (
        "P: What is $3+3$?\nS: It is $\\boxed{6}$. So $6$.\n\n"
        "P: What is $1+1$?\nS: It is $\\boxed{2}$. So $2$.\n\n"
        "P: What is $2+2$?\nS:"
    )
    # A file of one's own is asked with the same examples, and without them.
    own = write(tmp_path / "own.jsonl", {"problem": "What is  $1+1$?", "answer": "2"}, {"problem": "?", "answer": "0"})
    for split in ("train", "test"):
        (other,) = MathTask(split, path=own, prompt=shown).problems()
        assert other.answer == "0" and other.prompt.startswith(problem.prompt.rpartition("\n\n")[0])


def test_an_example_that_is_not_in_the_train_split(shown, tmp_path):
    absent = write(tmp_path / "absent.yaml", Path(shown).read_text().replace(fingerprint(ROWS[0]["problem"]), "0" * 16))
    with pytest.raises(ConfigError, match="example 0000000000000000 is no row of MATH's train split"):
        MathTask("train", prompt=absent).problems()


ANSWERS = ("[2,5)", "24", "16", "-\\frac{2}{3}")  # arXiv 2206.14858, appendix D


@real_files
def test_minervas_four_examples_are_those_rows_of_the_real_train_split():
    problems = MathTask("math500", prompt="few_shot").problems()
    *examples, last = problems[0].prompt.split("Problem:\n")[1:]
    endings = [f"Final Answer: The final answer is ${a}$. I hope it is correct.\n\n" for a in ANSWERS]
    assert [example[-len(ending) :] for example, ending in zip(examples, endings, strict=True)] == endings
    assert last.endswith("\n\nSolution:") and len(problems) == 500
    assert len(MathTask("train", prompt="few_shot").problems()) == 7496 - 4


# TruthfulQA with its options shown


@pytest.fixture
def options(tmp_path):
    second = {**MOON, "question": "What is its moon?"}
    return configured(
        "truthfulqa", path=document(tmp_path / "t.json", [MOON, second]), form="options", prompt="options"
    )


STONE, LAMP = "The moon of Oslan is a stone", "The moon is the lamp of Oslan"


def test_the_options_are_shown_in_both_orders(options):
    first, second = options.problems()
    assert first.prompt == (f"Q: What is the moon of Oslan?\n(A) {STONE}\n(B) {LAMP}\nAnswer with (A) or (B).\nA:")
    assert second.prompt == f"Q: What is its moon?\n(A) {LAMP}\n(B) {STONE}\nAnswer with (A) or (B).\nA:"
    assert first.choices == ((" (A)", True), (" (B)", False))
    assert second.choices == ((" (B)", True), (" (A)", False))
    assert (first.answer, first.misconceptions[0]) == (STONE, LAMP)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (" (A)", "A"),
        (" (B) The moon is the lamp of Oslan", "B"),
        ("B", "B"),
        ("**B**", "B"),
        ("A.", "A"),
        ("A\n(B)", "A"),
        ("The answer is B.", "B"),
        ("Answer: A", "A"),
        ("I think it is (B), not (A).", "B"),
        ("A lamp, I believe.", None),
        ("A's right", None),
        ("Both", None),
        ("(C)", None),
        ("", None),
        ("a\nQ: Which?\nA: (B)", "A"),
    ],
)
def test_the_letter_that_a_reply_names(options, text, letter):
    right_is_a, right_is_b = options.problems()
    if letter is None:
        expected = [Grade(None, False)] * 2
    else:
        grades = {"A": Grade(STONE, True), "B": Grade(LAMP, False)}
        swapped = {"A": Grade(LAMP, False), "B": Grade(STONE, True)}
        expected = [grades[letter], swapped[letter]]
    assert options.grade([right_is_a, right_is_b], [text, text]) == expected


@real_files
def test_the_real_options_name_each_letter_equally_often():
    problems = configured("truthfulqa", form="options", prompt="options").problems()
    assert len(problems) == 790
    assert sum(problem.choices[0] == (" (A)", True) for problem in problems) == 395


def test_evaluate_measures_the_letters(options, tmp_path):
    name = "truthfulqa_options"
    overrides = [f"benchmark={name}", f"benchmark.{name}.path={options.path}", f"benchmark.{name}.max_tokens=4"]
    assert run(tmp_path / "run", *overrides, verb="evaluate") == 0
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["prompts"] == {name: "options"}
    assert {"accuracy", "mc1", "misconception"} <= evaluation["benchmarks"][name]["metrics"].keys()
