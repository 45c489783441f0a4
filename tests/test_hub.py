"""The same problems from a local file and from a repository as the hub has it, read by `datasets` itself.

The repository is a directory of this machine, in the layout and with the fields of the one that a split names; the rows
are invented ones, and where they are at hand the real ones.
"""

import os
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from helpers.invented_rows import LOSS, MOON, SUM, configured, document, real_files, write

from carerft.errors import DataError
from carerft.tasks import gsm8k, math, truthfulqa
from carerft.tasks.files import Published, load_rows, read_rows
from carerft.tasks.gsm8k import Gsm8kTask
from carerft.tasks.math import MathTask

ALGEBRA = {"problem": "Find $x$ in $x+1=3$.", "level": "Level 1", "type": "Algebra", "solution": "So $x=\\boxed{2}$."}
SHAPES = {"problem": "Sides of a square?", "level": "Level 1", "type": "Geometry", "solution": "It has $\\boxed{4}$."}


def publish(directory: Path, split: str, configs: dict[str, list[dict]]) -> str:
    """A dataset's repository: the rows of each config in a file of its own, and a card that says which."""
    card = ["---", "configs:"]
    for config, rows in configs.items():
        write(directory / config / f"{split}.jsonl", *rows)
        card += [
            f"- config_name: {config}",
            "  data_files:",
            f"  - split: {split}",
            f"    path: {config}/{split}.jsonl",
        ]
    (directory / "README.md").write_text("\n".join([*card, "---", ""]))
    return str(directory)


def by_subject(rows: list[dict]) -> dict[str, list[dict]]:
    """As EleutherAI/hendrycks_math: a config per subject, and no field for the answer."""
    names = {subject: list(group) for subject, group in groupby(rows, lambda row: row["type"])}
    return {
        subject.lower().replace(" & ", "_and_").replace(" ", "_"): [
            {key: row[key] for key in ("problem", "level", "type", "solution")} for row in group
        ]
        for subject, group in names.items()
    }


def choices(row: dict) -> dict:
    """As truthfulqa/truthful_qa, multiple_choice."""
    return {
        "question": row["question"],
        **{
            name: {"choices": list(row[name]), "labels": list(row[name].values())}
            for name in ("mc1_targets", "mc2_targets")
        },
    }


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("carerft.tasks.files._reachable", lambda url: False)  # nothing here needs the network


def from_hub(monkeypatch, published: Published, hub: str, rows: int) -> Published:
    """The split as it is published, in that repository, and no local file of it."""
    monkeypatch.delenv("CARERFT_DATA", raising=False)
    return replace(published, hub=hub, rows=rows)


def problems(task) -> list[tuple]:
    return [(p.id, p.prompt, p.answer, p.choices, p.misconceptions) for p in task.problems()]


def test_math_by_subjects(tmp_path, monkeypatch):
    rows = [ALGEBRA, SHAPES]
    local = problems(MathTask("test", path=write(tmp_path / "m.jsonl", *rows)))
    hub = publish(tmp_path / "hub", "test", by_subject(rows))
    part = replace(from_hub(monkeypatch, math.TEST, hub, 2), configs=("algebra", "geometry"))
    monkeypatch.setitem(math.SPLITS, "test", (part,))
    assert problems(MathTask("test")) == local
    assert [p[2] for p in local] == ["2", "4"]
    with pytest.raises(DataError, match=r"geometry test, row 1 is the last: 2 rows, .* 5,000"):
        load_rows(replace(part, rows=5000))
    with pytest.raises(DataError, match=r"no data for math/test.jsonl: .* could not be loaded"):
        load_rows(replace(part, configs=("algebra", "no_such_subject")))
    (first, *_), message = load_rows(part), "algebra test, row 0"
    assert first.location.endswith(message)


def test_gsm8k(tmp_path, monkeypatch):
    local = problems(Gsm8kTask("test", path=write(tmp_path / "g.jsonl", SUM, LOSS)))
    hub = publish(tmp_path / "hub", "test", {"main": [SUM, LOSS]})
    monkeypatch.setitem(gsm8k.SPLITS, "test", from_hub(monkeypatch, gsm8k.SPLITS["test"], hub, 2))
    assert problems(Gsm8kTask("test")) == local


def test_truthfulqa(tmp_path, monkeypatch):
    local = problems(configured("truthfulqa", path=document(tmp_path / "t.json", [MOON])))
    hub = publish(tmp_path / "hub", "validation", {"multiple_choice": [choices(MOON)]})
    monkeypatch.setitem(truthfulqa.FORMS, "mc", from_hub(monkeypatch, truthfulqa.MC, hub, 1))
    assert problems(configured("truthfulqa")) == local


@real_files
@pytest.mark.parametrize("split", ["train", "test", "math500", "gsm8k", "truthfulqa"])
def test_the_real_rows_are_the_same_from_both(tmp_path, monkeypatch, split):
    """Real rows in the hub's layout; that the hub's own copies hold them in this order cannot be seen from here."""
    kind, splits, name = {
        "gsm8k": (Gsm8kTask, gsm8k.SPLITS, "test"),
        "truthfulqa": (lambda _: configured("truthfulqa"), truthfulqa.FORMS, "mc"),
    }.get(split, (MathTask, math.SPLITS, split))
    parts = splits[name]
    published = parts[0] if isinstance(parts, tuple) else parts
    local = problems(kind(name))
    rows = [row.fields for row in read_rows(Path(os.environ["CARERFT_DATA"]) / published.file)]
    configs = {published.configs[0]: rows}
    if len(published.configs) > 1:
        configs = by_subject(rows)
        assert tuple(configs) == published.configs
    elif split == "truthfulqa":
        configs = {published.configs[0]: [choices(row) for row in rows]}
    hub = publish(tmp_path / "hub", published.split, configs)
    on_hub = from_hub(monkeypatch, published, hub, published.rows)
    monkeypatch.setitem(splits, name, (on_hub,) if isinstance(parts, tuple) else on_hub)
    assert problems(kind(name)) == local
