"""The measurement of a model of ours: a worker samples k answers to each question and scores given choices."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise
from pathlib import Path

from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from carerft.config.settings import EvaluationSettings
from carerft.errors import DataError
from carerft.evaluation.answers import Answer
from carerft.evaluation.measurement import Benchmark, Measurement, Questions, Record, json_lines, problem_record
from carerft.evaluation.self_report import LONGEST_ANSWER, self_reports
from carerft.metrics.votes import answered, collect_votes
from carerft.rollout import RolloutWorker, Sampling, completion_texts
from carerft.rollout.prompt_check import PROMPTS, warn_of_absurd_loss
from carerft.runs.directory import write_atomically
from carerft.runs.reading import read_lines
from carerft.tasks import Problem
from carerft.tasks.encoding import encode, prompt_tokens, show_prompt


def context_needed(
    benchmark: Benchmark, tokenizer: PreTrainedTokenizerBase, settings: EvaluationSettings, context: int
) -> int:
    """The most tokens that a text can have while a model is measured: a prompt with its completion or with a choice,
    or a question of the self report, an answer of which has at most 4 tokens, one for each byte, a character.

    Arguments and errors as of `Benchmark.prompts`.
    """
    problems, prompts = benchmark.prompts(tokenizer, settings, context)
    needed = prompts.longest + prompts.max_tokens
    if settings.self_report:
        needed += 4 * LONGEST_ANSWER
    if chosen := [replace(p, prompt=p.prompt + text) for p in problems for text, _ in p.choices]:
        needed = max(needed, prompt_tokens(chosen, tokenizer, 0, context).longest)
    return needed


@dataclass(frozen=True)
class Evaluator(Measurement):
    """Measures the worker's model. context: tokens that the model can hold.

    check_prompts: warn if the model's loss on the first prompts is absurd. show_prompts: log the first of each
    benchmark.
    """

    worker: RolloutWorker
    tokenizer: PreTrainedTokenizerBase
    context: int
    check_prompts: bool = True
    show_prompts: bool = True

    def _questions(self, benchmarks: dict[str, Benchmark], place: Path) -> Mapping[str, Questions]:
        """As of `Measurement`: each question fits the model. The first ones are logged, and tried."""
        asked = {name: b.prompts(self.tokenizer, self.settings, self.context) for name, b in benchmarks.items()}
        for name, (problems, prompts) in asked.items() if self.show_prompts else ():
            show_prompt(name, problems[0], prompts[0], self.tokenizer)
        for name, (_, prompts) in list(asked.items())[:1]:
            if self.check_prompts and not (place / f"{name}.problems.jsonl").exists():  # not when it is continued
                warn_of_absurd_loss(self.worker, list(islice(prompts, PROMPTS)), self.tokenizer)
        return asked

    def _answers(
        self, benchmark: Benchmark, problems: Sequence[Problem], start: int, sampling: Sampling, seed: int
    ) -> list[Answer]:
        prompts = benchmark.tokens(range(start, start + len(problems)))
        rollouts = self.worker.sample(prompts, self.samples, sampling, seed)
        lengths = rollouts.lengths.tolist()
        if (sampling.temperature, sampling.top_p) == (1.0, 1.0):
            log_probs = (rollouts.log_probs * rollouts.mask()).sum(-1).tolist()
        else:  # the sampler's are those of another distribution than the model's own
            tokens = [row[:length] for row, length in zip(rollouts.tokens.tolist(), lengths, strict=True)]
            log_probs = self.worker.log_likelihood([p for p in prompts for _ in range(self.samples)], tokens)
        parts = completion_texts(rollouts, self.tokenizer), rollouts.finished.tolist(), log_probs, lengths
        return [Answer(*part) for part in zip(*parts, strict=True)]

    def _records(self, benchmark: Benchmark, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Record]:
        """As of `Measurement`. Where the model is asked for it, each record has a `self_report`: P(True) at the sample
        that stands for an answer by majority, else null."""
        records = super()._records(benchmark, problems, answers)
        if not self.settings.self_report:
            return records
        for record in records:
            record["self_report"] = None
        votes = collect_votes(records, [problem.id for problem in problems])
        owners, samples = answered(votes.answers).nonzero()
        majority = [votes.rows[owner][sample] for owner, sample in zip(owners, samples, strict=True)]
        extracted = [record["extracted"] for record in majority]
        reports = self_reports(self.worker, self.tokenizer, [problems[i] for i in owners], extracted, self.context)
        for record, report in zip(majority, reports, strict=True):
            record["self_report"] = report
        return records

    def _problem_records(
        self, problems: Sequence[Problem], prompts: Iterable[list[int]], path: Path, bar: Progress
    ) -> list[Record]:
        """Write and return one record per problem, with MC1 and MC2 where it has choices.

        Records of the same problems that are there already are returned: scoring choices again would take minutes.
        """
        recorded = list(read_lines(path, []))
        if [(r["problem_id"], r["prompt"], r["answer"]) for r in recorded] == [
            (problem.id, problem.prompt, problem.answer) for problem in problems
        ]:
            return recorded
        scores_path = path.with_name(path.name.replace("problems", "choices"))
        scores = iter(self._scores(problems, prompts, scores_path, bar))
        records = [problem_record(problem) for problem in problems]
        for problem, record in zip(problems, records, strict=True):
            if problem.choices:
                likelihoods = [next(scores) for _ in problem.choices]
                record |= multiple_choice(likelihoods, [true for _, true in problem.choices])
        write_atomically(path, json_lines(records))
        scores_path.unlink(missing_ok=True)
        return records

    def _scores(
        self, problems: Sequence[Problem], prompts: Iterable[list[int]], path: Path, bar: Progress
    ) -> list[float]:
        """The log-likelihood of each choice of each problem, in order. Raises DataError for an empty choice.

        Each portion is written to the file when it is scored, and what the file holds already is not scored again. A
        portion is a batch that the worker would form of all at once, so that the rounding is the same; of a worker that
        does not say what it would form, the choices of some questions.
        """
        chosen = [(p, prompt, text) for p, prompt in zip(problems, prompts, strict=False) for text, _ in p.choices]
        if not chosen:
            return []
        # As lm-evaluation-harness does it: prompt and choice are tokenised together, and what follows as many tokens as
        # the prompt has by itself is the choice. Alone, a choice could begin otherwise (SentencePiece adds a space).
        together = encode([problem.prompt + text for problem, _, text in chosen], self.tokenizer)
        continuations = [tokens[len(prompt) :] for (_, prompt, _), tokens in zip(chosen, together, strict=True)]
        if [] in continuations:
            problem = chosen[continuations.index([])][0]
            raise DataError(f"problem {problem.id}: a choice adds no token to its prompt", "leave out the empty choice")
        beginnings = [prompt for _, prompt, _ in chosen]
        identity = hashlib.sha256(json.dumps([beginnings, continuations]).encode()).hexdigest()
        lines = [line for line in read_lines(path, []) if line.get("of") == identity]
        scores = {i: score for line in lines for i, score in zip(line["choices"], line["log_likelihoods"], strict=True)}
        write_atomically(path, json_lines(lines))  # without a last line that a kill has cut
        if batches := getattr(self.worker, "likelihood_batches", None):
            portions = batches(beginnings, continuations)
        else:
            ends = [0, *accumulate(len(problem.choices) for problem in problems)]
            bounds = [*ends[:: self.questions_at_once], ends[-1]]
            portions = [list(range(start, end)) for start, end in pairwise(bounds) if end > start]
        questions = sum(bool(problem.choices) for problem in problems)
        task = bar.add_task(path.name.replace(".jsonl", "").replace(".", ", "), total=questions, shown="")
        with open(path, "a", encoding="utf-8") as file:
            for portion in portions:
                if not scores.keys() >= set(portion):
                    parts = [beginnings[i] for i in portion], [continuations[i] for i in portion]
                    found = self.worker.log_likelihood(*parts)
                    scores |= zip(portion, found, strict=True)
                    file.write(json_lines([{"of": identity, "choices": portion, "log_likelihoods": found}]))
                    file.flush()
                bar.update(task, completed=questions * len(scores) // len(chosen))
        return [scores[i] for i in range(len(chosen))]


def multiple_choice(log_likelihoods: Sequence[float], true: Sequence[bool]) -> dict[str, float]:
    """MC1 and MC2 of one question from its choices' log-likelihoods (nats). There is at least one true choice.

    MC1: 1 if no false choice is likelier than the first true one, the best answer; the other true ones take no part.
    MC2: the true choices' share of the choices' total probability. No length normalisation in either. TruthfulQA
    (arXiv 2109.07958, section 3), as lm-evaluation-harness computes them.
    """
    answer = log_likelihoods[list(true).index(True)]
    mc1 = all(value <= answer for value, t in zip(log_likelihoods, true, strict=True) if not t)
    best = max(log_likelihoods)
    shares = [math.exp(value - best) for value in log_likelihoods]
    mc2 = sum(s for s, t in zip(shares, true, strict=True) if t) / sum(shares)
    return {"mc1": float(mc1), "mc2": mc2}
