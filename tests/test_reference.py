"""docs/reference/ is what the code says, and says something of everything."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


def test_the_pages_are_those_of_the_code(pages):
    for name, text in pages.items():
        assert (ROOT / "docs/reference" / name).read_text() == text, f"{name}: python docs/generate.py"


def test_the_errors_are_those_that_a_user_meets(pages):
    assert "`ConfigError`" in pages["errors.md"] and "FirstProcessError" not in pages["errors.md"]


def test_every_row_says_what_it_is(pages):
    empty = [line for text in pages.values() for line in text.splitlines() if re.search(r"\| +\|$|: \|$", line)]
    assert empty == []
