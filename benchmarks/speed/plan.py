"""`carerft plan` against what finished runs took: estimate over measured, for each run directory given.

    python benchmarks/speed/plan.py outputs/table1/*/seed=*

- by runs: each is estimated from the newest six of the other runs given, as `carerft plan` does where runs are
  finished;
- by trial: from a small part of a run, tried out now, as it does where none is. Measure on a machine as idle, or as
  busy, as the runs had it.

Only runs of one model, on this machine. The last line says how many estimates lie within 30%.
"""

import argparse
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from carerft.planning.assumptions import assumptions, hardware
from carerft.planning.estimate import Estimator, calibrated, machine
from carerft.planning.measured import NEWEST, finished, read
from carerft.planning.rehearsal import rehearse
from carerft.planning.shapes import shape_of
from carerft.runs.directory import read_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    given = [place for place in parser.parse_args().runs if read_manifest(place)]
    stated = assumptions([])
    here = hardware("this", stated)
    path = read_manifest(given[0])["config"]["model"]["path"]
    runs = {place: read(place) for place in finished(given, here, path)}
    shape = shape_of(path, stated["models"])
    cores = max(one.cores for one in runs.values())
    used = machine(here, 1, len(runs), max(1, here.count // cores))
    trained = next(one.config for one in runs.values() if one.completion)
    trial = calibrated(shape, used, stated, [rehearse(trained, cores, stated["start_s"]["transformers"])], False)

    def ratio(estimator: Estimator, place: Path) -> float:
        return estimator.seconds(runs[place].config).total / runs[place].total

    table = Table("run", "ended", "took", "by runs", "by trial")
    by_runs, by_trial = [], []
    for place in reversed(runs):
        others = [one for other, one in runs.items() if other != place][:NEWEST]
        by_runs.append(ratio(calibrated(shape, used, stated, others), place))
        by_trial.append(ratio(trial, place))
        ended = read_manifest(place)["ended"][11:16]
        took = f"{runs[place].total:.0f} s"
        table.add_row("/".join(place.parts[-2:]), ended, took, f"{by_runs[-1]:.2f}", f"{by_trial[-1]:.2f}")
    console = Console()
    console.print(table)
    for name, ratios in {"by runs": by_runs, "by trial": by_trial}.items():
        near = sum(abs(one - 1) <= 0.3 for one in ratios)
        console.print(f"{name}: {near} of {len(ratios)} within 30%, median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
