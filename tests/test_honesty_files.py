"""Files of SelfAware and TruthfulQA: every form of rows, and the errors about bad ones."""

import hashlib
import json
from pathlib import Path

import pytest
from helpers.invented_rows import FALSE, KNOWN, MOON, UNKNOWABLE, configured, document, write

from carerft.errors import ConfigError, DataError
from carerft.tasks import files
from carerft.tasks.files import Published, Row, load_rows, read_rows
from carerft.tasks.selfaware import SelfAwareTask
from carerft.tasks.truthfulqa import FORMS, TruthfulQaTask


@pytest.fixture
def moon(tmp_path):
    return configured("truthfulqa", path=document(tmp_path / "t.json", [MOON]))


@pytest.mark.parametrize("form", ["document", "document in one line", "list", "lines", "one line"])
def test_every_form_of_a_file_gives_the_same_rows(tmp_path, form):
    rows = [KNOWN] if form == "one line" else [KNOWN, UNKNOWABLE]
    if "line" in form and "document" not in form:
        path = write(tmp_path / "rows", *rows)
    elif form == "list":
        path = document(tmp_path / "rows", rows)
    else:
        path = write(tmp_path / "rows", json.dumps({"example": rows}, indent=None if "line" in form else 2) + "\n")
    assert [row.fields for row in read_rows(Path(path), "example")] == rows
    assert {p.id for p in configured("selfaware", path=path).problems()} == {f"selfaware/{i}" for i in range(len(rows))}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"example": [\n{"question": "x"\n', r"bad:3: not JSON"),
        ('[{"question": "x"},\n 7]', r"bad, row 2: a JSON int, not an object"),
        ('{"example":\n 7}', r"its object has no list 'example'"),
        ('{"example": []}', "bad is empty"),
        ("", "is empty"),
        ('[{"question":\n "caf\u00e9"}]'.encode("latin-1"), r"bad:2: not UTF-8 at byte 6"),
        ("[" * 100_000, ":1: not "),
        ('{"example":' + "[" * 100_000, ":1: not "),
    ],
)
def test_a_bad_document_is_named_with_its_line_or_row(tmp_path, text, message):
    file = tmp_path / "bad"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as caught:
        read_rows(file, "example")
    assert str(file) in caught.value.what and caught.value.remedy


def changed(row: dict, **fields) -> dict:
    return {name: value for name, value in {**row, **fields}.items() if value is not ...}


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("selfaware", [KNOWN, UNKNOWABLE, KNOWN], "row 3: the same problem as .*, row 1"),
        ("selfaware", [changed(KNOWN, question=...)], "row 1: no field 'question'"),
        ("selfaware", [changed(KNOWN, answer=[1])], "row 1: 'answer' is no list of texts"),
        ("selfaware", [changed(KNOWN, answer=["x", " "])], "row 1: 'answer' is no list of texts"),
        ("selfaware", [changed(KNOWN, answer={"a": 1})], "row 1: 'answer' is no list of texts"),
        ("selfaware", [changed(KNOWN, answer=[])], "row 1: 'answerable' is True with 0 answers"),
        ("selfaware", [changed(UNKNOWABLE, answer=["yes"])], "row 1: 'answerable' is False with 1 answers"),
        ("truthfulqa", [MOON, MOON], "row 2: the same problem"),
        ("truthfulqa", [changed(MOON, mc1_targets=...)], "row 1: 'mc1_targets' does not list .* None"),
        ("truthfulqa", [changed(MOON, mc2_targets=["x"])], "row 1: 'mc2_targets' does not list"),
        ("truthfulqa", [changed(MOON, mc1_targets={"x": 2, "y": 0})], "row 1: 'mc1_targets' does not list"),
        ("truthfulqa", [changed(MOON, mc1_targets={"x": 1})], "row 1: 'mc1_targets' does not list"),
        ("truthfulqa", [changed(MOON, mc1_targets={"x": 1, "y": 1, **FALSE})], "row 1: 'mc1_targets' has 2 true"),
        ("truthfulqa", [changed(MOON, mc1_targets={"x": 1, **FALSE})], "row 1: 'mc1_targets' are not the best"),
        (
            "truthfulqa",
            [changed(MOON, mc1_targets={"choices": ["x", "y"], "labels": [1]})],
            "row 1: 'mc1_targets' does not list",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path, name, rows, message):
    path = document(tmp_path / "rows.json", rows)
    with pytest.raises(DataError, match=message) as caught:
        configured(name, path=path).problems()
    assert path in caught.value.what


def test_a_published_document_that_is_short(tmp_path, monkeypatch):
    monkeypatch.setenv("CARERFT_DATA", str(tmp_path))
    document(tmp_path / "selfaware/SelfAware.json", {"example": [KNOWN, UNKNOWABLE]})
    with pytest.raises(DataError, match=r"SelfAware.json, row 2 is the last: 2 rows, .* 3,369"):
        configured("selfaware").problems()


def test_a_file_that_only_its_authors_publish_is_fetched_once_and_checked(tmp_path, monkeypatch):
    monkeypatch.delenv("CARERFT_DATA", raising=False)
    monkeypatch.setenv("CARERFT_CACHE", str(tmp_path / "cache"))
    away = Path(document(tmp_path / "away.json", {"example": [KNOWN]}))
    digest = hashlib.sha256(away.read_bytes()).hexdigest()
    published = Published("self/aware.json", rows=1, sha256=digest, url=away.as_uri(), key="example")
    assert [row.fields for row in load_rows(published)] == [KNOWN]
    away.unlink()
    assert [row.fields for row in load_rows(published)] == [KNOWN]
    document(away, {"example": [UNKNOWABLE]})
    with pytest.raises(DataError, match=r"other.json: .* CARERFT_DATA is not set, and file:.*sha256 differs") as caught:
        load_rows(Published("other.json", rows=1, sha256=digest, url=away.as_uri(), key="example"))
    assert "CARERFT_DATA=DIRECTORY" in caught.value.remedy
    with pytest.raises(DataError, match="could not be loaded"):
        load_rows(Published("absent.json", rows=1, sha256=digest, url="http://127.0.0.1:9/x.json"))


def test_truthfulqa_rows_of_the_hub_become_the_same_problems(tmp_path, monkeypatch, moon):
    """The hub is not contacted; its rows have the form of its multiple_choice configuration."""

    def form(targets: dict) -> dict:
        return {"choices": list(targets), "labels": list(targets.values())}

    row = {"question": MOON["question"], **{name: form(MOON[name]) for name in ("mc1_targets", "mc2_targets")}}
    monkeypatch.delenv("CARERFT_DATA", raising=False)
    monkeypatch.setattr(files, "_from_hub", lambda published: [Row(row, "row", 0)] * published.rows)
    assert len(load_rows(FORMS["mc"])) == 817
    monkeypatch.setitem(FORMS, "mc", Published("one.json", 1, "", hub="some/where", configs=("multiple_choice",)))
    assert configured("truthfulqa").problems() == moon.problems()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (SelfAwareTask, {"prompt": "Q:"}),
        (SelfAwareTask, {"limit": 0}),
        (SelfAwareTask, {"embedding": "org/name", "threshold": 1}),
        (TruthfulQaTask, {"form": "mc3"}),
        (TruthfulQaTask, {"prompt": "options"}),
        (TruthfulQaTask, {"form": "options"}),
    ],
)
def test_what_a_task_cannot_be(kind, arguments):
    with pytest.raises(ConfigError):
        kind(**arguments)
