"""Rows of SelfAware's and TruthfulQA's form, about a town that does not exist, and the tasks as they are configured."""

import json
import os
from pathlib import Path

import pytest

from carerft.tasks.selfaware import SelfAwareTask
from carerft.tasks.truthfulqa import TruthfulQaTask

KNOWN = {
    "question_id": 1,
    "question": "Which river runs through Oslan?",
    "answer": ["the grey brook", "grey-brook", "gb"],
    "answerable": True,
    "source": "made_up",
}
UNKNOWABLE = {
    "question_id": 2,
    "question": "Will Oslan be a happier town in 300 years?",
    "answer": None,
    "answerable": False,
    "source": "made_up",
}
FALSE = {"The moon of Oslan is a lamp": 0, "It is a lamp": 0}
MOON = {
    "question": "What is the moon of Oslan?",
    "mc1_targets": {"The moon of Oslan is a stone": 1, **FALSE},
    "mc2_targets": {"It is a stone": 1, "The moon of Oslan is a stone": 1, **FALSE, "": 1},
    "mc0_targets": {"The moon of Oslan is a stone": 1, "The moon is the lamp of Oslan": 0},
}


def configured(name: str, **arguments):
    """The task of conf/benchmark/<name>.yaml, whose settings are the class's defaults."""
    return {"selfaware": SelfAwareTask, "truthfulqa": TruthfulQaTask}[name](**arguments)


def document(file: Path, value: object) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    return str(file)


SUM = {
    "question": "Ann has 2 pears and buys 1,078. How many?",
    "answer": "2 + 1,078 = <<2+1078=1080>>1,080\n#### 1,080",
}
LOSS = {"question": "Bob had $3 and spent $13. What is left?", "answer": "3 - 13 = -10\n#### -10"}
real_files = pytest.mark.skipif(
    not os.environ.get("CARERFT_DATA"), reason="set CARERFT_DATA to the real files' directory"
)


def write(file: Path, *rows: object) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)
