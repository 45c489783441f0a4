"""`carerft evaluate`: accuracy, honesty and calibration of a model as it is."""

import json
import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from carerft.config.application import application, plain
from carerft.config.checks import check_evaluate
from carerft.run_directory import RunDirectory, open_run
from carerft.train import save_composition

log = logging.getLogger(__name__)


@application("evaluate")
def main(config: DictConfig) -> None:
    """Measure a model on each benchmark. A finished evaluation is shown again; an unfinished one is continued."""
    settings = plain(config)
    check_evaluate(settings)
    with open_run(Path(HydraConfig.get().runtime.output_dir), "evaluate", settings) as run:
        if run.done:
            from carerft.scores import table

            log.info("%s is done already; what it measured:", run.path)
            Console().print(table(json.loads((run.path / "evaluation.json").read_text())))
            return
        save_composition(run.path, config)
        with run.recording():
            evaluate_model(settings, run)
        log.info("done: %s\ncompare it with others: carerft report %s DIRECTORY ...", run.path, run.path)


def evaluate_model(settings: dict[str, Any], run: RunDirectory) -> None:
    """The evaluation itself, in an opened directory. settings: resolved and checked."""
    from carerft import build
    from carerft.config.schema import Model
    from carerft.evaluation import evaluate
    from carerft.model import choose_device, load_model

    # An engine has weights of its own: the device is then left to it.
    device = "cpu" if settings["rollout"]["name"] == "vllm" else settings["device"]
    model, tokenizer = load_model(Model(**settings["model"]), choose_device(device))
    with build.rollout_worker(settings, model, tokenizer) as worker:
        worker.sync(model)
        evaluation = evaluate(
            worker,
            tokenizer,
            build.benchmarks(settings),
            build.protocol(settings),
            run.path,
            build.context(settings, model),
            {"command": "evaluate", "model": settings["model"]["name"]},
            build.console(),
        )
    build.show(evaluation)


if __name__ == "__main__":
    main()
