"""Some of a batch's completions, kept as they were sampled: `samples/step_<n>.jsonl`, a line for each."""

import json
import zlib
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from carerft.runs.directory import write_atomically
from carerft.training.collector import Batch


def chosen(problem_ids: list[str], count: int) -> list[int]:
    """Which prompts of a batch are kept. The same problems are preferred in every batch, so that one which comes again
    can be compared with itself."""
    return sorted(sorted(range(len(problem_ids)), key=lambda i: zlib.crc32(problem_ids[i].encode()))[:count])


def write_samples(path: Path, batch: Batch, reference: Tensor | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the completions of a batch that has been judged. reference: (S, T), the reference's log-probabilities of
    their tokens; None without one. Raises OSError."""
    path.parent.mkdir(exist_ok=True)
    lines, rollouts, judged = [], batch.rollouts, batch.judged
    assert judged is not None
    for i in range(len(rollouts.tokens)):
        problem, grade, length = judged.problems[i // rollouts.group_size], judged.grades[i], int(rollouts.lengths[i])
        tokens, rewards = rollouts.tokens[i, :length].tolist(), judged.rewards.items()
        record = {
            "problem_id": problem.id,
            "prompt": problem.prompt,
            "answer": problem.answer,
            "sample": i % rollouts.group_size,
            "text": tokenizer.decode(tokens, skip_special_tokens=True),
            "extracted": grade.extracted,
            "correct": grade.correct,
            "refused": grade.refused,
            **({} if grade.confidence is None else {"stated_confidence": grade.confidence}),
            "truncated": not bool(rollouts.finished[i]),
            "rewards": {name: None if values[i].isnan() else float(values[i]) for name, values in rewards},
            "advantage": float(batch.advantages[i]),
            "tokens": [tokenizer.decode([token]) for token in tokens],
            "log_probs": _rounded(rollouts.log_probs[i, :length]),
            "reference_log_probs": None if reference is None else _rounded(reference[i, :length]),
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines))


def _rounded(values: Tensor) -> list[Any]:
    return [round(value, 4) for value in values.tolist()]
