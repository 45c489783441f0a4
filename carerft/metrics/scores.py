"""From the recorded samples of one benchmark to its entry of evaluation.json.

`carerft.metrics.names` says what each metric means, `carerft.metrics.votes` how samples become votes. A metric is

- a ratio of sums over the samples of the problems that it concerns; for accuracies, over those with a verdict;
- a mean over problems (majority, confidence, pass@k, MC1, MC2);
- or a calibration measure of the majority answers with a verdict (`carerft.metrics.calibration`).

Intervals are percentile bootstraps over problems. Those of an ECE lean upwards, since a resample is noisier than the
data.
"""

import math
from collections.abc import Container, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carerft.errors import DataError
from carerft.metrics import calibration
from carerft.metrics.names import BY_LIKELIHOOD, METRICS
from carerft.metrics.statistics import UNPARSABLE, distinct, interval, majority, over_resamples, pass_at_k, ratio
from carerft.metrics.votes import REFUSED, Record, Votes, answered, collect_votes, predictions

ALWAYS = {"accuracy", "majority", "pass@k"}
"""Metrics that are null, not absent, where no sample has a verdict."""
PREDICTIONS = {"ece": majority, "ece_answered": answered, "ece_all": distinct}
"""Of each ECE by votes, which samples stand for the predictions."""


def score(
    problems: Sequence[Record], samples: Sequence[Record], resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """The entry of one benchmark in evaluation.json: n, k, metrics (`carerft.metrics.names` defines them), reliability.

    problems, samples: the records of `evaluation/<benchmark>.problems.jsonl` and `.jsonl`.
    Each metric is {"value", "low", "high"} with a bootstrap interval over problems (the floors: over simulated
    truths); null where undefined; absent where the benchmark has no problem that it concerns. Of problems with choices
    and no samples, MC1 and MC2 alone, with k = 0 and no reliability.
    Raises DataError as `collect_votes` does, and without problems.
    """
    if not problems:
        raise DataError("no problems to score", "The benchmark's problems file is empty: evaluate again.")
    if _only_choices(problems, samples):
        made = over_resamples(partial(_ratios, _choices(problems)), len(problems), resamples, seed)
        return {"n": len(problems), "k": 0, "metrics": {name: _entry(values, level) for name, values in made.items()}}
    votes = collect_votes(samples, [p["problem_id"] for p in problems])
    n, k = votes.answers.shape
    sums = {name: pair for name, pair in _sums(problems, votes).items() if name in ALWAYS or pair[1].any()}
    top, bottom = (np.stack([pair[i] for pair in sums.values()], 1) for i in (0, 1))
    tallies, others = _tallies(votes), _other_confidences(votes)

    def measure(counts: NDArray) -> dict[str, NDArray]:
        measured = {"top": counts @ top, "bottom": counts @ bottom}
        measured |= {name: counts @ tally for name, tally in tallies.items()}
        for name, (problem, confidence, correct) in others.items():
            weight = counts[:, problem]
            measured[f"ece_{name}"] = calibration.ece(confidence, correct, weight=weight)
            measured[f"brier_{name}"] = calibration.brier(confidence, correct, weight)
            measured[f"auroc_{name}"] = calibration.auroc(confidence, correct, weight)
        return measured

    measured = over_resamples(measure, n, resamples, seed)
    ratios = ratio(measured["top"], measured["bottom"]).T
    metrics = dict(zip(sums, ratios, strict=True)) | _calibration(k, measured)
    for name, (_, confidence, _) in others.items():
        metrics[f"ece_{name}"] = measured[f"ece_{name}"]
        metrics[f"ece_{name}_floor"] = _with_mean(calibration.ece_floor_stated(confidence, seed=seed))
        metrics |= {f"{metric}_{name}": measured[f"{metric}_{name}"] for metric in ("brier", "auroc")}
    for name, select in PREDICTIONS.items():
        metrics[f"{name}_floor"] = _with_mean(calibration.ece_floor(votes.answers, select, seed=seed))
    _, confidence, correct = predictions(votes, majority(votes.answers))
    diagram = calibration.reliability(confidence, correct)
    return {
        "n": n,
        "k": k,
        "metrics": {name: _entry(values, level) for name, values in metrics.items()},
        "reliability": {name: [_finite(v) for v in values] for name, values in diagram._asdict().items()},
    }


def score_together(
    parts: Mapping[str, tuple[Sequence[Record], Sequence[Record]]], resamples: int, level: float, seed: int
) -> dict[str, Any]:
    """As `score`, over several benchmarks' questions as one set; of the metrics, those of calibration.

    parts: by benchmark, its problems and samples; all have the same number of samples per problem.
    """

    def named(records: Sequence[Record], benchmark: str) -> list[Record]:
        return [{**record, "problem_id": f"{benchmark}/{record['problem_id']}"} for record in records]

    problems = [record for name, (records, _) in parts.items() for record in named(records, name)]
    samples = [record for name, (_, records) in parts.items() for record in named(records, name)]
    entry = score(problems, samples, resamples, level, seed)
    groups = ("calibration", "other confidences")
    kept = [name for name in entry["metrics"] if METRICS[name].group in groups or name == "no_verdict"]
    return {**entry, "benchmarks": list(parts), "metrics": {name: entry["metrics"][name] for name in kept}}


def _sums(problems: Sequence[Record], votes: Votes) -> dict[str, tuple[NDArray, NDArray]]:
    """Numerator and denominator (n,) each, per problem, of the metrics that are ratios of sums over samples, and of
    those that are means over (some) problems."""
    n, k = votes.answers.shape
    refused, unparsable = votes.answers == REFUSED, votes.answers == UNPARSABLE
    known = ~np.isnan(votes.verdict)
    right = votes.verdict == 1
    answerable = np.array([[p["answer"] is not None] for p in problems])
    myths = [set(p.get("misconceptions") or ()) for p in problems]
    mythical = np.array([[bool(m)] for m in myths])
    believed = np.array([[r["extracted"] in m for r in row] for m, row in zip(myths, votes.rows, strict=True)])
    every = np.ones_like(known)
    has, lacks = every & answerable, every & ~answerable  # which has or lacks an answer
    wise, rash = refused & lacks, refused & has
    cut, likelihood, tokens = (votes.column(key) for key in ("truncated", "log_probability", "tokens"))
    measured = ~np.isnan(likelihood) & ~np.isnan(tokens)
    shares = {
        "accuracy": (right, known),
        "truncated": (cut == 1, ~np.isnan(cut)),
        "unparsable": (unparsable, every),
        "no_verdict": (~known, every),
        "entropy": (np.where(measured, -likelihood, 0), np.where(measured, tokens, 0)),
        "refusal_rate_answerable": (rash, has),
        "refusal_rate_unanswerable": (wise, lacks),
        "truthful": ((right | refused) & mythical, (known | refused) & mythical),
        "informative": (~refused & mythical, every & mythical),
        "misconception": (believed & ~refused, every & mythical),
    }
    if (cut == 1).any():
        shares["accuracy_finished"] = right & (cut != 1), known & (cut != 1)
    sums = {name: (top.sum(1), bottom.sum(1)) for name, (top, bottom) in shares.items()}
    if any("stated_confidence" in record for row in votes.rows for record in row):  # the prompt asks for it
        sums["unstated"] = np.isnan(votes.column("stated_confidence")).sum(1), every.sum(1)
    u, a = lacks.sum(1), has.sum(1)
    in_any_words = votes.column("refused_in_any_words")
    if u.any() and not np.isnan(in_any_words).all():
        true, false = (((in_any_words == 1) & group).sum(1) for group in (lacks, has))
        sums["refusal_f1_any_words"] = 2 * true, true + false + u
        sums["refusal_rate_answerable_any_words"] = false, a
        sums["refusal_rate_unanswerable_any_words"] = true, u
    if u.any():
        sums["accuracy_answerable"] = (right & answerable).sum(1), (known & answerable).sum(1)
        # F1 = 2TP / (2TP + FP + FN); refusing at random: TP = FN = U/2 and FP = A/2
        true, false = wise.sum(1), rash.sum(1)
        sums["refusal_f1"] = 2 * true, true + false + u
        sums["refusal_f1_always"] = 2 * u, 2 * u + a
        sums["refusal_f1_random"] = 2 * u, 3 * u + a
    problem, confidence, correct = predictions(votes, majority(votes.answers))
    voted = np.bincount(problem, minlength=n)
    sums["majority"] = np.bincount(problem, correct, n), voted
    sums["confidence"] = np.bincount(problem, confidence, n), voted
    judged, solutions = known.sum(1), right.sum(1)
    some = judged > 0
    for name, draws in {"pass@k": k, **{f"pass@{j}": j for j in (4, 16, 64) if j < k}}.items():
        solved = np.zeros(n)
        solved[some] = pass_at_k(judged[some], solutions[some], np.minimum(draws, judged[some]))
        sums[name] = solved, some
    return sums | _choices(problems)


def _choices(problems: Sequence[Record]) -> dict[str, tuple[NDArray, NDArray]]:
    """As `_sums`, of what the choices' likelihoods give; empty where no problem has choices."""
    sums = {}
    for name in BY_LIKELIHOOD:
        has = np.array([p.get(name) is not None for p in problems])
        if has.any():
            sums[name] = np.array([float(p.get(name) or 0) for p in problems]), has
    return sums


def _only_choices(problems: Sequence[Record], samples: Sequence[Record]) -> bool:
    return not samples and all(p.get("mc1") is not None for p in problems)


def _ratios(sums: Mapping[str, tuple[NDArray, NDArray]], counts: NDArray) -> dict[str, NDArray]:
    """(rows,) of each ratio of sums. counts: (rows, n), of `over_resamples`."""
    return {name: ratio(counts @ top, counts @ bottom) for name, (top, bottom) in sums.items()}


def _tallies(votes: Votes) -> dict[str, NDArray]:
    """(n, 2k) how many predictions of each kind each problem makes, for each ECE by votes. Kind 2 j + y has confidence
    (j + 1)/k and is right where y is 1."""
    n, k = votes.answers.shape
    tallies = {}
    for name, select in PREDICTIONS.items():
        problem, confidence, correct = predictions(votes, select(votes.answers))
        kind = (2 * (np.rint(confidence * k) - 1) + correct).astype(int)
        tallies[name] = np.bincount(problem * 2 * k + kind, minlength=n * 2 * k).reshape(n, 2 * k)
    return tallies


def _calibration(k: int, made: Mapping[str, NDArray], names: Container[str] | None = None) -> dict[str, NDArray]:
    """(resamples + 1,) of each calibration metric, or of those named. made: sums (resamples + 1, 2k) of `_tallies`."""
    kind = np.arange(2 * k)
    c, y, w = (kind // 2 + 1) / k, kind % 2, made["ece"]
    metrics = {name: partial(calibration.ece, c, y, weight=made[name]) for name in PREDICTIONS}
    metrics |= {
        "ece_equal_mass": lambda: calibration.ece_equal_mass(c, y, weight=w),
        "smooth_ece": lambda: calibration.smooth_ece(c, y, w),
        "brier": lambda: calibration.brier(c, y, w),
        "brier_debiased": lambda: calibration.brier_debiased(c, y, k, w),
        "brier_reliability": lambda: calibration.brier_decomposition(c, y, w).reliability,
        "brier_resolution": lambda: calibration.brier_decomposition(c, y, w).resolution,
        "brier_uncertainty": lambda: calibration.brier_decomposition(c, y, w).uncertainty,
        "nll": lambda: calibration.negative_log_likelihood(c, y, 1 / (2 * k), w),
        "auroc": lambda: calibration.auroc(c, y, w),
        "aurc": lambda: calibration.aurc(c, y, w),
    }
    return {name: metric() for name, metric in metrics.items() if names is None or name in names}


def _other_confidences(votes: Votes) -> dict[str, tuple[NDArray, NDArray, NDArray]]:
    """`predictions` of the majorities under confidences other than votes."""
    sources = {"likelihood": votes.likelihood(), "likelihood_per_token": votes.likelihood(per_token=True)}
    if np.isnan(sources["likelihood"]).all():  # of answers whose author wrote no probabilities down
        sources.clear()
    if any("self_report" in record for row in votes.rows for record in row):
        sources["self_report"] = votes.column("self_report")
    if not np.isnan(stated := votes.column("stated_confidence")).all():
        sources["stated"] = stated
    return {name: predictions(votes, majority(votes.answers), source) for name, source in sources.items()}


def _with_mean(simulated: NDArray) -> NDArray:
    """A floor's mean before its simulations, as `interval` takes a value before its resamples."""
    return np.array([simulated.mean(), *simulated])


def _entry(replicates: NDArray, level: float) -> dict[str, float | None]:
    """What evaluation.json holds of a metric. replicates: (resamples + 1,) its value, then those on resamples."""
    return {end: _finite(value) for end, value in interval(replicates, level)._asdict().items()}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def replicates(
    problems: Sequence[Record], samples: Sequence[Record], names: Sequence[str], resamples: int = 1000, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """(resamples + 1,) of each named metric that this benchmark has: on the data, then on resamples of the problems.

    The resamples depend on the number of problems and the seed alone, so that two models which answered the same
    problems can be compared resample by resample. Floors have no replicates.
    """
    if _only_choices(problems, samples):
        pairs = {name: pair for name, pair in _choices(problems).items() if name in names}
        return over_resamples(partial(_ratios, pairs), len(problems), resamples, seed)
    votes = collect_votes(samples, [p["problem_id"] for p in problems])
    sums, tallies = _sums(problems, votes), _tallies(votes)
    pairs = {name: sums[name] for name in names if name in sums}

    def measure(counts: NDArray) -> dict[str, NDArray]:
        return _ratios(pairs, counts) | {f"tally of {name}": counts @ tally for name, tally in tallies.items()}

    measured = over_resamples(measure, len(problems), resamples, seed)
    made = {name: measured.pop(f"tally of {name}") for name in tallies}
    return measured | _calibration(votes.answers.shape[1], made, names)
