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
from typing import TYPE_CHECKING, Any

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
    from carerft.report.columns import BENCHMARKS, ECE, SHOWN

    over_seeds: Any = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    bars, figures, answers = [], [], []
    for name, (words, part) in BENCHMARKS.items():
        for metric in (*SHOWN[part], ECE, "entropy"):
            text = f"{words}: {METRICS[metric].title}"
            bars.append(wr.BarPlot(title=text, metrics=[f"{name}/{metric}"], **over_seeds))
        figures.append(wr.MediaBrowser(title=words, media_keys=[f"reliability/{name}"]))
        answers.append(wr.WeavePanelSummaryTable(table_name=f"samples/{name}"))
    curves = {
        name: [wr.LinePlot(title=metric, x="step", y=[metric], **over_seeds) for metric in metrics]
        for name, metrics in CURVES.items()
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=title,
        sections=[
            *(ws.Section(name, panels, is_open=True) for name, panels in {"Evaluation": bars, **curves}.items()),
            ws.Section("Reliability diagrams", figures),
            ws.Section("Answers", answers),
        ],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=30),
        runset_settings=ws.RunsetSettings(groupby=[Metric("Group"), Config("cell")]),
    )
