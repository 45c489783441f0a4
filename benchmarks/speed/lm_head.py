"""The LM head's part of a training step, time and memory: ours against the plain computation and TRL's kernels.

    python benchmarks/speed/lm_head.py [--shape 3b] [--tokens 16384] [--trl-python PATH/bin/python] [--json FILE]

Each way to compute gets final hidden states and LM head weights of a policy and of a reference, both random, makes a
loss, and returns the gradients of the policy's hidden states and weight:

- plain: all logits of both by a matrix product, log_softmax, the sum over the vocabulary, automatic differentiation;
- carerft with the exact skew reverse KL, and with its estimate k3 from the sampled tokens;
- TRL's log-probability kernel, for policy and reference, with GRPO's k3; and its divergence kernel, exact reverse KL
  and JSD. The latter gives no log-probability of the sampled token: a training step needs the former besides. Both
  are Triton kernels, which on the CPU fall back to torch operations.

Ours also watches entropy and KL(policy || reference) of every token (the plain way does not), TRL's the entropy.

Each runs in a process of its own, where the **floor** is measured before and after every pass: the time of the bare
matrix products that the mathematics needs and of nothing else. These are four: logits of the policy, logits of the
reference, gradient of hidden, gradient of the weight; k3 needs them too. "x floor" is the median pass over it.

Memory is bought with more products: where the logits are not kept but made again in the backward pass, exact does 6 and
k3 does 5 (the reference's are needed only once). "x products" is the median pass over the time of as many as were
really done. Where all logits fit one chunk of ours, as at the tiny shape, they are kept, and ours does 4.

**extra** is the peak of forward and backward pass above what was allocated before (inputs), less the two gradients
that every way must return and whose size stands below the table; a peak that comes before they exist counts as much
less. On CUDA: of the allocator's bytes. On the CPU: of the resident set, by the kernel's count (Linux; left empty where
the peak cannot be reset). GB are 1e9 bytes.

Measure on an idle machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from lm_head_trl import BETA, Inputs, Loss, Work, free_bytes, measure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from carerft.objective.lm_head import CHUNK_ELEMENTS, token_statistics
from carerft.objective.regularizers import SkewReverseKL

HOW_TO_GET_TRL = """TRL's kernels are left out. They need an environment of their own; make one, and name its Python:
  python -m venv trl-venv
  trl-venv/bin/pip install torch==2.13.0
  trl-venv/bin/pip install trl==1.16.0 "transformers>=5.16.1,<5.20"
  python benchmarks/speed/lm_head.py --trl-python trl-venv/bin/python"""

VARIANTS = {
    "plain": "plain, exact SRKL",
    "exact": "carerft, exact SRKL",
    "exact-compiled": "carerft, exact SRKL, learner.compile",
    "k3": "carerft, k3",
    "trl-logprob": "TRL, log-prob, k3",
    "trl-rkl": "TRL, exact reverse KL only",
    "trl-jsd": "TRL, exact JSD only",
}
SHAPES = {
    "tiny": (256, 8192),
    "0.5b": (896, 151936),
    "1.5b": (1536, 151936),
    "3b": (2048, 151936),
    "7b": (3584, 151936),
}
LARGE = (*SHAPES["3b"], 16384)
PLAIN_BYTES = 4 * 10  # per logit, that the plain way holds at its peak: as measured at the tiny shape


def plain(given: Inputs) -> Tensor:
    log_pi = (given.hidden @ given.weight.T).float().log_softmax(-1)
    log_ref = (given.ref_hidden @ given.ref_weight.T).float().log_softmax(-1)
    log_prob = log_pi.gather(-1, given.targets[:, None]).squeeze(-1)
    return given.policy_loss(log_prob) + BETA * SkewReverseKL(alpha=0.8).divergence(log_pi, log_ref).mean()


def exact(given: Inputs, fused: bool = False) -> Tensor:
    operands = (given.hidden, given.weight, given.targets, given.ref_hidden, given.ref_weight)
    found = token_statistics(*operands, SkewReverseKL(alpha=0.8), fused=fused)
    assert found.divergence is not None
    return given.policy_loss(found.log_prob) + BETA * found.divergence.mean()


def k3(given: Inputs) -> Tensor:
    found = token_statistics(given.hidden, given.weight, given.targets, given.ref_hidden, given.ref_weight)
    assert found.ref_log_prob is not None
    penalty = SkewReverseKL(alpha=0.8, estimator="k3").estimate(found.log_prob, found.ref_log_prob, found.log_prob)
    return given.policy_loss(found.log_prob) + BETA * penalty.mean()


OURS: dict[str, Loss] = {"plain": plain, "exact": exact, "exact-compiled": partial(exact, fused=True), "k3": k3}


def lack_of_memory(work: Work) -> str | None:
    """Why the plain way is not tried, if there is too little memory for it."""
    inputs_and_gradients = 3 * 4 * work.hidden * (work.tokens + work.vocabulary)
    need = PLAIN_BYTES * work.elements + inputs_and_gradients
    room = free_bytes(work.device)
    if room is None or need < room:
        return None
    return f"not run: needs about {need / 1e9:,.0f} GB, {room / 1e9:,.0f} GB are free"


def measured(variant: str, work: Work) -> dict:
    """What `measure` returns of one of ours, or {"why_not": ..}."""
    why_not = lack_of_memory(work) if variant == "plain" else None
    return {"why_not": why_not} if why_not else measure(work, OURS[variant])


def in_a_process(variant: str, work: Work, trl_python: str | None) -> dict:
    """What `measure` returns, or {"why_not": ..}."""
    here = Path(__file__)
    spec = json.dumps({"variant": variant, "work": asdict(work)})
    if variant in OURS:
        command = [sys.executable, str(here), "--measure", spec]
    else:
        command = [str(trl_python), str(here.with_name("lm_head_trl.py")), spec]
    environment = {**os.environ, "OMP_NUM_THREADS": str(work.threads), "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"why_not": f"failed: {(done.stderr.splitlines() or [f'exit status {done.returncode}'])[-1][:200]}"}
    return json.loads(done.stdout.splitlines()[-1])


def products(variant: str, work: Work) -> int:
    """Matrix products of one pass, counted as those over all tokens and the whole vocabulary."""
    if variant in ("exact", "exact-compiled", "k3") and work.tokens <= CHUNK_ELEMENTS // work.vocabulary:
        return 4  # all logits fit a chunk and are kept
    return {"plain": 4, "exact": 6, "exact-compiled": 6, "k3": 5, "trl-logprob": 5, "trl-rkl": 6, "trl-jsd": 8}[variant]


def row(variant: str, work: Work, found: dict) -> dict:
    """The numbers of a line of the table, from what `in_a_process` has brought."""
    logits, grad_hidden, grad_weight = (statistics.median(times) for times in zip(*found["floors"], strict=True))
    time, count = statistics.median(found["seconds"]), products(variant, work)
    floor, done = (n * logits + grad_hidden + grad_weight for n in (2, count - 2))
    extra = found["extra_bytes"]
    return {
        "seconds": time,
        "floor_s": floor,
        "over_floor": time / floor,
        "products": count,
        "over_products": time / done,
        "extra_gb": None if extra is None else extra / 1e9,
        "measured": found,
    }


def table(work: Work, shape: str, rows: dict[str, dict]) -> Table:
    where = f"CPU, {work.threads} threads" if work.device == "cpu" else next(iter(rows.values()))["measured"]["device"]
    shown = Table(
        title=f"LM head, {shape}: {work.tokens:,} tokens, hidden {work.hidden:,}, vocabulary {work.vocabulary:,}, "
        f"{work.dtype}, {where}"
    )
    for name in ("", "s", "floor, s", "x floor", "products", "x products", "extra, GB"):
        shown.add_column(name, justify="right" if name else "left", no_wrap=True)
    for variant, found in rows.items():
        times = [f"{found['seconds']:.4g}", f"{found['floor_s']:.4g}", f"{found['over_floor']:.2f}"]
        extra = "" if found["extra_gb"] is None else f"{found['extra_gb']:.3f}"
        shown.add_row(VARIANTS[variant], *times, str(found["products"]), f"{found['over_products']:.2f}", extra)
        hidden, weight = (size / 1e9 for size in found["measured"]["gradient_bytes"])
        shown.caption = f"Not in extra: the gradients, hidden's {hidden:.3f} GB and the weight's {weight:.3f} GB."
    return shown


def targets(work: Work, rows: dict[str, dict]) -> list[str]:
    """What is aimed at, and whether this run reached it."""
    exact, k3 = rows.get("exact"), rows.get("k3")
    size = (work.hidden, work.vocabulary, work.tokens)
    aims = [
        ("exact: extra, GB, at 3b with 16,384 tokens", 1.5, exact["extra_gb"] if exact and size == LARGE else None),
        # each over its own floor: the machine may have been faster for one than for the other
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
    parser.add_argument("--trl-python", help="the Python of an environment that has TRL; without it only ours is run")
    parser.add_argument("--json", type=Path, help="also write the numbers, of every pass, to this file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # the process of one variant
    options = parser.parse_args()
    if options.measure:
        spec = json.loads(options.measure)
        print(json.dumps(measured(spec["variant"], Work(**spec["work"]))))
        return

    console = Console()
    if not console.is_terminal:
        console.width = 120
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
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
    load = os.getloadavg()[0]
    if load > 0.5:
        console.print(f"[yellow]The machine is not idle (load {load:.1f}): times and ratios will be off.[/]")
    rows, left_out = {}, {}
    for variant in options.variants:
        if variant not in OURS and not options.trl_python:
            continue
        with console.status(VARIANTS[variant]):
            found = in_a_process(variant, work, options.trl_python)
        if "why_not" in found:
            left_out[variant] = found["why_not"]
        else:
            rows[variant] = row(variant, work, found)

    if rows:
        console.print(table(work, shape, rows))
    for variant, why_not in left_out.items():
        console.print(f"{VARIANTS[variant]}: {why_not}", style="yellow", markup=False)
    for line in targets(work, rows):
        console.print(line, highlight=False)
    if options.json:
        machine = {"cores": os.cpu_count(), "load_before": load}
        report = {"shape": shape, "work": asdict(work), "machine": machine, "rows": rows, "left_out": left_out}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if not options.trl_python and not OURS.keys() >= set(options.variants):
        console.print(HOW_TO_GET_TRL, style="yellow", markup=False)


if __name__ == "__main__":
    main()
