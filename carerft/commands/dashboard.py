"""Save the layout of a W&B workspace as a new view of a project.

It shows evaluation, training curves, reliability diagrams and answers, grouped by experiment and cell. No run is read:
the layout names the metrics that every run logs, and W&B fills it in. Needs `wandb login`, or WANDB_API_KEY.

usage: carerft dashboard [key=value ...]

examples:
  carerft dashboard
  carerft dashboard project=carerft entity=my-team
"""

import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from carerft.commands.arguments import argument, read, refuse
from carerft.errors import CareError, ConfigError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

# Sections of curves over learner steps. Every training run has these metrics.
CURVES = {
    "Reward": ("reward/mean", "reward/std", "reward/equal_groups", "reward/no_verdict"),
    "Penalty": ("regularizer/value", "policy/kl_to_reference", "loss/regularizer", "loss/total"),
    "Entropy and length": ("policy/entropy", "rollout/length_mean", "rollout/truncated", "rollout/refused"),
    "Clip fraction": ("policy/clip_fraction", "policy/ratio_max", "learner/grad_norm", "learner/learning_rate"),
    "Mismatch of sampler and learner": ("rollout/mismatch_mean", "rollout/mismatch_max", "rollout/mismatch_outside"),
    "Times": (
        *("time/rollout_s", "time/grade_s", "time/learn_s", "time/sync_s"),
        *("throughput/generated_tokens_per_s", "throughput/learned_tokens_per_s"),
    ),
}


@dataclass
class Dashboard:
    """The keys of `carerft dashboard`."""

    project: str = argument("W&B's project", "carerft")
    entity: str | None = argument("W&B's user or team; null: the default of the key", None)
    title: str = argument("the view's name", "carerft")


def main() -> None:
    """Save the layout as a new view of the project, and print its address."""
    settings, words = read(Dashboard, sys.argv[1:], __doc__)
    refuse(settings, words)
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError("wandb-workspaces is not installed", 'pip install "carerft[dashboard]"')
    import wandb

    from carerft.trackers.weights_and_biases import require_login

    require_login()
    try:
        entity = settings.entity or wandb.Api().default_entity or ""
        workspace = layout(settings.project, entity, settings.title).save()
    except (wandb.Error, ValueError) as error:
        raise CareError(
            f"W&B did not take the view: {error}",
            "check that entity= and project= name a project that the key may write to, and that a run was sent to it",
        ) from error
    print(f"open {workspace.url}")


def layout(project: str, entity: str, title: str) -> "Workspace":
    """The view: runs grouped by experiment and then by cell, so that a curve is a mean over seeds and its range."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.expr import Config, Metric

    from carerft.metrics.names import METRICS
    from carerft.report.columns import BENCHMARKS, SHOWN

    def curve(metric: str) -> wr.LinePlot:
        return wr.LinePlot(title=metric, x="step", y=[metric], groupby_aggfunc="mean", groupby_rangefunc="minmax")

    def bars(name: str, metric: str) -> wr.BarPlot:
        text = f"{BENCHMARKS[name][0]}: {METRICS[metric].title}"
        key = f"{name}/{metric}"
        return wr.BarPlot(title=text, metrics=[key], groupby_aggfunc="mean", groupby_rangefunc="minmax")

    measured = [(name, metric) for name, (_, part) in BENCHMARKS.items() for metric in (*SHOWN[part], "ece", "entropy")]
    figures = [wr.MediaBrowser(title=BENCHMARKS[name][0], media_keys=[f"reliability/{name}"]) for name in BENCHMARKS]
    answers = [wr.WeavePanelSummaryTable(table_name=f"samples/{name}") for name in BENCHMARKS]
    sections = [
        ws.Section("Evaluation", [bars(name, metric) for name, metric in measured], is_open=True),
        *(ws.Section(name, [curve(metric) for metric in metrics], is_open=True) for name, metrics in CURVES.items()),
        ws.Section("Reliability diagrams", [*figures]),
        ws.Section("Answers", [*answers]),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=title,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=30),
        runset_settings=ws.RunsetSettings(groupby=[Metric("Group"), Config("cell")]),
    )
