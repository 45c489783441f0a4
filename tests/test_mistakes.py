"""The first mistakes of a command line: one error, which says what to write, and nothing of Hydra's around it."""

from pathlib import Path

import pytest
from helpers.configurations import composed
from helpers.runs import SMALL

from carerft import cli
from carerft.world.bases import SHIPPED

FILE = "task=questions task.path=FILE task.question=COLUMN task.answer=COLUMN"
HYDRAS = "Error executing job with overrides"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train algorithm.grop_size=4", "did you mean algorithm.group_size?"),
        ("train regularizer=skrl", "there is no such regularizer\n  did you mean srkl?"),
        ("train regularizer=kl", "did you mean rkl?"),
        ("train algorithm=ppo", "did you mean grpo?"),
        ("train modle=tiny", "did you mean model"),
        ("train model=qwen2.5-3B", "did you mean qwen2.5-3b?"),
        ("train model=mymodel", "model=mymodel: there is no such model\n  choices: "),
        ("train model=mymodel", "\n  a directory: model=./DIRECTORY; of the hub: model=ORGANISATION/NAME"),
        ("train task=mmlu", FILE),
        ("train benchmark=mmlu", "benchmark=questions benchmark.questions.path=FILE"),
        (
            "train steps=ten",
            "error: steps=ten: this is not a whole number\n  write a whole number, such as steps=100\n",
        ),
        ("train learner.learning_rate=small", "this is not a number\n  write a number\n"),
        ("train learner.compile=maybe", "this is not true or false\n  write true or false, such as"),
        ("train reward.functions=mine.py:f", "this is no list\n  write reward.functions=[mine.py:f]\n"),
        (
            "train reward=mine.py",
            "there is no such reward\n  choices: calibrated, correctness, ternary\n  a function of your own: reward=",
        ),
        ("evaluate samples.every=10", "there is no key 'samples.every'\n  it is of `carerft train`"),
        ("train beta=0.1", "did you mean regularizer.beta?"),
        ("train rollout.prompts=4", "did you mean rollout.prompts_per_batch?"),
        ("train lr=1e-5", "write learner.learning_rate=...; "),
        ("train output_dir=here", "write hydra.run.dir=...; "),
        ("train max_new_tokens=9", "write rollout.max_tokens=...; "),
        ("evaluate max_new_tokens=9 benchmark=math500", "write benchmark.math500.max_tokens=...; "),
        ("evaluate batch_size=9", "write rollout.batch_size=...; "),
        ("evaluate lr=1e-5", "there is no key 'lr'\n  `carerft evaluate --cfg job` lists every key"),
        ("train task=world task.path=mine.csv", f"task=world has none\n  questions of your own: {FILE}"),
        ("train data.path=mine.csv", FILE),
        ("train benchmark.mmlu.path=mine.csv", "the benchmarks are world_reasoning, "),
        ("evaluate task.path=mine.csv", "benchmark=questions benchmark.questions.path=FILE"),
        ("train regularizer=rkl regularizer.alpha=0.5", "there is no key 'regularizer.alpha'"),
        ("train bogus", "missing EQUAL"),
        ("train -m seed=0,1 --cfg job", "write --cfg without -m"),
        ("trian", "did you mean train?"),
        ("report /nowhere/at/all", "there is no such directory"),
    ],
)
def test_misspelt_requests_say_what_to_write(words: str, expected: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(words.split()) == 2
    assert expected in capsys.readouterr().err


def test_questions_of_ones_own_without_a_benchmark(capsys: pytest.CaptureFixture[str]):
    Path("mine.csv").write_text("question,answer\nWhat is 1 + 1?,2\n")
    words = ["model=tiny", "task=questions", "task.path=mine.csv", "task.grader=number"]
    assert cli.main(["train", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: benchmark=questions has no file") and "or benchmark=none" in said


def test_a_directory_of_the_working_directory_is_a_model():
    Path("mymodel").symlink_to(SHIPPED)
    Path("tiny").mkdir()
    assert cli.expand_model(["model=mymodel", "seed=1"]) == ["model=path", 'model.path="mymodel"', "seed=1"]
    assert cli.expand_model(["model=tiny"]) == ["model=tiny"]
    model = composed(*cli.expand_model(["model=mymodel"]))["model"]
    assert (model["name"], model["path"]) == ("mymodel", "mymodel")


def test_a_path_alone_leaves_nothing_of_the_tiny_models_settings():
    assert cli.expand_model(["model.path=a"]) == ["model=path", "model.path=a"]
    assert cli.expand_model(["experiment=demo", "model.path=a"]) == ["experiment=demo", "model.path=a"]
    model = composed(*cli.expand_model(["model.path=org/own"]))["model"]
    assert (model["name"], model["learning_rate"]) == ("own", 1e-6)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_an_error_of_a_run_is_that_error_alone(command: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    assert cli.main([command, "model=tiny", "seed=-1"]) == 2
    assert capsys.readouterr().err.startswith("error: seed=-1: ")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert cli.main([command, "model=tiny", "seed=-1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{HYDRAS}: ['model=tiny', 'seed=-1']\nerror: seed=-1: ")


def test_a_multirun_goes_on_and_names_each_job_that_fails(capsys: pytest.CaptureFixture[str]):
    words = ["-m", *SMALL, "benchmark=none", "steps=0", "learner.updates_per_batch=3,2,8"]
    assert cli.main(["train", *words]) == 2
    assert len(list(Path("outputs").glob("*/*updates_per_batch=2*/seed=0/manifest.json"))) == 1
    for number in (3, 8):
        (log,) = (file.read_text() for file in Path("outputs").glob(f"*/*updates_per_batch={number}*/seed=0/train.log"))
        assert (
            f" learner.updates_per_batch={number}\n" in log
            and f"make rollout.prompts_per_batch a multiple of {number}" in log
        )
    said = capsys.readouterr().err
    assert HYDRAS in said and "error: rollout.prompts_per_batch=4 cannot be shared out equally over" in said


def test_a_prompt_of_each_benchmark_is_shown_once():
    words = ["steps=2", "evaluation.every=1", "benchmark=world_truth"]
    assert cli.main(["train", *SMALL, *words]) == 0
    (log,) = Path("outputs").glob("train/*/train.log")
    assert log.read_text().count("world_truth, prompt of problem ") == 1
