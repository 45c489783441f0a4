"""Write tables (Markdown, CSV, LaTeX), figures (SVG, PNG) and one self-contained HTML page from run directories.

usage: carerft report DIRECTORY ... [--all] [key=value ...]
       carerft report EXPERIMENT [--all] [key=value ...]

Directories are searched for runs at any depth. The name of an experiment stands for the directory of its runs.

examples:
  carerft report outputs/demo
  carerft report outputs/train outputs/evaluate output=comparison
  carerft report outputs/evaluate columns.truthfulqa=[mc1,mc2]
  carerft report table1 model=tiny page=experiments/table1/miniature.md record=table1.tar.xz
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from carerft.commands.arguments import argument, read, refuse
from carerft.config.checks import check_tracker
from carerft.config.settings import TrackerSettings
from carerft.errors import ConfigError
from carerft.metrics.names import METRICS
from carerft.report.outcome import ReportOutcome
from carerft.report.paper import read_paper
from carerft.sweeps.folders import experiment, experiments
from carerft.terminal import open_console
from carerft.trackers import Trackers, named_tracker
from carerft.trackers.weights_and_biases import check_online, report_description

# The metrics by which the CARE-RFT paper describes its base model on these benchmarks.
COLUMNS = {
    "selfaware": ["refusal_f1"],
    "truthfulqa": ["mc2"],
    "truthfulqa_binary": ["mc1"],
    "truthfulqa_options": ["accuracy"],
}


@dataclass
class Report:
    """The keys of `carerft report`."""

    runs: list[str] = argument("the directories, as a list", [])
    model: str | None = argument("read only runs of the model of this name", None)
    output: str | None = argument("directory to write to; null: report/ in the directory that holds all runs", None)
    page: str | None = argument("of an experiment: also write report.md to this file, and its figures beside it", None)
    record: str | None = argument(
        "of an experiment: also write its results to FILE.tar.xz, without any text of questions and answers",
        None,
    )
    all: bool = argument("print every metric, not the five that matter most", False)
    columns: dict[str, list[str]] = argument("metrics of benchmark NAME that the main table shows", COLUMNS)
    tracker: TrackerSettings = argument("where table and figures are shown as well", TrackerSettings())


def main() -> None:
    """Print the comparison, write the report, and say which page to open.

    Raises ConfigError: a directory that does not exist, an unknown metric, runs of two models in one experiment.
    """
    settings, words = read(Report, sys.argv[1:], __doc__)
    refuse(settings, [word for word in words if re.match(r"[\w.]+=", word) and not Path(word).exists()])
    check_tracker(settings.tracker)
    check_online(settings.tracker)
    names = [*settings.runs, *words]
    if not names:
        raise ConfigError("no run directories were named", "for example: carerft report outputs/demo")
    name = names[0] if len(names) == 1 and names[0] in experiments() else None
    directories = [Path("outputs") / name] if name else [Path(text).expanduser() for text in names]
    for directory in directories:
        if not directory.is_dir():
            remedy = f"carerft sweep {name} writes its runs there" if name else "name directories that hold runs"
            raise ConfigError(f"{directory}: there is no such directory", remedy)
    for key in ("page", "record"):
        if getattr(settings, key) and not name:
            raise ConfigError(
                f"{key}= is for an experiment's report", f"name one, as in: carerft report table1 {key}=..."
            )
    record = Path(settings.record).expanduser() if settings.record else None
    if record and (not record.name.endswith(".tar.xz") or record.is_dir()):
        raise ConfigError(f"record={record} names no file of this kind", "write record=FILE.tar.xz")
    from carerft.report.build import build, publish
    from carerft.report.record import write_record
    from carerft.report.tables import print_claims, print_table
    from carerft.runs.reading import load_runs

    unknown = [metric for metrics in settings.columns.values() for metric in metrics if metric not in METRICS]
    if unknown:
        raise ConfigError(f"columns: there is no metric {unknown[0]!r}", f"write some of {', '.join(METRICS)}")
    runs = load_runs(directories, settings.model)
    models = sorted({run.model_name for run in runs if run.model_name})
    if name and len(models) > 1:
        raise ConfigError(f"{directories[0]} holds runs of {', '.join(models)}", f"name one, as in model={models[0]}")
    output = Path(settings.output) if settings.output else None
    about = (name, read_paper(experiment(name))) if name else None
    if record and name:
        print(f"{record}: the results of {write_record(runs, name, record)} runs, without texts")
    with open_console(stderr=True).status(f"reading {len(runs)} runs, and drawing"):
        page = build(directories, output, settings.columns, about, runs)
    written = page.parent
    if settings.page:
        publish(written, Path(settings.page))
    print_table(runs, shown=settings.columns, everything=settings.all)
    if name and (written / "claims.csv").exists():
        print_claims(written / "claims.csv", open_console())
    with Trackers(named_tracker(settings.tracker, written, lambda: report_description(written, names))) as trackers:
        trackers.show(ReportOutcome(written))
    print(f"open {page.resolve()}")
