"""Report files: what is written, from complete, partial, broken and hostile run directories."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.synthetic_runs import make_demo, manifest, write_json, write_lines, write_run, write_training

from carerft.errors import DataError, RunDirectoryError
from carerft.report.build import build
from carerft.report.columns import main_table
from carerft.report.figures import drawings
from carerft.report.figures.points import tradeoff
from carerft.report.figures.reliability import pooled_reliability
from carerft.report.figures.style import arrange, make_looks, styled, svg, without_legend
from carerft.report.rows import make_rows, quantities
from carerft.runs.reading import load_runs

OUTPUTS = ("index.html", "table.md", "table.csv", "table.tex")


class Page(HTMLParser):
    """What a browser would make of a page: elements with attributes, and text by the element that holds it."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open = ["html"]
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self) -> str:
        return " ".join(" ".join(text for tag, text in self.texts if tag not in ("style", "script")).split())


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return make_demo(tmp_path_factory.mktemp("runs"), questions=40)


@pytest.fixture(scope="module")
def page(demo, tmp_path_factory) -> Path:
    return build([demo], tmp_path_factory.mktemp("out"))


def test_the_table_holds_the_mean_over_seeds(demo, page):
    values = []
    for seed in (0, 1):
        text = (demo / "regularizer=rkl" / f"seed={seed}" / "evaluation.json").read_text()
        values.append(json.loads(text)["benchmarks"]["world_honesty"]["metrics"]["refusal_f1"]["value"])
    with open(page.parent / "table.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["row"] == "RKL beta=0.04"]
    row = next(row for row in rows if (row["benchmark"], row["metric"]) == ("world_honesty", "refusal_f1"))
    assert float(row["value"]) == pytest.approx(sum(values) / 2)
    assert [float(value) for value in row["per_seed"].split()] == values
    assert (row["seeds"], row["questions"], row["k"]) == ("2", "40", "8")
    assert float(row["low"]) < min(values) < max(values) < float(row["high"])
    shown = f"{sum(values) / 2:.3f}"
    line = next(line for line in (page.parent / "table.md").read_text().splitlines() if line.startswith("| RKL"))
    assert shown in line and line.split("|")[2].strip() == "2"
    assert shown in page.read_text(encoding="utf-8")


# Files


def test_the_page_is_self_contained_and_its_figures_are_well_formed(page):
    html = page.read_text(encoding="utf-8")
    assert len(html.encode()) < 3_000_000
    parsed = Page(html)
    references = [
        value
        for _, attributes in parsed.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action")
    ]
    assert references and all(value.startswith("#") or value == "data:," for value in references)
    assert not re.search(r"url\((?!#)|@import", html)
    ids = Counter(attributes["id"] for _, attributes in parsed.elements if "id" in attributes)
    assert max(ids.values()) == 1
    assert all(value[1:] in ids for value in references if value.startswith("#"))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    assert all(a.get("aria-label") or a.get("aria-hidden") for tag, a in parsed.elements if tag == "svg")
    assert sum(tag == "caption" for tag, _ in parsed.elements) == sum(tag == "table" for tag, _ in parsed.elements)
    for path in (page.parent / "figures").glob("*.svg"):
        ElementTree.parse(path)
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    names = {path.stem for path in (page.parent / "figures").glob("*.svg")}
    assert {"tradeoff-world-honesty-refusal-f1", "reliability-world-truth", "curve-reward-mean"} <= names
    assert {"curve-policy-kl-to-reference", "curve-policy-entropy"} <= names


def test_a_figure_of_many_panels_is_written_as_svg_alone(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(drawings, "MOST_PANELS", 3)
    figures = build([demo], tmp_path).parent / "figures"
    assert (figures / "reliability-world-truth.svg").exists() and not (figures / "reliability-world-truth.png").exists()
    assert (figures / "curve-reward-mean.png").exists()


def test_the_page_says_what_it_was_made_from(page):
    text = Page(page.read_text(encoding="utf-8")).text()
    assert all(label in text for label in ("base model", "no penalty", "RKL β=0.04", "SRKL α=0.8 β=0.04"))
    for word in ("regularizer=srkl/seed=1", "0123456789+dirty", "torch 2.13.0", "1 min 37 s", "cores 2"):
        assert word in text
    # Half of 40 questions have no answer: refusing everything scores 2p / (1 + p) at p = 1/2.
    assert "Refusing always would score 0.667 on Honesty" in text
    assert "partial report" not in text


def test_no_ece_stands_on_the_page_without_what_it_counts(page):
    html = page.read_text(encoding="utf-8")
    text = (
        Page(html).text() + " ".join(re.findall(r'data-label="([^"]*)"', html)) + (page.parent / "table.md").read_text()
    )
    named = re.findall(r"ECE(.{24})", text)
    assert len(named) > 20 and all(re.match(" of (votes|likelihood|stated)", words) for words in named)


def test_the_head_of_the_page_has_the_numbers_that_matter(demo, page):
    """Of the trained rows the range, of their base model the number, by the table of all values."""
    with open(page.parent / "table.csv", newline="") as file:
        values = {(row["row"], row["benchmark"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    text = Page(page.read_text(encoding="utf-8")).text()
    trained = [
        values[row, "world_honesty", "refusal_f1"]
        for row in ("no penalty", "RKL beta=0.04", "SRKL alpha=0.8 beta=0.04")
    ]
    base = values["base model", "world_honesty", "refusal_f1"]
    said = f"Honesty: refusal F1 ↑ {min(trained):.3f} to {max(trained):.3f} base model {base:.3f}; "
    assert said in text[: text.index("Samples per question")]


def test_every_cell_of_a_table_says_its_column_where_a_row_becomes_a_card(page):
    cells = [attributes for tag, attributes in Page(page.read_text(encoding="utf-8")).elements if tag == "td"]
    assert len(cells) > 100 and all(attributes.get("data-label") for attributes in cells)


@pytest.mark.parametrize("count", [6, 12, 40])
def test_a_legend_is_no_longer_than_its_figure_and_the_page_has_it_once(count: int, demo, tmp_path):
    base = json.loads((demo / "regularizer=srkl" / "seed=0" / "manifest.json").read_text())
    for number in range(count):
        directory = tmp_path / str(number)
        shutil.copytree(demo / "regularizer=srkl" / "seed=0", directory)
        base["config"]["regularizer"]["beta"] = 0.01 * (number + 1)
        write_json(directory / "manifest.json", base)
    rows = make_rows(load_runs([tmp_path]))
    x, y, *_ = main_table(rows).columns
    with styled():
        figure = tradeoff(rows, x, [y], make_looks(rows))
        arrange(figure)
        text = svg(figure)
        plot = figure.axes[0].get_window_extent()
        assert len(figure.legends) == (count <= 12) and all(
            legend.get_window_extent().height < plot.height for legend in figure.legends
        )
        assert plot.y0 > 0 and plot.height > 0.5 * figure.bbox.height
    assert {str(number) for number in range(1, count + 1)} <= {text.get_text() for text in figure.axes[0].texts}
    page = without_legend(text, figure)
    ElementTree.fromstring(page)
    assert "β=0.01<" not in page and (count > 12 or "β=0.01<" in text)


def test_panels_stand_side_by_side_and_a_row_without_a_metric_is_in_the_others_alone(demo):
    rows = make_rows(load_runs([demo]))
    x, y, z, *_ = main_table(rows).columns
    missing, *others = [row for row in rows if row.family != "base"]
    del missing.scores[z.quantity]
    with styled():
        figure = tradeoff(rows, x, [y, z], make_looks(rows))
        arrange(figure)
    left, right = figure.axes
    numbers = [{text.get_text() for text in axes.texts if text.get_text().isdigit()} for axes in (left, right)]
    assert numbers[0] - numbers[1] == {str(rows.index(missing) + 1)} and len(numbers[1]) == len(others) + 1
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(rows)


def test_the_same_runs_give_the_same_bytes_and_leave_matplotlib_alone(demo, page, tmp_path):
    script = (
        "import sys, matplotlib; from pathlib import Path; from carerft.report.build import build\n"
        "settings = lambda: {k: v for k, v in matplotlib.rcParams.copy().items() if k != 'backend'}\n"
        "before = settings()\n"
        "build([Path(d) for d in sys.argv[2:]], Path(sys.argv[1]))\n"
        "assert settings() == before and 'matplotlib.pyplot' not in sys.modules\n"
    )
    directories = [demo / "regularizer=srkl", demo / "base", demo, demo / "regularizer=rkl"]  # any order, overlapping
    # Another process: another hash seed, and a user with settings of their own.
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nlines.linewidth: 9\nsvg.fonttype: path\n")
    environment = os.environ | {"PYTHONHASHSEED": "123", "MATPLOTLIBRC": str(tmp_path), "TZ": "Asia/Kolkata"}
    arguments = [sys.executable, "-c", script, str(tmp_path / "out"), *map(str, directories)]
    subprocess.run(arguments, check=True, env=environment, cwd=Path(__file__).parent.parent)
    before = {path.relative_to(page.parent): path.read_bytes() for path in page.parent.rglob("*") if path.is_file()}
    after = {
        path.relative_to(tmp_path / "out"): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert set(map(str, before)) > set(OUTPUTS)
    assert before == after


# Runs that are missing, unfinished or broken


def test_no_runs_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"no runs .*\n.*carerft train"):
        build([tmp_path], tmp_path / "out")
    with pytest.raises(DataError, match="not a directory"):
        build([tmp_path / "absent"], tmp_path / "out")
    with pytest.raises(DataError, match="no directory"):
        build([], tmp_path / "out")


def test_an_unwritable_output_is_an_error_that_names_it(demo, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunDirectoryError, match=r"file.*\n.*output="):
        build([demo / "base"], tmp_path / "file" / "report")


def test_an_incomplete_sweep_gives_an_honest_partial_report(tmp_path):
    make_demo(tmp_path, questions=6, seeds=(0, 1), steps=5)
    seed = "regularizer={}/seed={}"
    failed = manifest("train", "rkl", 1, status="failed", error="OutOfMemoryError: <b>no</b> memory")
    write_json(tmp_path / seed.format("rkl", 1) / "manifest.json", failed)  # with an evaluation of an earlier time
    running = tmp_path / seed.format("none", 1)
    write_json(running / "manifest.json", manifest("train", "none", 1, status="running", ended=None))
    (running / "evaluation.json").unlink()
    with open(running / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "reward/mean": 0.')
    (tmp_path / seed.format("srkl", 0) / "evaluation.json").unlink()
    for name in (0, 1):
        (tmp_path / seed.format("srkl", name) / "metrics.jsonl").write_bytes(
            b"\xff\xfe nonsense\n[1, 2]\n" + b"[" * 5000
        )
    (tmp_path / "base" / "evaluation" / "world_truth.jsonl").unlink()
    (tmp_path / "base" / "evaluation" / "world_honesty.problems.jsonl").write_text("{not json\n")
    for name, content in {"empty": "", "list": "[]", "other": '{"name": "an app"}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(content)
    page = build([tmp_path])
    assert page == tmp_path / "report" / "index.html"
    text = Page(page.read_text(encoding="utf-8")).text()
    assert "A partial report. 6 of 10 runs" in text
    assert "OutOfMemoryError: <b>no</b> memory" in text  # as text, not as an element
    for word in (
        "regularizer=none/seed=1/metrics.jsonl: its last line is incomplete",
        "regularizer=srkl/seed=0/metrics.jsonl: 3 of 3 lines are unreadable",
        "base/evaluation/world_truth.jsonl: No such file",
        "empty/manifest.json is not readable JSON",
        "other/manifest.json holds no configuration",
        "no evaluation yet",
        "still running, or killed",
    ):
        assert word in text, word
    rows = {
        line.split("|")[1].strip(): line.split("|")[2].strip()
        for line in (page.parent / "table.md").read_text().splitlines()
        if line.startswith("|")
    }
    assert rows["RKL beta=0.04"] == rows["no penalty"] == rows["SRKL alpha=0.8 beta=0.04"] == "1 of 2"


def test_a_single_unfinished_run_can_be_reported_on(tmp_path):
    write_json(tmp_path / "manifest.json", manifest("train", "srkl", status="running"))
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "reward/mean": 0.5, "policy/entropy": None}])
    text = Page(build([tmp_path]).read_text(encoding="utf-8")).text()
    assert "No evaluation is finished yet" in text and "SRKL α=0.8 β=0.04" in text


def test_odd_values_in_an_evaluation_are_left_out(tmp_path):
    write_training(tmp_path, "run")
    path = tmp_path / "run" / "evaluation.json"
    content = json.loads(path.read_text())
    metrics = content["benchmarks"]["world_reasoning"]["metrics"]
    metrics |= {
        "auroc": {"value": None, "low": None, "high": None},
        "brier": None,
        "majority": "high",
        "ece": {"value": 1e400},
    }
    content["benchmarks"]["world_reasoning"]["reliability"] = {
        "edges": [0, 1],
        "count": [1, 2],
        "confidence": [],
        "accuracy": [],
    }
    content["benchmarks"] |= {
        "broken": 3,
        "x" * 500 + "/../<i>": {"n": "?", "k": None, "metrics": {"accuracy": {"value": 0.5}}},
    }
    path.write_text(json.dumps(content | {"bootstrap": 3}))
    record = json.loads((tmp_path / "run" / "manifest.json").read_text())
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(record | {"seed": "a"}))
    (tmp_path / "run" / "evaluation" / "step_x").mkdir()
    (tmp_path / "run" / "evaluation" / "step_x" / "evaluation.json").write_text("{}")
    rows = make_rows(load_runs([tmp_path]))
    assert not {("world_reasoning", name) for name in ("auroc", "brier", "majority", "ece")} & set(quantities(rows))
    assert pooled_reliability(rows[0], "world_reasoning") is None
    assert "evaluation.json: broken holds no metrics" in Page(build([tmp_path]).read_text(encoding="utf-8")).text()


# Hostile text

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "</style></script></svg></details><script>alert(3)</script>",
    "{{7*7}}{% raw %}{{ ''.__class__ }}",
    "]]><!-- --> &lt;b&gt; \" ' ` onload=alert(4)",
    "\u202egnp.exe\u2066 \u200b\ufeff\x00\x07\x1b[31m\x85",
    "\ud800 lone surrogate \udfff",
    "\n\n  two lines\n\tand a tab",
]


def test_hostile_text_is_shown_and_never_obeyed(page, tmp_path):
    make_demo(tmp_path / "runs", questions=4, seeds=(0,))  # so few that every question is shown
    for path in (tmp_path / "runs").rglob("world_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            long = "truth-0000" in row["problem_id"] and row.get("sample", 0) == 0
            text = " ".join(HOSTILE) + "A" * (1_000_000 if long else 0)
            asked = {"prompt": text, "answer": text, "misconceptions": [text]}
            row |= asked if "problems" in path.name else {"text": text}
            if row.get("extracted") is not None:
                row["extracted"] = HOSTILE[row["sample"] % 2] + row["extracted"]
        write_lines(path, rows)
    record = manifest("train", "rkl", 0, status="failed", error=HOSTILE[0] + HOSTILE[4], git=HOSTILE[1])
    record["config"]["regularizer"]["name"] = "<b onclick=alert(5)>&$x_{1}$"
    record["versions"] = {HOSTILE[0]: HOSTILE[1]}
    write_run(tmp_path / "runs" / "hostile", record, "rkl", questions=4)
    html = build([tmp_path / "runs"]).read_text(encoding="utf-8")
    clean = Page(page.read_text(encoding="utf-8"))
    parsed = Page(html)
    assert len(html) < 1_500_000
    assert [text for tag, text in parsed.texts if tag == "script"] == [
        text for tag, text in clean.texts if tag == "script"
    ]
    assert sum(tag == "script" for tag, _ in parsed.elements) == 1
    assert {tag for tag, _ in parsed.elements} <= {tag for tag, _ in clean.elements} | {"aside", "strong"}
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)
    assert not re.search("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]", html)
    text = parsed.text()
    for shown in ("<script>alert(1)</script>", "{{7*7}}", "]]><!-- --> &lt;b&gt;", "⟨U+202E⟩gnp.exe", "⟨U+D800⟩ lone"):
        assert shown in text
    assert "49" not in re.findall(r"(?<![\d.])49(?!\d)", text)
    for path in (tmp_path / "runs" / "report" / "figures").glob("*.svg"):
        ElementTree.parse(path)
