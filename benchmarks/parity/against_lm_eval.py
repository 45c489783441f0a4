"""Verdicts and likelihoods of carerft and of lm-evaluation-harness, question by question.

    CARERFT_DATA=DIRECTORY python benchmarks/parity/against_lm_eval.py --lm-eval-python PATH/bin/python

- TruthfulQA: MC1 and MC2 of all 817 questions, by `carerft evaluate` and by lm-eval's tasks, for one model: a small
  Qwen2 with random weights and a byte-level BPE tokenizer trained on the questions. Such a model knows nothing, but its
  likelihoods depend on every token, so that any difference in prompts, tokens or normalisation changes the numbers.
- GSM8K and MATH: the verdicts of both sides on the same completions. `completions.py` writes these from the real
  problems: the reference solutions, and variants of how an answer is written. lm-eval itself runs its filters and
  metrics, on a model that repeats given completions (`lm_eval_side.py`).

Disagreements are counted by variant, with the side that is right and the reason (`explanations.py`). The exit status is
1 if a disagreement has no explanation. CARERFT_DATA: the directory of the benchmarks' data. --model: TruthfulQA
alone, with this model in the place of the random one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from completions import GSM8K, MATH, Variant
from explanations import EXPLANATIONS
from rich.console import Console
from rich.table import Table
from tokenizers import ByteLevelBPETokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils.logging import disable_progress_bar

from carerft.grading.mathematics import canonical, last_box
from carerft.tasks import Problem, Task
from carerft.tasks.gsm8k import Gsm8kTask
from carerft.tasks.math import MathTask

HOW_TO_GET_LM_EVAL = """lm-evaluation-harness needs an environment of its own; name its Python with --lm-eval-python:
  python -m venv lm-eval-venv
  lm-eval-venv/bin/pip install torch==2.13.0
  lm-eval-venv/bin/pip install "lm-eval[math,hf]==0.4.13" "transformers>=5.16.1,<5.20"
  python benchmarks/parity/against_lm_eval.py --lm-eval-python lm-eval-venv/bin/python"""


@dataclass(frozen=True)
class Completion:
    """One completion of one problem. row: lm-eval's fields of the problem, and the completion."""

    problem: Problem
    variant: Variant
    row: dict[str, str]


def data() -> Path:
    if "CARERFT_DATA" not in os.environ:
        sys.exit("set CARERFT_DATA to the directory of the benchmarks' data: gsm8k/, math500/, truthfulqa/")
    return Path(os.environ["CARERFT_DATA"])


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Sequence[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def save_model(directory: str, texts: Sequence[str]) -> None:
    """A random Qwen2 whose tokenizer was trained on these texts, in Hugging Face format."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=1200, show_progress=False, special_tokens=["<|endoftext|>"])
    state = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"], merges=[tuple(m) for m in state["merges"]], eos_token="<|endoftext|>", unk_token=None
    )
    tokenizer.save_pretrained(directory)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, max_position_embeddings=2048, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter.ndim == 1) + 0.15 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(directory)


def our_choices(model: str, count: int, directory: str) -> list[dict]:
    """The records of each problem, with mc1 and mc2, from `carerft evaluate benchmark=truthfulqa`."""
    overrides = [f"model={model}", "benchmark=truthfulqa", "samples=1", "benchmark.truthfulqa.max_tokens=1"]
    overrides += ["model.chat=false"]  # lm-eval uses no chat template unless it is told to
    overrides += [f"evaluation.limit={count}", "evaluation.bootstrap=1", "device=cpu", f"hydra.run.dir={directory}"]
    process = subprocess.run([sys.executable, "-m", "carerft", "evaluate", *overrides], capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"carerft evaluate failed:\n{process.stderr[-3000:]}")
    return json_lines(Path(directory) / "evaluation/truthfulqa.problems.jsonl")


def theirs(spec: dict, python: str, directory: str) -> dict[str, dict[str, list[float]]]:
    """lm-eval's metrics of the tasks in spec, from a process of its own environment (`lm_eval_side.py`)."""
    path = Path(directory) / "spec.json"
    path.write_text(json.dumps(spec))
    side = Path(__file__).with_name("lm_eval_side.py")
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "PYTHONPATH": ""}
    process = subprocess.run([python, str(side), str(path)], capture_output=True, text=True, env=environment)
    if process.returncode:
        sys.exit(f"lm-eval failed:\n{process.stderr[-3000:]}\n{HOW_TO_GET_LM_EVAL}")
    return json.loads(process.stdout.splitlines()[-1])


def hub_row(row: dict) -> dict:
    """A row of the authors' file in the hub's form, which lm-eval reads."""
    forms = {
        key: {"choices": list(row[key]), "labels": list(row[key].values())} for key in ("mc1_targets", "mc2_targets")
    }
    return {"question": row["question"], **forms}


def completions_of(variants: Sequence[Variant], rows: Sequence[tuple[dict, str, str, str]]) -> list[Completion]:
    """Every variant of every row. rows: (lm-eval's fields, solution, answer, wrong answer)."""
    return [
        Completion(
            Problem(str(i), "", answer), variant, {**fields, "completion": variant.write(solution, answer, wrong)}
        )
        for i, (fields, solution, answer, wrong) in enumerate(rows)
        for variant in variants
    ]


def gsm8k_completions(count: int) -> list[Completion]:
    rows = []
    for row in json_lines(data() / "gsm8k/test.jsonl")[:count]:
        answer = row["answer"].rpartition("#### ")[2].replace(",", "")
        rows.append((row, row["answer"], answer, str(int(answer) + 7)))
    return completions_of(GSM8K, rows)


def math_completions(count: int) -> list[Completion]:
    problems = json_lines(data() / "math500/test.jsonl")[:count]
    answers = [last_box(row["solution"]) or "" for row in problems]
    rows = []
    for i, (row, answer) in enumerate(zip(problems, answers, strict=True)):
        others = (answers[(i + j) % len(answers)] for j in range(1, len(answers)))
        wrong = next(other for other in others if canonical(other) != canonical(answer))
        rows.append(({"problem": row["problem"], "solution": row["solution"]}, row["solution"], answer, wrong))
    return completions_of(MATH, rows)


def verdicts(task: Task, completions: Sequence[Completion]) -> list[bool]:
    """Our verdicts. No verdict counts as not correct, because lm-eval does not distinguish the two."""
    grades = task.grade([c.problem for c in completions], [c.row["completion"] for c in completions])
    return [grade.correct is True for grade in grades]


def compare_verdicts(
    name: str, completions: Sequence[Completion], ours: Sequence[bool], other: Sequence[float], console: Console
) -> list[dict]:
    """Print the agreement by variant. Returns the disagreements, each with its explanation or None."""
    table = Table(title=name, title_justify="left")
    for heading in ("variant", "completions", "agree", "only ours says correct", "only theirs", "why"):
        table.add_column(heading, justify="left" if heading in ("variant", "why") else "right", overflow="fold")
    disagreements, counts = [], Counter()
    for completion, mine, their in zip(completions, ours, other, strict=True):
        verdict = (completion.variant.name, bool(mine), bool(their))
        counts[verdict] += 1
        if verdict[1] != verdict[2]:
            why = EXPLANATIONS.get((name, completion.variant.name, "ours" if mine else "theirs"))
            shared = {"comparison": name, "variant": completion.variant.name, "ours": mine, "theirs": bool(their)}
            text = {"problem": completion.problem.id, "gold": completion.problem.answer, "why": why}
            disagreements.append({**shared, **text, "completion": completion.row["completion"][-300:]})
    for variant in dict.fromkeys(completion.variant.name for completion in completions):
        agree = counts[variant, True, True] + counts[variant, False, False]
        ours_only, theirs_only = counts[variant, True, False], counts[variant, False, True]
        whys = [
            EXPLANATIONS.get((name, variant, side), "NOT EXPLAINED")
            for side, n in (("ours", ours_only), ("theirs", theirs_only))
            if n
        ]
        table.add_row(
            variant, str(agree + ours_only + theirs_only), str(agree), str(ours_only), str(theirs_only), "; ".join(whys)
        )
    console.print(table)
    sides = zip(completions, ours, other, strict=True)
    readable = [(c.variant.right, mine, bool(their)) for c, mine, their in sides if c.variant.right is not None]
    console.print(
        f"{name}: {len(completions) - len(disagreements)} of {len(completions)} agree. By a person's reading, "
        f"ours are right on {sum(right == mine for right, mine, _ in readable)} of {len(readable)}, "
        f"theirs on {sum(right == their for right, _, their in readable)}"
    )
    return disagreements


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm-eval-python", help="the Python of an environment that has lm-eval[math]")
    parser.add_argument("--model", help="a model directory: compares TruthfulQA alone, for this model")
    parser.add_argument("--questions", type=int, default=817, help="the first of TruthfulQA")
    parser.add_argument("--problems", type=int, default=200, help="of GSM8K and of MATH-500, each in every variant")
    parser.add_argument("--output", type=Path, help="also write every disagreement to this file, as JSON lines")
    options = parser.parse_args()
    if not options.lm_eval_python:
        sys.exit(HOW_TO_GET_LM_EVAL)
    console = Console()
    if not console.is_terminal:
        console.width = 150
    disable_progress_bar()
    questions = json.loads((data() / "truthfulqa/v1/mc_task.json").read_text(encoding="utf-8"))[: options.questions]
    problems = 0 if options.model else options.problems
    gsm8k, mathematics = gsm8k_completions(problems), math_completions(problems)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        model = options.model or str(folder / "model")
        if not options.model:
            save_model(model, [text for row in questions for text in (row["question"], *row["mc2_targets"])])
        spec = {
            "model": model,
            "truthfulqa": write_lines(folder / "truthfulqa.jsonl", [hub_row(row) for row in questions]),
        }
        if not options.model:
            spec["gsm8k"] = write_lines(folder / "gsm8k.jsonl", [c.row for c in gsm8k])
            spec["math"] = write_lines(folder / "math.jsonl", [c.row for c in mathematics])
        with console.status("lm-evaluation-harness"):
            metrics = theirs(spec, options.lm_eval_python, directory)
        with console.status("carerft evaluate"):
            records = our_choices(model, len(questions), str(folder / "run"))

    mc1, mc2 = metrics["truthfulqa_mc1"]["none/acc"], metrics["truthfulqa_mc2"]["none/acc"]
    differing = [r["problem_id"] for r, their in zip(records, mc1, strict=True) if r["mc1"] != their]
    gaps = [abs(r["mc2"] - their) for r, their in zip(records, mc2, strict=True)]
    console.print(
        f"TruthfulQA MC1: {len(records) - len(differing)} of {len(records)} agree {differing or ''}\n"
        f"TruthfulQA MC2: largest difference {max(gaps):.2g} (mean {sum(r['mc2'] for r in records) / len(records):.4f} "
        f"and {sum(mc2) / len(mc2):.4f})"
    )
    disagreements = []
    graded = () if options.model else (
        ("GSM8K, strict", Gsm8kTask("test", extraction="strict"), gsm8k, metrics["gsm8k"]["strict-match/exact_match"]),
        ("GSM8K, flexible", Gsm8kTask("test"), gsm8k, metrics["gsm8k"]["flexible-extract/exact_match"]),
        ("MATH, math_verify", MathTask("math500"), mathematics, metrics["minerva_math"]["none/math_verify"]),
        ("MATH, exact_match", MathTask("math500"), mathematics, metrics["minerva_math"]["none/exact_match"]),
    )  # fmt: skip
    for name, task, completions, metric in graded:
        disagreements += compare_verdicts(name, completions, verdicts(task, completions), metric, console)
    if options.output:
        write_lines(options.output, disagreements)
    unexplained = sum(d["why"] is None for d in disagreements) + len(differing) + sum(not gap < 1e-4 for gap in gaps)
    console.print(
        f"{unexplained} disagreements are not explained" if unexplained else "every disagreement is explained"
    )
    sys.exit(1 if unexplained else 0)


if __name__ == "__main__":
    main()
