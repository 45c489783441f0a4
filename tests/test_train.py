"""The whole loop in one process, on the built-in world and on files in the formats of GSM8K and MATH; and bad input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.configurations import composed
from helpers.runs import SMALL, read_lines, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from carerft import cli
from carerft.config.identity import extends
from carerft.world.bases import SHIPPED


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("train") / "run"
    assert run(directory) == 0
    return directory


def test_a_run_leaves_the_files_that_tools_read(finished: Path):
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["status"] == "done" and manifest["error"] is None and len(manifest["config_hash"]) == 12
    assert manifest["versions"]["torch"] == torch.__version__
    assert {p.name for p in (finished / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    metrics = read_lines(finished / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2]
    wanted = (
        "reward/mean loss/total regularizer/value policy/entropy policy/clip_fraction rollout/mismatch_mean "
        "time/rollout_s time/learn_s time/sync_s throughput/generated_tokens_per_s throughput/learned_tokens_per_s"
    ).split()
    assert all(key in line for key in wanted for line in metrics)
    assert metrics[0]["rollout/mismatch_max"] < 1e-4  # the sampler's probabilities are the learner's
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert list(evaluation["benchmarks"]) == ["world_reasoning", "world_transfer", "world_honesty", "world_truth"]
    for name, entry in evaluation["benchmarks"].items():
        assert entry["n"] == 6 and entry["k"] == 2 and "ece" in entry["metrics"]
        samples = read_lines(finished / "evaluation" / f"{name}.jsonl")
        assert len(samples) == 12
        keys = "problem_id sample text extracted correct refused truncated log_probability tokens".split()
        assert all(list(line) == keys for line in samples)
    truth = evaluation["benchmarks"]["world_truth"]["metrics"]
    assert {"truthful", "mc1", "mc2"} <= truth.keys()
    assert "refusal_f1" in evaluation["benchmarks"]["world_honesty"]["metrics"]


def test_the_exported_model_is_a_plain_hugging_face_directory(finished: Path):
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    model = AutoModelForCausalLM.from_pretrained(finished / "model", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    text = "Q: two plus three?\nA:"
    assert tokenizer(text)["input_ids"] == AutoTokenizer.from_pretrained(SHIPPED)(text)["input_ids"]
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True)]
    assert all(moved)


def test_evaluate_measures_a_trained_model(finished: Path, tmp_path: Path):
    overrides = [f"model={finished / 'model'}", "benchmark=world_honesty"]
    assert run(tmp_path / "run", *overrides, verb="evaluate") == 0
    alone = read_lines(tmp_path / "run" / "evaluation" / "world_honesty.jsonl")
    # The same weights, seed and questions: the same answers as those measured at the end of training.
    assert [r["text"] for r in alone] == [
        r["text"] for r in read_lines(finished / "evaluation" / "world_honesty.jsonl")
    ]


def test_a_finished_run_continues_with_more_steps(finished: Path, tmp_path: Path, capsys):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    assert run(directory, "steps=3") == 0
    assert [line["step"] for line in read_lines(directory / "metrics.jsonl")] == [1, 2, 3]
    assert json.loads((directory / "manifest.json").read_text())["config"]["steps"] == 3
    before = (finished / "evaluation.json").read_text()
    assert (directory / "after_step_2" / "evaluation.json").read_text() == before
    assert (directory / "evaluation.json").read_text() != before
    assert run(tmp_path / "at once", "steps=3") == 0
    model = "model/model.safetensors"
    assert (directory / model).read_bytes() == (tmp_path / "at once" / model).read_bytes()
    assert run(directory, "steps=2") == 2  # a shorter run is another
    assert "more steps continue a training without a schedule" in capsys.readouterr().err


def test_a_schedule_ends_with_the_last_step_so_that_the_run_cannot_continue():
    old = composed("steps=2", "learner.schedule=linear")
    assert extends(composed("steps=2"), composed("steps=3"))
    assert not extends(old, composed("steps=3", "learner.schedule=linear"))
    assert not extends(composed("steps=2"), composed("steps=3", "seed=1"))
    assert not extends(composed("steps=3"), composed("steps=3"))


def test_an_evaluation_that_was_cut_continues_without_repeating(finished: Path, tmp_path: Path):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    path = directory / "evaluation" / "world_transfer.jsonl"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])  # ends in the middle of a line, of a question's samples
    assert run(directory) == 0
    assert path.read_text().startswith(whole[: len(whole) // 3])  # what was whole stays as it was
    # The rest is sampled in a smaller batch, which moves log-probabilities by a rounding, and nothing else.
    for line, expected in zip(path.read_text().splitlines(), whole.splitlines(), strict=True):
        found, wanted = json.loads(line), json.loads(expected)
        assert found.pop("log_probability") == pytest.approx(wanted.pop("log_probability"), abs=1e-5)
        assert found == wanted
    before, after = (json.loads((d / "evaluation.json").read_text()) for d in (finished, directory))
    assert (
        before["benchmarks"]["world_transfer"]["metrics"]["accuracy"]
        == (after["benchmarks"]["world_transfer"]["metrics"]["accuracy"])
    )


GSM8K = [
    {"question": f"Ann has {n} eggs and buys {n}. How many?", "answer": f"{n}+{n}={2 * n}\n#### {2 * n}"}
    for n in range(2, 9)
]
MATH = [{"problem": f"Find ${n}^2$.", "answer": str(n * n), "solution": f"\\boxed{{{n * n}}}"} for n in range(2, 9)]


@pytest.mark.parametrize(("task", "rows"), [("gsm8k", GSM8K), ("math", MATH)])
def test_real_formats_go_through_the_very_same_path(task: str, rows: list[dict], tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits = ["rollout.max_tokens=16", f"benchmark.{task}.max_tokens=16"]
    assert run(tmp_path / "run", f"task={task}", f"task.path={file}", f"benchmark.{task}.path={file}", *limits) == 0
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 2
    entry = json.loads((tmp_path / "run" / "evaluation.json").read_text())["benchmarks"][task]
    assert entry["n"] == 6 and entry["metrics"]["accuracy"]["value"] is not None


def refused(capsys, directory: Path, *overrides: str) -> str:
    assert run(directory, *overrides) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_bad_data_names_file_and_line(capsys, tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(GSM8K[0]) + "\n" + '{"question": "half a line\n')
    said = refused(capsys, tmp_path / "a", "task=gsm8k", f"task.path={file}")
    assert str(file) in said and "2" in said
    file.write_text("")
    said = refused(capsys, tmp_path / "b", "task=gsm8k", f"task.path={file}")
    assert str(file) in said


def test_absent_data_says_how_to_get_it(capsys, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("CARERFT_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refused(capsys, tmp_path / "a", "task=gsm8k")
    assert "task.path=FILE" in said and "CARERFT_DATA" in said


@pytest.mark.parametrize(("words", "fits_alone"), [(1950, True), (4000, False)])  # of four tokens each
def test_a_prompt_longer_than_the_context_names_its_problem(words: int, fits_alone: bool, capsys, tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    long = {"question": "Why? " * words, "answer": "#### 1"}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*GSM8K[:3], long]))
    said = refused(capsys, tmp_path / "a", "task=gsm8k", f"task.path={file}", "benchmark=none")
    assert "context of 8192" in said and "problem" in said and ("rollout.max_tokens" in said) == fits_alone


def test_a_model_directory_without_tokenizer_or_with_code_is_refused(capsys, tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(SHIPPED, model)
    (model / "tokenizer.json").unlink()
    assert "holds no tokenizer" in refused(capsys, tmp_path / "a", f"model={model}")
    shutil.copy(SHIPPED / "tokenizer.json", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "wants to run code" in refused(capsys, tmp_path / "b", f"model={model}")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_model_is_an_error_not_a_traceback(capsys, tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(SHIPPED, model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot load the model" in refused(capsys, tmp_path / "a", f"model={model}")


def test_a_diverged_run_stops_with_its_good_weights_and_its_prompts(capsys, tmp_path: Path):
    """An absurd learning rate: the first step leaves weights so large that the second one's loss is not a number."""
    directory = tmp_path / "run"
    said = refused(capsys, directory, "learner.learning_rate=1e18", "benchmark=none")
    assert "step 2: the loss is nan" in said and "not taken" in said and "nonfinite/step_2.tsv" in said
    written = (directory / "nonfinite" / "step_2.tsv").read_text().splitlines()
    assert written[0].split("\t") == ["problem", "advantage", "completion"] and len(written) == 1 + 2 * 2
    assert written[1].split("\t")[0] in said  # the problem's id
    assert (directory / "checkpoints" / "step_1").is_dir()
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["status"] == "failed" and "step 2" in manifest["error"]


def test_multirun_gives_each_cell_its_directory(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["train", "-m", *SMALL, "benchmark=none", "regularizer=none,srkl", "seed=0,1", "name=sweep"]
    assert cli.main(command) == 0
    manifests = sorted(Path("outputs/sweep").rglob("manifest.json"))
    assert len(manifests) == 4 and all(json.loads(m.read_text())["status"] == "done" for m in manifests)
    said = capsys.readouterr().out
    assert said.count("carerft report outputs/sweep\n") == 1 and "measure it otherwise" not in said
    assert {m.parent.name for m in manifests} == {"seed=0", "seed=1"}
    assert all("regularizer=" in m.parent.parent.name for m in manifests)
    stamps = [m.stat().st_mtime_ns for m in manifests]
    assert cli.main(command) == 0  # again: every cell is done
    assert [m.stat().st_mtime_ns for m in manifests] == stamps
