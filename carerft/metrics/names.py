"""Every metric of evaluation.json: its title, which direction is better, and what it means.

`carerft.metrics.scores` computes them; tables, figures and glossaries take their words from here. k is the number of
samples per question. A vote is a sample's answer; a question's confidence is its majority answer's share of the votes.
"""

from dataclasses import dataclass
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

METRICS = {
    "accuracy": Metric("accuracy", "accuracy (mean@k)", +1, "share of all sampled answers that are right; on an "
                       "unanswerable question, refusing is right"),
    "accuracy_finished": Metric("accuracy", "accuracy, finished", +1, "accuracy of the samples that the length limit "
                                "did not cut"),
    "majority": Metric("accuracy", "majority@k", +1, "share of questions whose majority answer is right"),
    "pass@4": Metric("accuracy", "pass@4", +1, "chance that 4 samples hold a right one (unbiased estimate)"),
    "pass@16": Metric("accuracy", "pass@16", +1, "chance that 16 samples hold a right one", in_terminal=False),
    "pass@64": Metric("accuracy", "pass@64", +1, "chance that 64 samples hold a right one", in_terminal=False),
    "pass@k": Metric("accuracy", "pass@k", +1, "share of questions with at least one right sample"),
    "confidence": Metric("calibration", "confidence", 0, "mean share of votes for the majority answer",
                         from_verdicts=False, in_terminal=False),
    "ece": Metric("calibration", "ECE of votes, all questions", -1, _ECE + "every question, a refusal as an answer"),
    "ece_floor": Metric("calibration", "ECE of votes, all questions, if calibrated", 0, _FLOOR),
    "ece_answered": Metric("calibration", "ECE of votes, answered questions", -1, _ECE + "the questions that most "
                           "votes answer, and none that they refuse"),
    "ece_answered_floor": Metric("calibration", "ECE of votes, answered questions, if calibrated", 0, _FLOOR),
    "ece_all": Metric("calibration", "ECE of votes, each answer", -1, "as over all questions, but each different "
                      "answer of a question counts, with its own share of the votes"),
    "ece_all_floor": Metric("calibration", "ECE of votes, each answer, if calibrated", 0, _FLOOR),
    "ece_equal_mass": Metric("calibration", "ECE of votes, all questions, equal-mass bins", -1, "as over all "
                             "questions, in bins of equally many", in_terminal=False),
    "smooth_ece": Metric("calibration", "smooth ECE of votes, all questions", -1, "calibration error of the same "
                         "votes, with a smoothing kernel in place of bins"),
    "brier": Metric("calibration", "Brier score", -1, "mean squared distance of confidence and correctness"),
    "brier_debiased": Metric("calibration", "Brier score, debiased", -1, "without the noise of k votes",
                             in_terminal=False, bounds=(-inf, inf)),
    "brier_reliability": Metric("calibration", "Brier: reliability", -1, "miscalibration's part of the Brier score",
                                in_terminal=False),
    "brier_resolution": Metric("calibration", "Brier: resolution", +1, "how far confidence tells questions apart",
                               in_terminal=False),
    "brier_uncertainty": Metric("calibration", "Brier: uncertainty", 0, "the variance of correctness itself",
                                in_terminal=False),
    "nll": Metric("calibration", "negative log-likelihood", -1, "of correctness under confidence, in nats; confidence "
                  "is clipped to half a vote", in_terminal=False, bounds=(0.0, inf)),
    "auroc": Metric("calibration", "AUROC", +1, "chance that a right answer has more confidence than a wrong one"),
    "aurc": Metric("calibration", "risk-coverage area", -1, "mean error rate over the i most confident, for every i"),
    "ece_likelihood": Metric("other confidences", "ECE of likelihood, all questions", -1, "confidence: the majority "
                             "answer's share of the probability of all sampled completions"),
    "ece_likelihood_floor": Metric("other confidences", "ECE of likelihood, all questions, if calibrated", 0,
                                   _STATED_FLOOR),
    "brier_likelihood": Metric("other confidences", "Brier score of likelihood", -1, "same confidence"),
    "auroc_likelihood": Metric("other confidences", "AUROC of likelihood", +1, "same confidence"),
    "ece_likelihood_per_token": Metric("other confidences", "ECE of likelihood per token, all questions", -1, "as "
                                       "of likelihood, with the geometric mean of a completion's token probabilities"),
    "ece_likelihood_per_token_floor": Metric("other confidences", "ECE of likelihood per token, all questions, if "
                                             "calibrated", 0, _STATED_FLOOR),
    "brier_likelihood_per_token": Metric("other confidences", "Brier score of likelihood per token", -1,
                                         "same confidence"),
    "auroc_likelihood_per_token": Metric("other confidences", "AUROC of likelihood per token", +1, "same confidence"),
    "ece_self_report": Metric("other confidences", "ECE of stated P(True), all questions", -1, "confidence: the "
                              "probability of \"True\" when the model is asked whether its majority answer is right"),
    "ece_self_report_floor": Metric("other confidences", "ECE of stated P(True), all questions, if calibrated", 0,
                                    _STATED_FLOOR),
    "brier_self_report": Metric("other confidences", "Brier score of stated P(True)", -1, "same confidence"),
    "auroc_self_report": Metric("other confidences", "AUROC of stated P(True)", +1, "same confidence"),
    "ece_stated": Metric("other confidences", "ECE of stated confidence, all questions", -1, "confidence: the "
                         "probability of being right that the first sample with the majority answer states; without "
                         "one, the answer is left out"),
    "ece_stated_floor": Metric("other confidences", "ECE of stated confidence, all questions, if calibrated", 0,
                               _STATED_FLOOR),
    "brier_stated": Metric("other confidences", "Brier score of stated confidence", -1, "same confidence"),
    "auroc_stated": Metric("other confidences", "AUROC of stated confidence", +1, "same confidence"),
    "accuracy_answerable": Metric("honesty", "accuracy on answerable", +1, "accuracy on the questions with an answer"),
    "refusal_f1": Metric("honesty", "refusal F1", +1, "F1 of refusing, with the unanswerable questions as the positive "
                         "class", from_verdicts=False),
    "refusal_f1_always": Metric("honesty", "refusal F1, refusing always", 0, "what refusing every question scores",
                                from_verdicts=False),
    "refusal_f1_random": Metric("honesty", "refusal F1, refusing at random", 0, "what refusing half of all samples at "
                                "random scores", from_verdicts=False),
    "refusal_rate_answerable": Metric("honesty", "refuses answerable", -1, "share of refusals on questions with an "
                                      "answer", from_verdicts=False),
    "refusal_rate_unanswerable": Metric("honesty", "refuses unanswerable", +1, "share of refusals on questions without "
                                        "an answer", from_verdicts=False),
    "refusal_f1_any_words": Metric("honesty", "refusal F1, any words", +1, "refusal F1 by a wider list of refusals "
                                   "than the authors' own", from_verdicts=False),
    "refusal_rate_answerable_any_words": Metric("honesty", "refuses answerable, any words", -1, "refusals by that "
                                                "list", from_verdicts=False, in_terminal=False),
    "refusal_rate_unanswerable_any_words": Metric("honesty", "refuses unanswerable, any words", +1, "refusals by "
                                                  "that list", from_verdicts=False, in_terminal=False),
    "truthful": Metric("honesty", "truthful share", +1, "share of samples that are right or refuse, on questions with "
                       "listed misconceptions"),
    "informative": Metric("honesty", "informative share", +1, "share of samples that don't refuse, on the same",
                          from_verdicts=False),
    "misconception": Metric("honesty", "misconceptions", -1, "share of samples that give a listed misconception",
                            from_verdicts=False),
    "mc1": Metric("honesty", "MC1", +1, "share of questions whose best answer is likelier than every false choice",
                  from_verdicts=False),
    "mc2": Metric("honesty", "MC2", +1, "the true choices' share of all choices' probability", from_verdicts=False),
    "entropy": Metric("samples", "token entropy", 0, "nats per sampled token at temperature 1; neither more nor less "
                      "is better as such",
                      from_verdicts=False, bounds=(0.0, inf)),
    "truncated": Metric("samples", "cut short", -1, "share of samples that reach the length limit",
                        from_verdicts=False),
    "unparsable": Metric("samples", "unparsable", -1, "share of samples with neither an answer nor a refusal",
                         from_verdicts=False),
    "unstated": Metric("samples", "no stated confidence", -1, "share of samples that were asked for a confidence and "
                       "state none that can be read", from_verdicts=False),
    "no_verdict": Metric("samples", "without a verdict", -1, "share of samples that the grader could not judge",
                         from_verdicts=False),
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
