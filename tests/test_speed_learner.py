"""What benchmarks/speed/learner.py counts and weighs: its invented rollouts, its formula, its stages."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from carerft.planning.shapes import shape_from

HERE = Path(__file__).parents[1] / "benchmarks" / "speed"
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "model_type": "qwen2",
}

sys.path[:0] = [str(HERE), str(HERE.parent / "gpu")]  # the scripts import each other as neighbours
import figures  # noqa: E402
import learner_ours  # noqa: E402
import learner_trl  # noqa: E402
import learner_work  # noqa: E402

sys.path.remove(str(HERE))
sys.path.remove(str(HERE.parent / "gpu"))


@pytest.fixture
def work(monkeypatch):
    monkeypatch.setattr(learner_work, "LONGEST_COMPLETION", 40)
    monkeypatch.setitem(learner_work.CONFIGS, "small", SMALL)
    return learner_work.Work("small", "cpu", "float32", 4096, 4, 2, False, steps=1, warmup=0, seed=3, threads=1)


def test_rollouts_have_the_lengths_of_reasoning_and_the_seed_decides_them():
    rollouts = learner_work.synthetic_rollouts(4096, 8, 1000, seed=0)
    assert rollouts.group_size == 8
    # The standard error of the median of 4,096 draws: 600 (1 +- 1.25 x 0.7 / 64); of 512 prompts 150 (1 +- 0.017).
    assert rollouts.lengths.float().median() == pytest.approx(600, rel=0.05)
    assert rollouts.prompt_lengths.float().median() == pytest.approx(150, rel=0.06)
    assert rollouts.lengths.max() == 3072 and rollouts.lengths.min() >= 1
    # log-normal beyond 3,072: P(z > log(3072 / 600) / 0.7) = 1.0%
    assert 0.003 < (~rollouts.finished).float().mean() < 0.02
    assert rollouts.finished.logical_not().equal(rollouts.lengths == 3072)
    mask = rollouts.mask()
    assert rollouts.tokens.shape == rollouts.log_probs.shape == mask.shape == (4096, 3072)
    assert not rollouts.tokens[~mask].any() and not rollouts.log_probs[~mask].any()
    assert rollouts.log_probs[mask].exp().mean() == pytest.approx(1 / 1000)
    again, other = (learner_work.synthetic_rollouts(16, 8, 1000, seed) for seed in (0, 1))
    assert again.tokens.equal(learner_work.synthetic_rollouts(16, 8, 1000, 0).tokens)
    assert not again.lengths.equal(other.lengths)


def test_the_formula_counts_the_products_that_a_model_does():
    """Eager attention does both of its products for all L x L pairs of tokens; only half of these are needed."""
    shape, length = shape_from(SMALL), 37
    policy = Qwen2ForCausalLM(Qwen2Config(**SMALL, attn_implementation="eager"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy(torch.zeros(1, length, dtype=torch.int64))
    counts = counter.get_flop_counts()
    angles = counts.get("Qwen2ForCausalLM.model.rotary_emb", {})  # a product in some versions of transformers
    done = {str(kind): count - angles.get(kind, 0) for kind, count in counts["Global"].items()}
    attention = done.pop("aten.bmm")
    assert attention == 2 * (2 * shape.queries * length**2) * shape.layers

    rollouts = learner_work.synthetic_rollouts(1, 1, 50, seed=0)
    rollouts.prompt_lengths[:], rollouts.lengths[:] = 7, 30  # 37 in all; the head is only for the completion's
    head = 2 * shape.head
    useful = sum(done.values()) + attention / 2 - head * 7
    assert learner_work.useful_flops(shape, rollouts, 1) == useful
    assert learner_work.useful_flops(shape, rollouts, 4) == 4 * useful


def test_a_prompt_counts_once_however_many_completions_it_has():
    shape = shape_from(SMALL)
    one, two = (learner_work.synthetic_rollouts(n, n, 50, seed=0) for n in (1, 2))
    for rollouts in (one, two):
        rollouts.prompt_lengths[:], rollouts.lengths[:] = 7, 30
    assert learner_work.real_tokens(one) == 37 and learner_work.real_tokens(two) == 67
    prompt = learner_work.forward(shape, 7, 7)
    counted = [learner_work.useful_flops(shape, rollouts, 1) for rollouts in (one, two)]
    assert counted[1] - prompt == 2 * (counted[0] - prompt)


def test_peaks_are_those_of_the_plan_and_only_of_the_modules_it_means():
    assert learner_work.peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert learner_work.peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12
    assert learner_work.peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert learner_work.peak_flops("NVIDIA GeForce RTX 3090", "bfloat16") is None


@pytest.mark.parametrize("penalty", ["none", "k3", "exact"])
def test_a_step_is_taken_apart_into_all_of_its_stages_and_tensors(work, penalty):
    rollouts, regularizer = work.rollouts(), learner_ours.PENALTIES[penalty]
    learner = learner_ours.build(work, regularizer)
    with learner_ours.stages(learner, "cpu") as found:
        learner.step(rollouts, torch.tensor([1.0, -1.0, 1.0, -1.0]))
    wanted = {"body, forward", "head, forward", "head, backward", "body, backward", "optimizer"}
    assert set(found["seconds"]) == wanted | ({"reference, forward"} if regularizer.needs_reference else set())
    assert min(found["seconds"].values()) > 0
    assert found["read"] >= learner_work.real_tokens(rollouts) - len(rollouts.lengths)  # no need to read the last
    resident, weights = learner_ours.resident_bytes(learner, found["gradients"]), 4 * work.sizes.parameters
    assert resident["weights"] == resident["gradients"] == weights
    assert resident["reference"] == (weights if regularizer.needs_reference else 0)
    assert 2 * weights <= resident["moments"] < 2.05 * weights  # and a count of steps for each tensor
    before = dict(found["seconds"])
    learner.step(rollouts, torch.tensor([1.0, -1.0, 1.0, -1.0]))  # outside the block nothing is watched any more
    assert found["seconds"] == before


def test_what_cannot_fit_is_said_before_it_is_made(work, monkeypatch):
    monkeypatch.setattr(learner_ours, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(learner_ours, "build", None)
    large = learner_work.Work("7b", "cpu", "bfloat16", 4096, 4, 2, True, steps=1, warmup=0, seed=3, threads=1)
    with pytest.raises(learner_ours.DoesNotFitError, match=r"weights 30\.5 \+ reference 30\.5 \+ gradients 30\.5"):
        learner_ours.measure(large, "exact", "step")


def test_trl_is_given_the_same_tokens_with_prompts_padded_on_the_left():
    given = {
        "prompt_tokens": torch.tensor([[5, 6, 7], [8, 0, 0]]),
        "prompt_lengths": torch.tensor([3, 1]),
        "tokens": torch.tensor([[1, 2], [3, 0], [4, 0], [5, 6]]),
        "lengths": torch.tensor([2, 1, 1, 2]),
        "advantages": torch.zeros(4),
    }
    found = learner_trl.padded(given, group_size=2)
    assert found["prompt_ids"].tolist() == [[5, 6, 7], [5, 6, 7], [0, 0, 8], [0, 0, 8]]
    assert found["prompt_mask"].tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 1]]
    assert found["completion_ids"].equal(given["tokens"])
    assert found["completion_mask"].tolist() == [[1, 1], [1, 0], [1, 0], [1, 1]]
    assert found["num_items_in_batch"] == 6
    # 64 rows of 3,222 tokens: 5 fit 16,384, and 4 divide 64; a row that is too long goes alone
    assert learner_trl.rows_per_microbatch(64, 3222, 16384) == 4
    assert learner_trl.rows_per_microbatch(64, 20000, 16384) == 1


def test_the_promised_figures_of_a_gpu_and_their_targets():
    def step(seconds: float, mfu: float, peak_gb: float) -> dict[str, Any]:
        work = learner_work.Work("3b", "cuda", "bfloat16", 16384, 64, 8, True, steps=2, warmup=1, seed=0, threads=1)
        measured = {"device": "NVIDIA H100 80GB HBM3"}
        one = {"step_s": seconds, "tokens_per_s": 1.0, "mfu": mfu, "peak_gb": peak_gb, "measured": measured}
        return {"work": vars(work), **one}

    sections = {
        "right": {"found": [{"case": "attention", "right": True}, {"case": "learner", "right": False}]},
        "learner": {
            "found": [
                {"system": "carerft, k3", **step(4.0, 0.3, 60)},
                {"system": "carerft, exact SRKL", **step(8.0, 0.2, 76)},
            ]
        },
        "compiled": {"found": [{"system": "carerft, exact SRKL", **step(5.0, 0.4, 70)}]},
        "head": {"skipped": "10 s are left, 40 are needed"},
    }
    found = {one["figure"]: (one["value"], one["reached"]) for one in figures.figures(sections, toy=False)}
    assert found["cases in which the learner is right, share"] == (0.5, False)
    assert found["learner: exact SRKL over k3, time"] == (2.0, False)
    assert found["learner: learner.compile, share of the time saved"] == (0.375, None)
    assert found["learner, exact SRKL, eager: MFU"] == (0.2, None)
    assert found["learner, exact SRKL, compiled: MFU"] == (0.4, True)
    assert [found[f"learner, exact SRKL, {name}: peak, GB"][1] for name in ("eager", "compiled")] == [False, True]
    # Of the plan: 12 and 4 bytes a weight, of a reference 2 or 4; and by learning_flops over the data sheet's peak.
    assert 60 < found["learner, exact SRKL, eager: peak by plan, GB"][0] < 75
    shares = [found[f"learner, exact SRKL, {name}: learn_share"][0] for name in ("eager", "compiled")]
    assert shares[1] == pytest.approx(1.6 * shares[0]) and 0 < shares[0] < 1
    assert not any("head" in name for name in found)
    assert {one["reached"] for one in figures.figures(sections, toy=True)} == {None}


def test_a_section_that_takes_too_long_ends_with_all_that_it_started_and_keeps_what_it_printed(tmp_path):
    child = f"import pathlib, time; pathlib.Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(600)"
    program = f"""
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}])
while not pathlib.Path({str(tmp_path / "begun")!r}).exists():
    pass
print('{{"case": "one", "child": %d}}' % child.pid, flush=True)
child.wait()
"""
    found = figures.run(figures.Section([], ["-c", program], 0), cpu=True, patience=15)
    line = found["found"]
    assert found["status"] == -signal.SIGKILL and line["case"] == "one"
    psutil.wait_procs([p for p in psutil.process_iter() if p.pid == line["child"]], timeout=60)
    assert not psutil.pid_exists(line["child"]) or psutil.Process(line["child"]).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow  # tests/test_learner.py and others have its cases
def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path):
    command = [HERE.parent / "gpu.sh", tmp_path / "gpu.json", "--cpu", "--only", "right"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHON": sys.executable})
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [one["value"] for one in report["figures"]] == [1.0] and len(report["sections"]["right"]["found"]) == 14
