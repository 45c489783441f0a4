"""`carerft evaluate`: accuracy, honesty and calibration of a model as it is."""

import json
import logging
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from carerft.commands.application import application, save_composition
from carerft.config.checks import check_evaluate
from carerft.config.composition import plain
from carerft.runs.directory import RunDirectory, open_run
from carerft.sweeps.sharing import job_directory
from carerft.trackers.weights_and_biases import check_online

log = logging.getLogger(__name__)


@application("evaluate")
def main(config: DictConfig) -> None:
    """Measure a model on each benchmark. A finished evaluation is shown again; an unfinished one is continued."""
    settings = plain(config)
    check_evaluate(settings)
    directory = job_directory("evaluate", settings)
    if directory is None:
        return
    with open_run(directory, "evaluate", settings) as run:
        if run.done:
            from carerft.evaluation.table import table

            log.info("%s is done already; what it measured:", run.path)
            Console().print(table(json.loads((run.path / "evaluation.json").read_text())))
            return
        check_online(settings["tracker"])
        save_composition(run.path, config)
        with run.recording():
            evaluate_model(settings, run)
        log.info("done: %s\ncompare it with others: carerft report %s DIRECTORY ...", run.path, run.path)


def evaluate_model(settings: dict[str, Any], run: RunDirectory) -> None:
    """The evaluation itself, in an opened directory. settings: resolved and checked."""
    from carerft import assembly
    from carerft.config.settings import Model
    from carerft.model.loading import choose_device, load_model

    # An engine has weights of its own: the device is then left to it.
    device = "cpu" if settings["rollout"]["name"] == "vllm" else settings["device"]
    model, tokenizer = load_model(Model(**settings["model"]), choose_device(device))
    with assembly.rollout_worker(settings, model, tokenizer) as worker, assembly.trackers(settings, run) as trackers:
        benchmarks = assembly.benchmarks(settings, model, tokenizer)
        assembly.measure(settings, run, worker, model, tokenizer, benchmarks, trackers)


if __name__ == "__main__":
    main()
