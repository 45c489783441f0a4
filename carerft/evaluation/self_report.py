"""P(True): how sure a model says it is of an answer when asked whether it is right (Kadavath et al. 2022).

The form of arXiv 2207.05221, section 3.1: the question, the proposed answer and two options; the confidence is the
probability of option (A) beside that of (B), at temperature 1. Zero-shot and without other samples shown, which the
authors found to help. The question is the problem's whole prompt, with the examples that it may begin with. A model
that is asked in its chat template is asked this in it too, in a turn of the user, and answers in its own turn.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from carerft.rollout import RolloutWorker
from carerft.tasks import Problem
from carerft.tasks.encoding import prompt_tokens

QUESTION = """Question: {question}
Proposed Answer: {answer}
Is the proposed answer:
 (A) True
 (B) False
The proposed answer is:"""
OPTIONS = (" (A)", " (B)")
LONGEST_ANSWER = 500
"""Characters of an answer that are shown: it is what a model wrote."""


def self_reports(
    worker: RolloutWorker,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    answers: Sequence[str],
    context: int,
) -> list[float]:
    """The probability of True, in [0, 1], for each problem's proposed answer.

    context: tokens that the model can hold. Raises DataError where a question is too long for it.
    """
    if not problems:
        return []
    chat = problems[0].untemplated is not None  # all problems of a task are templated, or none
    asked = []
    for problem, answer in zip(problems, answers, strict=True):
        given = problem.untemplated if chat else problem.prompt
        text = QUESTION.format(question=given, answer=answer[:LONGEST_ANSWER])
        if chat:
            turns = [*map(dict, problem.messages[:-1]), {"role": "user", "content": text}]
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        asked.append(replace(problem, prompt=text))
    texts = [option.strip() if chat else option for option in OPTIONS]  # a turn does not begin with a space
    options = tokenizer(texts, add_special_tokens=False)["input_ids"]
    prompts = prompt_tokens(asked, tokenizer, max(map(len, options)), context)
    scored = worker.log_likelihood([p for p in prompts for _ in options], [o for _ in prompts for o in options])
    return [1 / (1 + math.exp(min(false - true, 700))) for true, false in zip(scored[::2], scored[1::2], strict=True)]
