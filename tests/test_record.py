"""Records of runs: a report made from one has the numbers of the runs, and nothing of the questions and answers."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from helpers.synthetic_runs import make_demo, manifest, write_run

from carerft import cli
from carerft.errors import RunDirectoryError
from carerft.metrics.scores import score
from carerft.runs.inputs import inputs
from carerft.runs.reading import load_runs, read_lines
from carerft.sweeps.cells import cells, check_inputs
from carerft.sweeps.folders import experiment


def test_a_report_from_a_record_has_the_same_numbers_and_no_word_of_a_question(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_demo(tmp_path / "outputs" / "table1", questions=40)
    prompts = [p["prompt"] for p in lines("table1/base/evaluation/world_truth.problems.jsonl")]
    texts = [s["text"] for s in lines("table1/base/evaluation/world_truth.jsonl")]
    assert cli.main(["report", "table1", "record=kept/runs.tar.xz"]) == 0
    made = {name: (tmp_path / "outputs/table1/report" / name).read_text() for name in ("report.md", "table.csv")}
    then = scored()
    (tmp_path / "outputs").rename(tmp_path / "before")

    with tarfile.open("kept/runs.tar.xz") as archive:
        archive.extractall("outputs", filter="data")
    unpacked = "".join(path.read_text() for path in (tmp_path / "outputs").rglob("*") if path.is_file())
    assert prompts and not any(json.dumps(text)[1:-1] in unpacked for text in (*prompts, *texts) if len(text) > 2)
    assert cli.main(["report", "table1"]) == 0
    for name, content in made.items():
        assert (tmp_path / "outputs/table1/report" / name).read_text() == content, name
    page = (tmp_path / "outputs/table1/report/index.html").read_text()
    assert "No such file" not in page and prompts[0] not in page
    assert [run.troubles for run in load_runs([tmp_path / "outputs"])] == [()] * 7

    # Every metric comes out of the record as it did of the words, those of likelihoods to six digits.
    now = scored()
    assert now.keys() == then.keys() and "misconception" in now
    differ = {name for name in now if now[name] != then[name]}
    assert differ <= {"entropy", *(name for name in now if "likelihood" in name)}
    assert all(abs(now[name]["value"] - then[name]["value"]) < 1e-5 for name in differ)


def test_records_are_of_an_experiment_and_unwritable_places_are_named(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_demo(tmp_path / "outputs" / "table1", questions=4, seeds=(0,), steps=3)
    assert cli.main(["report", "outputs/table1", "record=runs.tar.xz"]) == 2
    assert "record= is for an experiment's report" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main(["report", "table1", "record=file/runs.tar.xz"]) == 2
    assert "choose another record=" in capsys.readouterr().err
    assert cli.main(["report", "table1", "record=runs.zip"]) == 2
    assert "write record=FILE.tar.xz" in capsys.readouterr().err


def scored() -> dict:
    place = "table1/regularizer=srkl/seed=1/evaluation/world_truth"
    return score(lines(f"{place}.problems.jsonl"), lines(f"{place}.jsonl"))["metrics"]


def test_a_sweep_goes_on_where_a_record_ends_unless_inputs_differ(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = cells(experiment("table1"), ["model=tiny", "algorithm=grpo", "regularizer=none", "seed=0"])
    for cell in planned:
        finished = manifest(cell.command, config=cell.record, inputs=inputs(cell.record))
        write_run(cell.directory, finished, "base" if cell.command == "evaluate" else "none", questions=40, steps=3)
    assert cli.main(["report", "table1", "record=runs.tar.xz"]) == 0
    shutil.rmtree("outputs")
    with tarfile.open("runs.tar.xz") as archive:
        archive.extractall("outputs", filter="data")
    assert [cell.status() for cell in planned] == ["done", "done"]
    check_inputs(planned)
    assert cli.main(["report", "table1", "record=again.tar.xz"]) == 0
    assert Path("again.tar.xz").read_bytes() == Path("runs.tar.xz").read_bytes()
    longer = cells(experiment("table1"), ["model=tiny", "algorithm=grpo", "regularizer=none", "seed=0", "steps=121"])
    assert [cell.status() for cell in longer] == ["done", "interrupted"]

    # A page of runs with texts and runs without counts the questions of the former alone.
    base, trained = (cell.directory for cell in planned)
    page = Path("outputs/table1/report/index.html")
    assert "Questions on which rows disagree" not in page.read_text()
    shutil.rmtree(trained)
    write_run(trained, finished, "none", questions=40, steps=3)
    assert cli.main(["report", "table1"]) == 0
    place = trained.relative_to("outputs") / "evaluation/world_truth.problems.jsonl"
    prompts = [problem["prompt"] for problem in lines(str(place))]
    assert any(prompt.splitlines()[0] in page.read_text() for prompt in prompts)

    record = base / "manifest.json"
    record.write_text(record.read_text().replace('"version": ', '"version": 1'))
    with pytest.raises(RunDirectoryError, match="questions of the built-in world: version 1"):
        check_inputs(planned)


def test_damaged_runs_are_not_recorded(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_demo(tmp_path / "outputs" / "table1", questions=4, seeds=(0,), steps=3)
    for run in Path("outputs/table1").rglob("manifest.json"):
        if "base" not in str(run):
            run.write_text(run.read_text().replace('"done"', '"failed"'))
    (tmp_path / "outputs/table1/base/evaluation/world_truth.jsonl").unlink()
    assert cli.main(["report", "table1", "record=runs.tar.xz"]) == 2
    assert "base is damaged: world_truth.jsonl: No such file" in capsys.readouterr().err
    unfinished = Path("outputs/table1/base/manifest.json")
    unfinished.write_text(unfinished.read_text().replace('"done"', '"running"'))
    assert cli.main(["report", "table1", "record=runs.tar.xz"]) == 2
    assert "no run is finished" in capsys.readouterr().err


def lines(path: str) -> list[dict]:
    return list(read_lines(Path("outputs") / path, []))
