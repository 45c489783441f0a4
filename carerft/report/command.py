"""`carerft report DIRECTORY ...`: tables, figures and one HTML page from run directories."""

from pathlib import Path

from omegaconf import DictConfig

from carerft.config.application import application, plain
from carerft.errors import ConfigError


@application("report")
def main(config: DictConfig) -> None:
    """Print the comparison, write the report, and say which page to open."""
    settings = plain(config)
    directories = [Path(place).expanduser() for place in settings["runs"]]
    if not directories:
        raise ConfigError("no run directories were named", "for example: carerft report outputs/demo")
    for directory in directories:
        if not directory.is_dir():
            raise ConfigError(f"{directory}: there is no such directory", "name directories that runs were written to")
    from carerft.report import build, load_runs, print_table
    from carerft.report.columns import METRICS

    unknown = [metric for metrics in settings["columns"].values() for metric in metrics if metric not in METRICS]
    if unknown:
        raise ConfigError(f"columns: {unknown[0]!r} is no metric", f"write some of {', '.join(METRICS)}")
    page = build(directories, Path(settings["output"]) if settings["output"] else None, settings["columns"])
    print_table(load_runs(directories), shown=settings["columns"])
    print(f"open {page.resolve()}")


if __name__ == "__main__":
    main()
