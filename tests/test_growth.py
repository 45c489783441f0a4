"""benchmarks/growth.py: every row still runs, on work that takes no time."""

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "growth.py"
specification = importlib.util.spec_from_file_location("growth", FILE)
assert specification and specification.loader
growth = sys.modules["growth"] = importlib.util.module_from_spec(specification)
specification.loader.exec_module(growth)


@pytest.mark.parametrize("name", growth.ROWS)
def test_every_row_runs(name: str):
    row = growth.ROWS[name]
    assert set(growth.measure(row, row.small)) == {"cpu_s", "peak_mb"}
    assert len(row.sizes) == len(row.before) and all(len(size) == len(row.small) for size in row.sizes)
