"""`carerft plan` against finished trainings: the estimated over the measured seconds of each run directory.

    python benchmarks/speed/plan.py outputs/table1/*/seed=*

Each run is estimated from the newest six of the other runs. All must be runs of one model on this machine. The last
line says how many estimates lie within 30% of the measurement.
"""

import argparse
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from carerft.config.composition import train_settings
from carerft.planning.assumptions import hardware, load
from carerft.planning.job import job
from carerft.planning.seconds import correction, newest, seconds
from carerft.planning.shapes import shape_of
from carerft.runs.directory import read_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    manifests = {run.resolve(): manifest for run in parser.parse_args().runs if (manifest := read_manifest(run))}
    assumptions = load()
    here, path = hardware("this", assumptions), next(iter(manifests.values()))["config"]["model"]["path"]
    shape = shape_of(path, assumptions.models)
    table, ratios = Table("run", "ended", "took", "estimated / measured"), []
    for run in newest(manifests, here, path, most=len(manifests)):
        manifest = manifests[run]
        device = here.device.times(manifest["hardware"]["threads"])
        factors = correction(newest(set(manifests) - {run}, here, path), shape, here, assumptions)
        wanted = job(train_settings(manifest["config"]), assumptions)
        estimate = seconds(wanted, shape, device, assumptions).corrected(factors)
        ratios.append(estimate.total / manifest["seconds"])
        took = f"{manifest['seconds']:.0f} s"
        table.add_row("/".join(run.parts[-2:]), manifest["ended"][11:16], took, f"{ratios[-1]:.2f}")
    console = Console()
    console.print(table)
    near = sum(abs(ratio - 1) <= 0.3 for ratio in ratios)
    console.print(f"{near} of {len(ratios)} within 30%, median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
