"""Records of runs: a report made from one has the numbers of the runs, and nothing of the questions and answers."""

import json
import tarfile
from pathlib import Path

from helpers.synthetic_runs import make_demo

from carerft import cli
from carerft.metrics.scores import score
from carerft.runs.reading import load_runs, read_lines


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


def scored() -> dict:
    place = "table1/regularizer=srkl/seed=1/evaluation/world_truth"
    return score(lines(f"{place}.problems.jsonl"), lines(f"{place}.jsonl"))["metrics"]


def lines(path: str) -> list[dict]:
    return list(read_lines(Path("outputs") / path, []))
