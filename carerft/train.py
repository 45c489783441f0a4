"""`carerft train`: from a composed configuration to a finished run directory.

Nothing heavy is imported before the configuration has been checked.
"""

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from carerft.config.application import application, plain
from carerft.config.checks import check_train
from carerft.experiment.sharing import job_directory
from carerft.run_directory import RunDirectory, open_run
from carerft.trackers.weights_and_biases import check_online

log = logging.getLogger(__name__)


@application("train")
def main(config: DictConfig) -> None:
    """Finetune, export, evaluate. A finished run is left as it is; an unfinished one is continued."""
    settings = plain(config)
    check_train(settings)
    directory = job_directory("train", settings)
    if directory is None:
        return
    with open_run(directory, "train", settings) as run:
        if run.done:
            log.info("%s is done already: nothing to do", run.path)
            return
        check_online(settings["tracker"])
        save_composition(run.path, config)
        with run.recording():
            train(settings, run)
        log.info("done: %s\ncompare runs: carerft report %s", run.path, run.path.parent)


def save_composition(directory: Path, config: DictConfig) -> None:
    """Hydra's own record of the run: what it composed and from which overrides."""
    record = directory / ".hydra"
    record.mkdir(exist_ok=True)
    hydra = HydraConfig.get()
    OmegaConf.save(config, record / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), record / "hydra.yaml")
    OmegaConf.save(hydra.overrides.task, record / "overrides.yaml")


def train(settings: dict[str, Any], run: RunDirectory) -> None:
    """The run itself, in an opened directory. settings: resolved and checked."""
    from transformers import set_seed

    from carerft import build
    from carerft.config.schema import Model
    from carerft.evaluation import evaluate
    from carerft.interruption import Interruption
    from carerft.lookahead import Lookahead
    from carerft.model import choose_device, export, load_model
    from carerft.prompts import show_prompt
    from carerft.trackers.outcome import EvaluationOutcome
    from carerft.trainer import Trainer

    set_seed(settings["seed"])
    algorithm, regularizer = build.method(settings)  # before the model: it may refuse what it is given
    policy, tokenizer = load_model(Model(**settings["model"]), choose_device(settings["learner"]["device"]))
    with build.rollout_worker(settings, policy, tokenizer) as worker:
        collector = build.collector(settings, worker, policy, tokenizer, algorithm)
        trainer = Trainer(
            learner=build.learner(settings, policy, algorithm, regularizer),
            supply=Lookahead(collector) if settings["rollout"]["lookahead"] else collector,
            tokenizer=tokenizer,
            schedule=build.schedule(settings),
            directory=run.path,
        )
        benchmarks = build.benchmarks(settings, policy, tokenizer)
        show_prompt(settings["task"]["name"], collector.problems[0], collector.prompts[0], tokenizer)
        step = trainer.resume()
        if step:
            log.info("continuing %s at step %d", run.path, step)
        with build.trackers(settings, run, step) as trackers:
            with Interruption() as interruption:
                finished = trainer.run(trackers.log, interruption)
            if not finished:
                log.warning("stopped at step %d, which is saved: the same command continues", trainer.progress.step)
                raise KeyboardInterrupt
            export(policy, tokenizer, run.path / "model", build.chat(settings, policy, tokenizer))
            if benchmarks:
                worker.sync(policy)  # an engine of its own still has the weights of the last batch
                evaluation = evaluate(
                    worker,
                    tokenizer,
                    benchmarks,
                    build.protocol(settings),
                    run.path,
                    build.context(settings, policy),
                    build.header("train", settings, policy, tokenizer),
                    build.console(),
                )
                build.show(evaluation)
                trackers.show(EvaluationOutcome(run.path))


if __name__ == "__main__":
    main()
