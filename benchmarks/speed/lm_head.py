"""The LM head's part of a training step, time and memory: ours against the plain computation and TRL's kernels.

    python benchmarks/speed/lm_head.py [--shape 3b] [--tokens 16384] [--trl-python PATH/bin/python] [--json FILE]

Each variant is inputs random final hidden states and LM head weights of a policy and of a reference, computes a loss,
and returns the gradients of the policy's hidden states and weight:

- plain: all logits of both models by matrix products, log_softmax, the sum over the vocabulary, autograd;
- carerft with the exact skew reverse KL, and with its estimate k3 from the sampled tokens;
- TRL's log-probability kernel, for policy and reference, with GRPO's k3; and its divergence kernel, for exact reverse
  KL and JSD. The divergence kernel returns no log-probability of the sampled token, so that a training step needs the
  other kernel as well. Both are Triton kernels, which on the CPU fall back to torch operations.

Ours also computes entropy and KL(policy || reference) of every token; TRL's also the entropy; plain neither.

Each variant runs in a process of its own, which measures the **floor** before and after every pass: the time of the
four matrix products that the mathematics needs, which are the policy's logits, the reference's logits, the gradient of
hidden and the gradient of the weight. k3 needs the same four. "x floor" is the median pass over the floor.

Saving memory costs further products: if the logits are not kept but computed again in the backward pass, exact does 6
products and k3 does 5 (the reference's logits are needed only once). "x products" is the median pass over the time of
the products that the variant does. If all logits fit into one chunk of ours, as at the tiny shape, they are kept, and
ours does 4.

**extra** is the peak during forward and backward pass, less what was allocated before (the inputs), and less the two
gradients that every variant must return; the line below the table has their size. On CUDA the peak is the allocator's.
On the CPU it is the peak of the resident set by the kernel's count (Linux; empty where it cannot be reset). GB are 1e9
bytes.

Measure on an idle machine.
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from launch import device_named, how_to_get_trl, load_average, make_console, make_table, run
from learner_work import CONFIGS
from lm_head_trl import Inputs, Loss, Work, measure
from measuring import BETA, free_bytes
from rich.table import Table
from torch import Tensor

from carerft.objective.lm_head import CHUNK_ELEMENTS, token_statistics
from carerft.objective.regularizers import SkewReverseKL

VARIANTS = {
    "plain": "plain, exact SRKL",
    "exact": "carerft, exact SRKL",
    "exact-compiled": "carerft, exact SRKL, learner.compile",
    "k3": "carerft, k3",
    "trl-logprob": "TRL, log-prob, k3",
    "trl-rkl": "TRL, exact reverse KL only",
    "trl-jsd": "TRL, exact JSD only",
}
SHAPES = {name: (config["hidden_size"], config["vocab_size"]) for name, config in CONFIGS.items()}
LARGE = (*SHAPES["3b"], 16384)
PLAIN_BYTES = 4 * 10  # per logit, at the peak of the plain variant: measured at the tiny shape


def plain(inputs: Inputs) -> Tensor:
    log_pi = (inputs.hidden @ inputs.weight.T).float().log_softmax(-1)
    log_ref = (inputs.ref_hidden @ inputs.ref_weight.T).float().log_softmax(-1)
    log_prob = log_pi.gather(-1, inputs.targets[:, None]).squeeze(-1)
    return inputs.policy_loss(log_prob) + BETA * SkewReverseKL(alpha=0.8).divergence(log_pi, log_ref).mean()


def exact(inputs: Inputs, fused: bool = False) -> Tensor:
    operands = (inputs.hidden, inputs.weight, inputs.targets, inputs.ref_hidden, inputs.ref_weight)
    statistics = token_statistics(*operands, SkewReverseKL(alpha=0.8), fused=fused)
    assert statistics.divergence is not None
    return inputs.policy_loss(statistics.log_prob) + BETA * statistics.divergence.mean()


def k3(inputs: Inputs) -> Tensor:
    tokens = token_statistics(inputs.hidden, inputs.weight, inputs.targets, inputs.ref_hidden, inputs.ref_weight)
    assert tokens.ref_log_prob is not None
    penalty = SkewReverseKL(alpha=0.8, estimator="k3").estimate(tokens.log_prob, tokens.ref_log_prob, tokens.log_prob)
    return inputs.policy_loss(tokens.log_prob) + BETA * penalty.mean()


OURS: dict[str, Loss] = {"plain": plain, "exact": exact, "exact-compiled": partial(exact, fused=True), "k3": k3}


def lack_of_memory(work: Work) -> str | None:
    """Why the plain variant is not measured, if there is too little memory for it."""
    inputs_and_gradients = 3 * 4 * work.hidden * (work.tokens + work.vocabulary)
    needed = PLAIN_BYTES * work.elements + inputs_and_gradients
    free = free_bytes(work.device)
    if free is None or needed < free:
        return None
    return f"not measured: it needs about {needed / 1e9:,.0f} GB, {free / 1e9:,.0f} GB are free"


def measured(variant: str, work: Work) -> dict:
    """The result of `measure` for one of ours, or {"why_not": ..}."""
    why_not = lack_of_memory(work) if variant == "plain" else None
    return {"why_not": why_not} if why_not else measure(work, OURS[variant])


def in_a_process(variant: str, work: Work, trl_python: str | None) -> dict:
    """The result of `measure`, or {"why_not": ..}."""
    here = Path(__file__)
    spec = json.dumps({"variant": variant, "work": asdict(work)})
    if variant in OURS:
        return run([sys.executable, str(here), "--measure", spec], work.threads)
    return run([str(trl_python), str(here.with_name("lm_head_trl.py")), spec], work.threads)


def products(variant: str, work: Work) -> int:
    """The number of matrix products of one pass, each over all tokens and all of the vocabulary."""
    if variant in ("exact", "exact-compiled", "k3") and work.tokens <= CHUNK_ELEMENTS // work.vocabulary:
        return 4  # all logits fit a chunk and are kept
    return {"plain": 4, "exact": 6, "exact-compiled": 6, "k3": 5, "trl-logprob": 5, "trl-rkl": 6, "trl-jsd": 8}[variant]


def row(variant: str, work: Work, measurement: dict) -> dict:
    """The numbers of a row of the table, from the result of `measure`."""
    logits, grad_hidden, grad_weight = (statistics.median(times) for times in zip(*measurement["floors"], strict=True))
    time, count = statistics.median(measurement["seconds"]), products(variant, work)
    floor, all_products = (n * logits + grad_hidden + grad_weight for n in (2, count - 2))
    extra = measurement["extra_bytes"]
    return {
        "seconds": time,
        "floor_s": floor,
        "over_floor": time / floor,
        "products": count,
        "over_products": time / all_products,
        "extra_gb": None if extra is None else extra / 1e9,
        "measured": measurement,
    }


def show(work: Work, shape: str, rows: dict[str, dict]) -> Table:
    where = f"CPU, {work.threads} threads" if work.device == "cpu" else next(iter(rows.values()))["measured"]["device"]
    title = f"LM head, {shape}: {work.tokens:,} tokens, hidden {work.hidden:,}, vocabulary {work.vocabulary:,}, "
    columns = ["", "s", "floor, s", "x floor", "products", "x products", "extra, GB"]
    table = make_table(f"{title}{work.dtype}, {where}", columns)
    for variant, one in rows.items():
        times = [f"{one['seconds']:.4g}", f"{one['floor_s']:.4g}", f"{one['over_floor']:.2f}"]
        extra = "" if one["extra_gb"] is None else f"{one['extra_gb']:.3f}"
        table.add_row(VARIANTS[variant], *times, str(one["products"]), f"{one['over_products']:.2f}", extra)
        hidden, weight = (size / 1e9 for size in one["measured"]["gradient_bytes"])
        table.caption = f"Not in extra: the gradients, hidden's {hidden:.3f} GB and the weight's {weight:.3f} GB."
    return table


def targets(work: Work, rows: dict[str, dict]) -> list[str]:
    """Each target, and whether this run reached it."""
    exact, k3 = rows.get("exact"), rows.get("k3")
    size = (work.hidden, work.vocabulary, work.tokens)
    aims = [
        ("exact: extra, GB, at 3b with 16,384 tokens", 1.5, exact["extra_gb"] if exact and size == LARGE else None),
        # Each time over its own floor, because the machine may have been faster for one of them.
        ("exact: x the time of k3", 1.5, exact["over_floor"] / k3["over_floor"] if exact and k3 else None),
        ("exact: x floor, on a GPU", 1.3, exact["over_floor"] if exact and work.device == "cuda" else None),
    ]
    return [
        f"{name}: at most {limit}: "
        + ("not measured here" if value is None else f"{value:.2f}, {'reached' if value <= limit else 'not reached'}")
        for name, limit, value in aims
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--shape", choices=SHAPES, help="of the model's head; default tiny on a CPU, 3b on a GPU")
    parser.add_argument("--tokens", type=int, help="default 2048 at the tiny shape, 16384 at the others")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default all")
    parser.add_argument("--trl-python", help="the Python of an environment that has TRL; without it, only ours runs")
    parser.add_argument("--json", type=Path, help="also write the numbers of every pass to this file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # in the process of one variant
    options = parser.parse_args()
    if options.measure:
        spec = json.loads(options.measure)
        print(json.dumps(measured(spec["variant"], Work(**spec["work"]))))
        return

    console, device = make_console(120), device_named(options.device)
    shape = options.shape or ("tiny" if device == "cpu" else "3b")
    work = Work(
        device=device,
        dtype=options.dtype or ("float32" if device == "cpu" else "bfloat16"),
        hidden=SHAPES[shape][0],
        vocabulary=SHAPES[shape][1],
        tokens=options.tokens or (2048 if shape == "tiny" else 16384),
        threads=options.threads,
        repeats=options.repeats,
        warmup=options.warmup,
    )
    load = load_average(console)
    rows, left_out = {}, {}
    for variant in options.variants:
        if variant not in OURS and not options.trl_python:
            continue
        with console.status(VARIANTS[variant]):
            measurement = in_a_process(variant, work, options.trl_python)
        if "why_not" in measurement:
            left_out[variant] = measurement["why_not"]
        else:
            rows[variant] = row(variant, work, measurement)

    if rows:
        console.print(show(work, shape, rows))
    for variant, why_not in left_out.items():
        console.print(f"{VARIANTS[variant]}: {why_not}", style="yellow", markup=False)
    for line in targets(work, rows):
        console.print(line, highlight=False)
    if options.json:
        machine = {"cores": os.cpu_count(), "load_before": load}
        report = {"shape": shape, "work": asdict(work), "machine": machine, "rows": rows, "left_out": left_out}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if not options.trl_python and not OURS.keys() >= set(options.variants):
        console.print(how_to_get_trl(Path(__file__).name), style="yellow", markup=False)


if __name__ == "__main__":
    main()
