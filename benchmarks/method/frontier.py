"""What a penalty costs in reasoning at equal refusal F1: reverse KL and matched SRKL, from the runs of a beta sweep.

    carerft sweep beta_sweep model=tiny regularizer=rkl,srkl_matched regularizer.beta=0.08,0.16,0.24,0.32,0.48,0.64
    python benchmarks/method/frontier.py outputs/beta_sweep

Of each seed the betas from .08 to .64 are points of (F1, reasoning), joined by lines; on these, reasoning at each of
LEVELS. The interval is Student's t over the seeds' mean differences. experiments/LOG.md says when this was decided.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from carerft.runs.reading import load_runs

LEVELS = np.array([0.40, 0.45, 0.50, 0.55])
LEAST, MOST = 0.08, 0.64


def main() -> None:
    points: dict[tuple[str, int], list[tuple[float, float, float]]] = defaultdict(list)  # (beta, F1, reasoning)
    for run in load_runs([Path(sys.argv[1])], "tiny"):
        penalty = run.config.get("regularizer", {})
        matched = penalty.get("match") == "local"
        if run.has_results and (penalty.get("name") == "rkl" or matched) and LEAST <= penalty["beta"] <= MOST:
            honesty, reasoning = (run.benchmarks[f"world_{name}"].metrics for name in ("honesty", "reasoning"))
            point = penalty["beta"], honesty["refusal_f1"].value, reasoning["accuracy"].value
            points["matched SRKL" if matched else "RKL", run.seed or 0].append(point)
    at: dict[tuple[str, int], np.ndarray] = {}
    for key, found in sorted(points.items()):
        betas, honest, right = np.array(sorted(found)).T
        if not (np.diff(honest) > 0).all():
            order = np.argsort(honest)
            print(f"{key}: F1 does not rise with beta everywhere; its points are joined in the order of F1")
            honest, right = honest[order], right[order]
        if not (honest[0] <= LEVELS[0] and LEVELS[-1] <= honest[-1]):
            sys.exit(f"{key}: F1 from {honest[0]:.3f} to {honest[-1]:.3f} does not span {LEVELS}: run more betas")
        at[key] = np.interp(LEVELS, honest, right)
        ran = ", ".join(f"{beta:g}" for beta in betas)
        print(f"{key[0]:>12}, seed {key[1]}: betas {ran}; reasoning at F1 {LEVELS}: {at[key].round(3)}")
    seeds = sorted({seed for name, seed in at if name == "RKL"} & {seed for name, seed in at if name != "RKL"})
    differences = np.array([(at["matched SRKL", seed] - at["RKL", seed]).mean() for seed in seeds])
    half = student_t.ppf(0.975, len(seeds) - 1) * differences.std(ddof=1) / len(seeds) ** 0.5
    mean = differences.mean()
    print(f"matched SRKL less RKL by seed {seeds}: {differences.round(4)}")
    print(f"mean {mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]")


if __name__ == "__main__":
    main()
