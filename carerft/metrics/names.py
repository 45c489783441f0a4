"""Every metric of evaluation.json: its title, which direction is better, and what it means.

`carerft.metrics.scores` computes them; tables, figures and glossaries take their words from here. k is the number of
samples per question. A vote is a sample's answer; a question's confidence is its majority answer's share of the votes.
"""

from dataclasses import dataclass
from functools import partial
from math import inf


@dataclass(frozen=True)
class Metric:
    """One row of the registry.

    group: metrics that stand together in a table.
    direction: +1 if higher is better, -1 if lower is, 0 if neither.
    from_verdicts: whether it is computed from verdicts on answers, and so from the judged answers alone.
    in_terminal: whether the whole table in the terminal (--all) shows it, or only the report.
    bounds: the lowest and the highest possible value.
    """

    group: str
    title: str
    direction: int
    meaning: str
    from_verdicts: bool = True
    in_terminal: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)


_ECE = (
    "expected calibration error, over equal-width bins of confidence: how far the majority answer's share of the k "
    "votes is from how often it is right; counts "
)
_FLOOR = "the same for a perfectly calibrated sampler with these votes: mean over simulated truths, and their range"
_STATED_FLOOR = "the same if each confidence were exactly the chance that the answer is right"

_accuracy, _calibration = partial(Metric, "accuracy"), partial(Metric, "calibration")
_honesty, _samples = (partial(Metric, group, from_verdicts=False) for group in ("honesty", "samples"))


def _other(name: str, title: str, meaning: str) -> dict[str, Metric]:
    """What is measured of confidences other than votes. meaning: where they come from."""
    metric = partial(Metric, "other confidences")
    return {
        f"ece_{name}": metric(f"ECE of {title}, all questions", -1, meaning),
        f"ece_{name}_floor": metric(f"ECE of {title}, all questions, if calibrated", 0, _STATED_FLOOR),
        f"brier_{name}": metric(f"Brier score of {title}", -1, "same confidence"),
        f"auroc_{name}": metric(f"AUROC of {title}", +1, "same confidence"),
    }


METRICS = {
    "accuracy": _accuracy("accuracy (mean@k)", +1, "share of all sampled answers that are right; on an unanswerable "
                          "question, refusing is right"),
    "accuracy_finished": _accuracy("accuracy, finished", +1, "accuracy of the samples that the length limit did not "
                                   "cut"),
    "majority": _accuracy("majority@k", +1, "share of questions whose majority answer is right"),
    "pass@4": _accuracy("pass@4", +1, "chance that 4 samples hold a right one (unbiased estimate)"),
    "pass@16": _accuracy("pass@16", +1, "chance that 16 samples hold a right one", in_terminal=False),
    "pass@64": _accuracy("pass@64", +1, "chance that 64 samples hold a right one", in_terminal=False),
    "pass@k": _accuracy("pass@k", +1, "share of questions with at least one right sample"),
    "confidence": _calibration("confidence", 0, "mean share of votes for the majority answer",
                               from_verdicts=False, in_terminal=False),
    "ece": _calibration("ECE of votes, all questions", -1, _ECE + "every question, a refusal as an answer"),
    "ece_floor": _calibration("ECE of votes, all questions, if calibrated", 0, _FLOOR),
    "ece_answered": _calibration("ECE of votes, answered questions", -1, _ECE + "the questions that most votes answer, "
                                 "and none that they refuse"),
    "ece_answered_floor": _calibration("ECE of votes, answered questions, if calibrated", 0, _FLOOR),
    "ece_all": _calibration("ECE of votes, each answer", -1, "as over all questions, but each different answer of a "
                            "question counts, with its own share of the votes"),
    "ece_all_floor": _calibration("ECE of votes, each answer, if calibrated", 0, _FLOOR),
    "ece_equal_mass": _calibration("ECE of votes, all questions, equal-mass bins", -1, "as over all questions, in bins "
                                   "of equally many", in_terminal=False),
    "smooth_ece": _calibration("smooth ECE of votes, all questions", -1, "calibration error of the same votes, with a "
                               "smoothing kernel in place of bins"),
    "brier": _calibration("Brier score", -1, "mean squared distance of confidence and correctness"),
    "brier_debiased": _calibration("Brier score, debiased", -1, "without the noise of k votes",
                                   in_terminal=False, bounds=(-inf, inf)),
    "brier_reliability": _calibration("Brier: reliability", -1, "miscalibration's part of the Brier score",
                                      in_terminal=False),
    "brier_resolution": _calibration("Brier: resolution", +1, "how far confidence tells questions apart",
                                     in_terminal=False),
    "brier_uncertainty": _calibration("Brier: uncertainty", 0, "the variance of correctness itself", in_terminal=False),
    "nll": _calibration("negative log-likelihood", -1, "of correctness under confidence, in nats; confidence is "
                        "clipped to half a vote", in_terminal=False, bounds=(0.0, inf)),
    "auroc": _calibration("AUROC", +1, "chance that a right answer has more confidence than a wrong one"),
    "aurc": _calibration("risk-coverage area", -1, "mean error rate over the i most confident, for every i"),
    **_other("likelihood", "likelihood", "confidence: the majority answer's share of the probability of all sampled "
             "completions"),
    **_other("likelihood_per_token", "likelihood per token", "as of likelihood, with the geometric mean of a "
             "completion's token probabilities"),
    **_other("self_report", "stated P(True)", "confidence: the probability of \"True\" when the model is asked whether "
             "its majority answer is right"),
    **_other("stated", "stated confidence", "confidence: the probability of being right that the first sample with the "
             "majority answer states; without one, the answer is left out"),
    "accuracy_answerable": _honesty("accuracy on answerable", +1, "accuracy on the questions with an answer",
                                    from_verdicts=True),
    "refusal_f1": _honesty("refusal F1", +1, "F1 of refusing, with the unanswerable questions as the positive class"),
    "refusal_f1_always": _honesty("refusal F1, refusing always", 0, "what refusing every question scores"),
    "refusal_f1_random": _honesty("refusal F1, refusing at random", 0, "what refusing half of all samples at random "
                                  "scores"),
    "refusal_rate_answerable": _honesty("refuses answerable", -1, "share of refusals on questions with an answer"),
    "refusal_rate_unanswerable": _honesty("refuses unanswerable", +1, "share of refusals on questions without an "
                                          "answer"),
    "refusal_f1_any_words": _honesty("refusal F1, any words", +1, "refusal F1 by a wider list of refusals than the "
                                     "authors' own"),
    "refusal_rate_answerable_any_words": _honesty("refuses answerable, any words", -1, "refusals by that list",
                                                  in_terminal=False),
    "refusal_rate_unanswerable_any_words": _honesty("refuses unanswerable, any words", +1, "refusals by that list",
                                                    in_terminal=False),
    "truthful": _honesty("truthful share", +1, "share of samples that are right or refuse, on questions with listed "
                         "misconceptions", from_verdicts=True),
    "informative": _honesty("informative share", +1, "share of samples that don't refuse, on the same"),
    "misconception": _honesty("misconceptions", -1, "share of samples that give a listed misconception"),
    "mc1": _honesty("MC1", +1, "share of questions whose best answer is likelier than every false choice"),
    "mc2": _honesty("MC2", +1, "the true choices' share of all choices' probability"),
    "entropy": _samples("token entropy", 0, "nats per sampled token at temperature 1; neither more nor less is better "
                        "as such", bounds=(0.0, inf)),
    "truncated": _samples("cut short", -1, "share of samples that reach the length limit"),
    "unparsable": _samples("unparsable", -1, "share of samples with neither an answer nor a refusal"),
    "unstated": _samples("no stated confidence", -1, "share of samples that were asked for a confidence and state none "
                         "that can be read"),
    "no_verdict": _samples("without a verdict", -1, "share of samples that the grader could not judge"),
}  # fmt: skip
FLOORS = {name: f"{name}_floor" for name in METRICS if f"{name}_floor" in METRICS}
"""Each calibration error, and the metric that says what perfect calibration would score. Compare only at equal k."""
FIRST = ("accuracy", "ece_answered", "refusal_f1", "truthful", "mc2")
"""The five that a terminal shows unasked: whether answers are right; whether the confidence in what is answered means
what it says; whether the model refuses what it cannot know, and only that; and whether it repeats what people believe
wrongly, in its own words and among given ones. All others are variants, parts or bounds of these."""
BY_LIKELIHOOD = ("mc1", "mc2")
"""Those that the likelihoods of choices alone give."""
OF_SOME_ANSWERS = ("accuracy_finished", "ece_stated", "brier_stated", "auroc_stated")
"""Those that a benchmark has only where a completion was cut, or states a confidence."""
ENOUGH_VERDICTS = 0.9
"""Share of answers with a verdict below which a metric computed from verdicts is marked as unrepresentative."""
