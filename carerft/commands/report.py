"""`carerft report DIRECTORY ...`: tables, figures and one HTML page from run directories."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from carerft.commands.application import application
from carerft.config.checks import check_tracker
from carerft.config.composition import plain
from carerft.config.settings import TrackerSettings
from carerft.errors import ConfigError
from carerft.report.paper import paper
from carerft.sweeps.folders import experiment, experiments
from carerft.trackers import Trackers
from carerft.trackers.choice import named_tracker
from carerft.trackers.outcome import ReportOutcome
from carerft.trackers.weights_and_biases import check_online, report_description


@application("report")
def main(config: DictConfig) -> None:
    """Print the comparison, write the report, and say which page to open. An experiment's name stands for its runs."""
    settings = plain(config)
    tracker = TrackerSettings(**settings["tracker"])
    check_tracker(tracker)
    check_online(tracker)
    named = settings["runs"]
    if not named:
        raise ConfigError("no run directories were named", "for example: carerft report outputs/demo")
    about = None
    if len(named) == 1 and named[0] in experiments():
        about = named[0], paper(experiment(named[0]))
        named = [f"outputs/{named[0]}"]
    directories = [Path(place).expanduser() for place in named]
    for directory in directories:
        if not directory.is_dir():
            hint = f"carerft sweep {about[0]} makes it" if about else "name directories that runs were written to"
            raise ConfigError(f"{directory}: there is no such directory", hint)
    if settings["page"] and not about:
        raise ConfigError("page= is for an experiment's report", "name one, as in: carerft report table1 page=FILE.md")
    from carerft.report.build import build, publish
    from carerft.report.columns import METRICS
    from carerft.report.grids import print_claims
    from carerft.report.tables import print_table
    from carerft.runs.reading import load_runs

    unknown = [metric for metrics in settings["columns"].values() for metric in metrics if metric not in METRICS]
    if unknown:
        raise ConfigError(f"columns: {unknown[0]!r} is no metric", f"write some of {', '.join(METRICS)}")
    runs = load_runs(directories, settings["of_model"])
    models = sorted({name for run in runs if (name := run.model_name)})
    if about and len(models) > 1:
        raise ConfigError(f"{directories[0]} holds runs of {', '.join(models)}", f"name one, as in model={models[0]}")
    output = Path(settings["output"]) if settings["output"] else None
    with Console(stderr=True).status(f"reading {len(runs)} runs, and drawing"):
        page = build(directories, output, settings["columns"], about, settings["of_model"])
    if settings["page"]:
        publish(page.parent, Path(settings["page"]))
    print_table(runs, shown=settings["columns"])
    if (claims := page.parent / "claims.csv").exists() and about:
        print_claims(claims, Console())
    directory = page.parent
    with Trackers(
        named_tracker(tracker, directory, lambda: report_description(directory, settings["runs"]))
    ) as trackers:
        trackers.show(ReportOutcome(directory))
    print(f"open {page.resolve()}")


if __name__ == "__main__":
    main()
