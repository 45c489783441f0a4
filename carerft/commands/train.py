"""`carerft train`: from a composed configuration to a finished run directory.

Nothing heavy is imported before the configuration has been checked.
"""

import json
import logging
import re
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from carerft.commands.application import application, save_composition, show_uses
from carerft.config.checks import check_choice, check_train
from carerft.config.choices import knows_world
from carerft.config.composition import plain, train_settings
from carerft.config.settings import LearnerSettings, TrainSettings
from carerft.errors import RunDirectoryError
from carerft.evaluation.table import table
from carerft.metrics.names import FIRST
from carerft.runs.directory import RunDirectory, manifests, open_run
from carerft.sweeps.sharing import job_directory
from carerft.tasks.templates import check_templates
from carerft.terminal import open_console
from carerft.text import decimal
from carerft.trackers.weights_and_biases import check_online
from carerft.training import launch

if TYPE_CHECKING:
    from carerft.training.controller import Leader

TOKENS = "tokens_per_microbatch"  # in a manifest: what learner.tokens_per_microbatch=null became
log = logging.getLogger(__name__)


@application("train")
def main(config: DictConfig) -> None:
    """Finetune, export, evaluate. A finished run is not repeated; an unfinished one is continued."""
    record = plain(config)
    settings = train_settings(record)
    check_train(settings)
    check_choice(settings, HydraConfig.get().overrides.task)
    warn_of_reference(settings)
    check_templates([settings.task, *settings.benchmark.values()])
    hydra = HydraConfig.get()
    launch.check_processes(settings, hydra.mode == RunMode.MULTIRUN)
    if launch.follows():
        return follow(settings)
    directory = job_directory("train", record)
    if directory is None:
        return
    if launch.starts_processes(settings.learner):
        places = [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
        return launch.start(settings.learner, [*config_dirs(), *places, *hydra.overrides.task], directory)
    with leading(settings.learner) as leader, open_run(directory, "train", record) as run:
        if run.done:
            log.info("%s is done already: nothing to do", run.path)
            if (run.path / "evaluation.json").exists() and hydra.mode != RunMode.MULTIRUN:
                open_console().print(table(json.loads((run.path / "evaluation.json").read_text())))
            return
        check_online(settings.tracker)
        save_composition(run.path, config)
        with run.recording():
            train(settings, run, leader)
        log.info("done: %s", run.path)
        show_uses(run.path, uses(settings, run.path))


def uses(settings: TrainSettings, run: Path) -> dict[str, list[str]]:
    """What can be done with the model of a finished run, by its purpose."""
    model = run / "model"
    hydra = HydraConfig.get()
    given = [word for word in hydra.overrides.task if re.match(r"benchmark[.=]", word) and word != "benchmark=none"]
    benchmark = given or ["benchmark=world" if knows_world(settings.model.path) else "benchmark=[math500,gsm8k]"]
    name = "-".join((settings.model.name, settings.algorithm.name, settings.regularizer.name))
    return {
        "measure it otherwise": ["carerft", "evaluate", *config_dirs(), f"model={model}", *benchmark, "samples=16"],
        "serve it": ["vllm", "serve", str(model)],
        "push it to the hub": ["hf", "upload", name, str(model)],
    }


def config_dirs() -> list[str]:
    """The command line's --config-dir, if it has one: Hydra counts it as no override."""
    sources = HydraConfig.get().runtime.config_sources
    return [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]


def warn_of_reference(settings: TrainSettings) -> None:
    """Say so where a model that carerft has trained would become its own reference."""
    model = Path(settings.model.path).expanduser().resolve()
    if not model.is_dir():
        return
    run = model.parent.parent if model.parent.name == "checkpoints" else model.parent
    for _, manifest in manifests([run]):
        if settings.reference is not None or manifest.get("command") != "train":
            return
        trained = manifest["config"]
        log.warning(
            "%s was trained from %s: the penalty holds the policy near the former; near the latter: reference=%s",
            settings.model.path, trained["model"]["path"], trained.get("reference") or trained["model"]["path"],
        )  # fmt: skip


def leading(settings: LearnerSettings) -> "AbstractContextManager[Leader | None]":
    """The leader of the processes that learn together; None where there is only this one."""
    if launch.processes(settings) == 1:
        return nullcontext()
    from carerft.model.loading import choose_device
    from carerft.training import controller

    return controller.leading(choose_device(settings.device), settings.timeout_s)


def follow(settings: TrainSettings) -> None:
    """What every process but the first does."""
    from carerft import assembly
    from carerft.model.loading import choose_device
    from carerft.training import controller
    from carerft.training.learner import FirstProcessError

    with controller.process_group(choose_device(settings.learner.device), settings.learner.timeout_s) as processes:
        if not controller.started(processes):
            return
        with suppress(FirstProcessError), assembly.training(settings, processes.mesh) as own:
            controller.follow(processes, own.worker, own.learner)
            with suppress(RunDirectoryError):  # which the first process says
                own.learner.finish_saving()


def train(settings: TrainSettings, run: RunDirectory, leader: "Leader | None" = None) -> None:
    """The run itself, in an opened directory. settings: checked. leader: of several processes."""
    from carerft import assembly
    from carerft.commands.chosen import chosen
    from carerft.model.export import export
    from carerft.model.lora import export_adapter
    from carerft.report.outcome import samples_table
    from carerft.runs.reading import best_step
    from carerft.tasks.encoding import encode, show_prompt
    from carerft.training.interruption import interruption
    from carerft.training.lookahead import Lookahead
    from carerft.training.trainer import Trainer

    if leader:
        leader.start()
    taken = run.manifest.get(TOKENS) or run.manifest["config"]["learner"].get(TOKENS)
    with assembly.training(settings, leader and leader.mesh, taken) as own:
        subject = own.subject
        policy, tokenizer = subject.policy, subject.tokenizer
        collector = own.collector
        assert own.worker and collector, "the first process always has them"
        runner = {"vllm_runner": own.worker.runner} if own.worker.runner else {}
        microbatch = own.learner.settings.tokens_per_microbatch
        run.update(**runner, **{TOKENS: microbatch})
        words, problems = HydraConfig.get().overrides.task, len(collector.prompts)
        device = next(own.learner.policy.parameters()).device
        open_console().print(chosen(subject, own.worker, device, words, microbatch, problems))
        worker, learner = leader.lead(own.worker, own.learner) if leader else (own.worker, own.learner)
        collector.worker = worker
        trainer = Trainer(
            learner=learner,
            source=Lookahead(collector) if settings.rollout.lookahead else collector,
            tokenizer=tokenizer,
            settings=settings.learner,
            steps=settings.steps,
            directory=run.path,
            validate_every=settings.evaluation.every,
            keep_samples=settings.keep_samples,
        )

        def validate(step: int) -> dict[str, float]:
            metrics = subject.validate(run, worker, step)
            first = (name for name in metrics if name.rpartition("/")[2] in FIRST)
            told = (f"{name.removeprefix('validation/')} {decimal(metrics[name])}" for name in first)
            log.info("measured at step %d: %s", step, ", ".join(told))
            if settings.keep_best and best_step(run.path, settings.keep_best) == step:
                export(policy, tokenizer, run.path / "model_best", subject.chat, learner.weights())
            return metrics

        trainer.validate = validate
        (tokens,) = encode([collector.problems[0].prompt], tokenizer)
        show_prompt(settings.task.name, collector.problems[0], tokens, tokenizer)
        step = trainer.resume()
        if step:
            log.info("continuing %s after %d steps", run.path, trainer.progress.step)
        with assembly.trackers(settings, run, step) as trackers:
            trainer.on_samples = lambda step, file: trackers.table("samples", step, *samples_table(file))
            with interruption(lambda: trainer.progress.step > step) as stop_requested:
                finished = trainer.run(trackers.log, stop_requested)
            if not finished:
                log.warning("stopped at step %d, which is saved: the same command continues", trainer.progress.step)
                raise KeyboardInterrupt
            export(policy, tokenizer, run.path / "model", subject.chat, learner.weights())
            if settings.model.adapter:
                export_adapter(policy, run.path / "adapter", learner.adapter())
            if subject.benchmarks:
                subject.measure(run, worker, trackers)


if __name__ == "__main__":
    from torch.distributed.elastic.multiprocessing.errors import record  # torchrun then reports the error that ends it

    from carerft import cli
    from carerft.training.error_file import CompleteErrorFile

    sys.exit(record(cli.run, CompleteErrorFile())("train", sys.argv[1:]))
