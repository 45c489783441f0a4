"""`carerft evaluate`: accuracy, honesty and calibration of a model, without training it."""

import json
import logging

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from carerft.commands.application import application, save_composition, show_uses
from carerft.config.checks import check_choice, check_evaluate, check_words
from carerft.config.composition import evaluate_settings, plain
from carerft.config.settings import EvaluateSettings, OpenaiSettings, RecordedSettings, VllmSettings
from carerft.evaluation.answerer import with_answerer
from carerft.evaluation.table import table
from carerft.runs.directory import RunDirectory, open_run
from carerft.sweeps.sharing import job_directory
from carerft.tasks.templates import check_templates
from carerft.terminal import open_console
from carerft.trackers.weights_and_biases import check_online

log = logging.getLogger(__name__)


@application("evaluate")
def main(config: DictConfig) -> None:
    """Measure a model on each benchmark. A finished evaluation is shown again; an unfinished one is continued."""
    record = plain(config)
    settings = evaluate_settings(record)
    check_templates(settings.benchmark.values())
    check_evaluate(settings)
    check_choice(settings, HydraConfig.get().overrides.task)
    check_words(settings, HydraConfig.get().overrides.task)
    record = with_answerer(record)
    settings = evaluate_settings(record)
    directory = job_directory("evaluate", record)
    if directory is None:
        return
    with open_run(directory, "evaluate", record) as run:
        if run.done:
            log.info("%s is done already; what it measured:", run.path)
            open_console().print(table(json.loads((run.path / "evaluation.json").read_text())))
            return
        check_online(settings.tracker)
        save_composition(run.path, config)
        with run.recording():
            from carerft import assembly

            if isinstance(settings.rollout, OpenaiSettings | RecordedSettings):
                assembly.measure_texts(settings, run)
            else:
                evaluate_model(settings, run)
        log.info("done: %s", run.path)
        show_uses(run.path)


def evaluate_model(settings: EvaluateSettings, run: RunDirectory) -> None:
    """The evaluation itself, in an opened directory. settings: checked."""
    import torch

    from carerft import assembly
    from carerft.commands.chosen import chosen
    from carerft.model.loading import choose_device, load_model

    # An engine has weights of its own: the device is left to it.
    device = "cpu" if isinstance(settings.rollout, VllmSettings) else settings.device
    subject = assembly.Subject(settings, *load_model(settings.model, torch.device("meta")))
    context = subject.engine_context(None)  # the data are checked before weights are loaded
    subject.policy = load_model(settings.model, choose_device(device))[0]
    with subject.rollout_worker(context) as worker, assembly.trackers(settings, run) as trackers:
        if worker.runner:
            run.update(vllm_runner=worker.runner)
        policy_device = choose_device(settings.device)
        open_console().print(chosen(subject, worker, policy_device, HydraConfig.get().overrides.task))
        subject.measure(run, worker, trackers)
