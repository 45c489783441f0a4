"""Collecting batches: prompts, dynamic sampling and the overlong penalty."""

import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from helpers.collecting import (
    ENDS,
    GROUP,
    PROMPTS,
    algorithm,
    collection,
    trainer,
    word_tokenizer,
)
from helpers.configurations import settings
from helpers.runs import run

from carerft.config.settings import LearnerSettings, ModelSettings, RewardSettings
from carerft.errors import CareError, DataError, NonFiniteError, UserCodeError
from carerft.model.loading import model_path
from carerft.rollout import completion_texts
from carerft.tasks import Problem, encoding
from carerft.tasks.encoding import Prompts, encode, prompt_tokens
from carerft.training import checkpoint
from carerft.training.collector import SamplerState, planned_prompts, prompt_order
from carerft.training.rewards import Rewards
from carerft.training.trainer import Trainer

# Prompts


def test_a_training_may_ask_only_so_many_of_the_problems_in_their_shuffled_order():
    of_world = ["model=tiny", "steps=7", "rollout.prompts_per_batch=4", "learner.updates_per_batch=2", "seed=5"]
    # 7 steps of 2 a batch are 4 batches of 4 prompts, in one round each.
    assert planned_prompts(settings(*of_world), 1000) == prompt_order(1000, 5, 0, 16)
    assert planned_prompts(settings(*of_world, "learner.epochs=2"), 1000) == prompt_order(1000, 5, 0, 8)
    rounds = ["algorithm=dapo", "algorithm.dynamic_rounds=3"]
    assert planned_prompts(settings(*of_world, *rounds), 1000) == prompt_order(1000, 5, 0, 48)
    assert sorted(planned_prompts(settings(*of_world), 10)) == list(range(10))
    assert len(planned_prompts(settings(*of_world, "steps=0"), 1000)) == 4


def test_a_prompt_is_tokenised_once_when_it_is_asked_for_and_refused_by_its_problem(monkeypatch):
    read: list[str] = []
    monkeypatch.setattr(
        encoding, "encode", lambda texts, tokenizer, plain=encode: read.extend(texts) or plain(texts, tokenizer)
    )
    texts = ["w2 w3", "w4", "", "w5 w6 w7 w8", "w9 w2"]
    problems = [Problem(f"p{i}", text, None) for i, text in enumerate(texts)]
    prompts = Prompts(problems, word_tokenizer(), max_tokens=3, context=6)
    prompts.prepare([4, 0, 4])
    prompts.prepare([0, 1])
    assert read == ["w9 w2", "w2 w3", "w4"] and prompts.longest == 2
    assert [prompts[i] for i in (1, 4, 0)] == [[4], [9, 2], [2, 3]] and len(read) == 3
    with pytest.raises(DataError, match=r"problem p3 has 4 tokens, which with 3 tokens of completion exceeds .* of 6"):
        prompts[3]
    with pytest.raises(DataError, match="problem p2 is empty"):
        list(prompts)
    with pytest.raises(DataError, match="no problems"):
        Prompts([], word_tokenizer(), 1, 1)


def test_prompts_of_several_chunks_are_those_of_one(monkeypatch):
    monkeypatch.setattr(encoding, "AT_ONCE", 2)
    problems = [Problem(str(i), " ".join(f"w{2 + j}" for j in range(i + 1)), None) for i in range(5)]
    assert list(prompt_tokens(problems, word_tokenizer(), 1, 99)) == [[2 + j for j in range(i + 1)] for i in range(5)]


def test_a_batch_tokenises_its_own_prompts_alone():
    collector, learner = collection("mixed " * 20)
    collector.check_prompts = False
    collector.next(learner, last=True)
    assert (collector.prompts._lengths >= 0).sum() == PROMPTS


def test_data_are_checked_before_weights_are_loaded(tmp_path: Path, capsys):
    model = tmp_path / "model"
    shutil.copytree(model_path(ModelSettings(name="tiny", path="world")), model)
    (model / "model.safetensors").write_bytes(b"cut")
    for overrides, error in (
        (["task.max_tokens=100000"], "the prompt of problem reasoning-"),
        ([], "cannot load the model"),
    ):
        assert run(tmp_path / str(len(overrides)), f"model={model}", *overrides) == 2
        assert error in capsys.readouterr().err


# Dynamic sampling


def test_groups_that_teach_nothing_are_replaced_by_those_of_the_next_prompts():
    kinds = "mixed right wrong mixed  right mixed right wrong  mixed mixed right  mixed wrong mixed mixed mixed"
    collector, learner = collection(kinds)
    batch = collector.next(learner, last=True)
    # Round 1 keeps 2 of 4, so that 2 are missing, which 2 * 4/2 = 4 prompts promise. After round 2, 3 of 8 are kept:
    # the last one is promised by 1 * 8/3 prompts, rounded up 3. They hold two; the second is not needed.
    assert batch.problem_ids == ["0-mixed", "3-mixed", "5-mixed", "8-mixed"]
    assert collector.sampler_state == SamplerState(prompts=11, rounds=3)
    # One of four is right: mean 1/4, sample std 1/2, advantages (1 - 1/4) / (1/2) and (0 - 1/4) / (1/2).
    advantages = batch.advantages.view(PROMPTS, GROUP)
    assert torch.allclose(advantages.sort(-1).values, torch.tensor([-0.5, -0.5, -0.5, 1.5]).expand(PROMPTS, -1))
    # Prompts, completions and advantages still belong together.
    texts = completion_texts(batch.rollouts, collector.tokenizer)
    for i, problem in enumerate(batch.problem_ids):
        group = texts[i * GROUP : (i + 1) * GROUP]
        assert int(advantages[i].argmax()) == group.index(min(group))
        prompt = next(p.prompt for p in collector.problems if p.id == problem)
        tokens = batch.rollouts.prompt_tokens[i, : batch.rollouts.prompt_lengths[i]].tolist()
        assert tokens == collector.tokenizer(prompt)["input_ids"]
    # The metrics are of all that was sampled: 11 groups, of which 4 right, 2 wrong and 5 mixed, so (16 + 5) / 44.
    assert batch.metrics["rollout/rounds"] == 3
    assert batch.metrics["reward/mean"] == pytest.approx(21 / 44)
    assert batch.metrics["reward/equal_groups"] == pytest.approx(6 / 11)
    # The next batch takes up the order where this one left it.
    assert collector.next(learner, last=True).problem_ids == ["11-mixed", "13-mixed", "14-mixed", "15-mixed"]


def test_what_functions_log_is_of_all_rounds_and_a_batch_that_failed_in_a_later_one_is_sampled_anew(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "def score(completions, grades, log_metric, trainer_state, **columns):\n"
        "    log_metric('completions', len(completions))\n"
        f"    if len(completions) == 8 and Path({str(tmp_path / 'fail')!r}).exists(): 1 / 0\n"
        "    return [grade.correct for grade in grades]\n"
    )
    collector, learner = collection("mixed mixed mixed right  mixed right")
    collector.rewards = Rewards(RewardSettings([f"{tmp_path}/mine.py:score"]))
    (tmp_path / "fail").touch()  # in the second round, of fewer completions
    with pytest.raises(UserCodeError):
        collector.next(learner, last=True)
    assert collector.sampler_state == SamplerState()
    (tmp_path / "fail").unlink()
    batch = collector.next(learner, last=True)
    assert batch.problem_ids == ["0-mixed", "1-mixed", "2-mixed", "4-mixed"]
    # Rounds of 4 and 2 prompts, each completion of which says how many its round has: 16 or 8.
    assert batch.metrics["reward/completions"] == pytest.approx((16 * 16 + 8 * 8) / (16 + 8))


def test_a_batch_that_is_full_at_once_takes_one_round():
    collector, learner = collection("mixed mixed mixed mixed right right")
    assert len(collector.next(learner, last=True).problem_ids) == PROMPTS and collector.sampler_state == SamplerState(
        prompts=4, rounds=1
    )


def test_without_dynamic_sampling_every_group_is_kept():
    collector, learner = collection("right wrong silent right mixed", algorithm(dynamic_sampling=False))
    batch = collector.next(learner, last=True)
    assert batch.problem_ids == ["0-right", "1-wrong", "2-silent", "3-right"]
    assert torch.equal(batch.advantages, torch.zeros(PROMPTS * GROUP))
    assert collector.sampler_state == SamplerState(prompts=4, rounds=1) and batch.metrics["rollout/rounds"] == 1


def test_a_batch_without_any_reward_is_warned_of(caplog):
    for kinds, warned in (("silent silent silent silent", True), ("silent silent silent gap", False)):
        caplog.clear()
        collector, learner = collection(kinds, algorithm(dynamic_sampling=False))
        metrics = collector.next(learner, last=True).metrics
        assert ("no completion of this batch has a reward" in caplog.text) == warned
        assert math.isnan(metrics["reward/mean"]) == math.isnan(metrics["reward/std"]) == warned


def test_equal_rewards_have_no_advantage_where_the_epsilon_is_zero_too():
    collector, learner = collection("right wrong silent mixed", algorithm(dynamic_sampling=False, advantage_eps=0.0))
    advantages = collector.next(learner, last=True).advantages.view(PROMPTS, GROUP)
    assert torch.equal(advantages[:3], torch.zeros(3, GROUP))
    assert torch.allclose(advantages[3].sort().values, torch.tensor([-0.5, -0.5, -0.5, 1.5]))


def test_the_last_round_that_is_allowed_may_fill_the_batch():
    collector, learner = collection("right " * 4 + "mixed " * 4, algorithm(dynamic_rounds=2))
    assert collector.next(learner, last=True).problem_ids == ["4-mixed", "5-mixed", "6-mixed", "7-mixed"]


def test_too_few_groups_are_an_error_that_names_counts_and_remedy():
    collector, learner = collection("mixed " + "right " * 19, algorithm(dynamic_rounds=3))
    with pytest.raises(CareError) as raised:
        collector.next(learner, last=True)
    assert "found 1 of the 4 prompts of a batch in 3 rounds" in raised.value.what
    assert "of 12 prompts" in raised.value.what
    for key in ("algorithm.dynamic_rounds", "algorithm.group_size", "algorithm.dynamic_shortage=smaller"):
        assert key in raised.value.remedy
    assert collector.sampler_state == SamplerState(prompts=12, rounds=3)  # no round more than allowed


def test_a_smaller_batch_holds_what_was_found():
    collector, learner = collection(
        "wrong mixed right right  mixed right right right", algorithm(dynamic_rounds=2, dynamic_shortage="smaller")
    )
    batch = collector.next(learner, last=True)
    assert batch.problem_ids == ["1-mixed", "4-mixed"] and batch.metrics["rollout/rounds"] == 2
    assert batch.rollouts.tokens.shape[0] == batch.advantages.shape[0] == 2 * GROUP


@pytest.mark.parametrize("shortage", ["error", "smaller"])
def test_an_empty_batch_is_never_made(shortage: str):
    collector, learner = collection("right wrong silent right", algorithm(dynamic_rounds=1, dynamic_shortage=shortage))
    with pytest.raises(CareError, match="found 0 of the 4 prompts"):
        collector.next(learner, last=True)


def test_groups_need_two_verdicts_that_differ():
    collector, learner = collection("lone gap mixed mixed  silent mixed right")
    batch = collector.next(learner, last=True)
    # Round 1 keeps 3 of 4: the last one is promised by 1 * 4/3 prompts, rounded up 2.
    assert batch.problem_ids == ["1-gap", "2-mixed", "3-mixed", "5-mixed"] and collector.sampler_state == SamplerState(
        6, 2
    )
    # A gap's three verdicts are 1, 0, 0: mean 1/3, sample std sqrt(1/3); what has no verdict has advantage 0.
    expected = torch.tensor([-(3**0.5) / 3, -(3**0.5) / 3, 0.0, 2 * 3**0.5 / 3])
    assert torch.allclose(batch.advantages.view(PROMPTS, GROUP)[0].sort().values, expected)
    # Of 24 completions, 3 of the lone, 1 of the gap and 4 of the silent have no verdict; every other group has 1 right.
    assert batch.metrics["reward/no_verdict"] == pytest.approx(8 / 24)
    assert batch.metrics["reward/mean"] == pytest.approx(5 / 16)


def test_parts_share_out_the_prompts():
    collector, learner = collection("mixed " * 5, prompts_per_batch=5)
    batch = collector.next(learner, last=True)
    assert batch.parts(2) == [slice(0, 2), slice(2, 5)]
    assert batch.parts(5) == batch.parts(9) == [slice(i, i + 1) for i in range(5)]


@pytest.mark.parametrize("epochs", [1, 2])
def test_smaller_batches_make_fewer_steps_and_the_run_all_of_its_own(epochs: int, tmp_path: Path):
    """Batches of one prompt, three, and one, at two updates for each: 1 + 2 + 1 steps, as often as there are epochs."""
    kinds = "right mixed right right  mixed mixed wrong mixed  right right mixed wrong"
    collector, learner = collection(kinds, algorithm(dynamic_rounds=1, dynamic_shortage="smaller"))
    run, seen = trainer(tmp_path, collector, learner, steps=4 * epochs, epochs=epochs), []

    def on_step(metrics: dict[str, float]) -> None:
        seen.append((run.source.sampler_state.rounds, run.progress.batch, metrics))

    assert run.run(on_step, lambda: False)
    assert [metrics["step"] for _, _, metrics in seen] == list(range(1, 4 * epochs + 1))
    assert [rounds for rounds, _, _ in seen] == [1] * epochs + [2, 2] * epochs + [3] * epochs
    assert all(metrics["learner/grad_norm"] > 0 for _, _, metrics in seen)
    batch = seen[epochs][1]
    assert batch.problem_ids == ["4-mixed", "5-mixed", "7-mixed"]
    # Of the three prompts the first step learns one and the second two.
    learned = [round(m["throughput/learned_tokens_per_s"] * m["time/learn_s"]) for _, _, m in seen]
    lengths = batch.rollouts.lengths
    assert learned[epochs : epochs + 2] == [int(lengths[:GROUP].sum()), int(lengths[GROUP:].sum())]


def test_after_a_shortage_the_same_command_goes_on_with_further_prompts(tmp_path: Path):
    kinds = "right mixed right right  mixed mixed mixed mixed"
    run = trainer(tmp_path, *collection(kinds, algorithm(dynamic_rounds=1)), steps=1)
    with pytest.raises(CareError, match="found 1 of the 4"):
        run.run(lambda metrics: None, lambda: False)
    again = trainer(tmp_path, *collection(kinds, algorithm(dynamic_rounds=1)), steps=1)
    assert again.resume() == 0
    assert again.run(lambda metrics: None, lambda: False)
    assert again.progress.batch.problem_ids == ["4-mixed", "5-mixed", "6-mixed", "7-mixed"]


def test_sampling_from_diverged_weights_leaves_the_last_good_checkpoint(tmp_path: Path):
    """Only a shortage is worth a checkpoint: weights that cannot be sampled from would push out a good one."""
    settings = LearnerSettings(1e-3, updates_per_batch=1, checkpoint_every=1, keep_checkpoints=1)
    collector, learner = collection("mixed " * 12)
    assert Trainer(learner, collector, collector.tokenizer, settings, 1, tmp_path).run(lambda _: None, lambda: False)
    collector, learner = collection("mixed " * 12)
    later = Trainer(learner, collector, collector.tokenizer, replace(settings, checkpoint_every=9), 9, tmp_path)
    assert later.resume() == 1
    # The second step leaves weights that give no probabilities.
    learner.settings = replace(learner.settings, learning_rate=1e30)
    with pytest.raises(NonFiniteError, match="sampling met probabilities that are not finite"):
        later.run(lambda metrics: None, lambda: False)
    assert later.progress.step == 2
    assert checkpoint.steps_of(tmp_path / "checkpoints") == [1]


def test_checkpoints_come_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each step takes four minutes: ten have passed after the third and the sixth; the last has its own."""
    now = [0.0]
    monkeypatch.setattr(
        "carerft.training.trainer.time", SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    )
    settings = LearnerSettings(1e-3, updates_per_batch=1, keep_checkpoints=9)
    collector, learner = collection("mixed " * 28)

    def later(_: dict[str, float]) -> None:
        now[0] += 240

    assert Trainer(learner, collector, collector.tokenizer, settings, 7, tmp_path).run(later, lambda: False)
    assert checkpoint.steps_of(tmp_path / "checkpoints") == [3, 6, 7]


@pytest.mark.parametrize(
    ("device", "chosen", "aside"), [("cpu", None, False), ("cuda", None, True), ("cpu", True, True)]
)
def test_on_a_gpu_checkpoints_are_written_aside(device: str, chosen: bool | None, aside: bool, tmp_path: Path):
    learner = Mock(policy=Mock(device=torch.device(device)))
    made = Trainer(learner, Mock(), Mock(), LearnerSettings(1e-3, async_checkpoints=chosen), 1, tmp_path)
    assert (made._checkpoints._thread is not None) == aside


# The overlong penalty

# A share of 1 makes a completion's reward fall from its first token on, by 1/2 * n/8 with n of at most 8 tokens.
OVERLONG = {"overlong_buffer": 1.0, "overlong_penalty": 0.5}


def test_the_penalty_is_taken_off_the_rewards_before_advantages():
    collector, learner = collection("mixed right wrong gap", algorithm(dynamic_sampling=False, **OVERLONG), ends=ENDS)
    batch = collector.next(learner, last=True)
    lengths = batch.rollouts.lengths.tolist()
    texts = completion_texts(batch.rollouts, collector.tokenizer)
    problems = [p for name in batch.problem_ids for p in collector.problems if p.id == name for _ in range(GROUP)]
    grades = collector.task.grade(problems, texts)
    for i in range(PROMPTS):
        members = range(i * GROUP, (i + 1) * GROUP)
        shaped = {j: grades[j].correct - 0.5 * lengths[j] / 8 for j in members if grades[j].correct is not None}
        for j in members:
            there = j in shaped and len(set(shaped.values())) > 1
            values = shaped.values()
            expected = (shaped[j] - mean(values)) / (stdev(values) + 1e-6) if there else 0.0
            assert batch.advantages[j].item() == pytest.approx(expected, abs=1e-5)
    assert batch.metrics["reward/overlong_penalty"] == pytest.approx(mean(0.5 * n / 8 for n in lengths))
    verdicts = [float(g.correct) for g in grades if g.correct is not None]
    assert batch.metrics["reward/mean"] == pytest.approx(mean(verdicts))  # the verdicts, whatever the penalty


def test_groups_that_differ_by_the_penalty_alone_are_dropped():
    kinds = "right wrong mixed right  mixed mixed mixed wrong"
    collector, learner = collection(kinds, algorithm(dynamic_sampling=False, **OVERLONG), ends=ENDS)
    kept = collector.next(learner, last=True).advantages.view(PROMPTS, GROUP)
    assert (kept.abs().amax(-1) > 0.1).all()  # without dynamic sampling all four would teach, three of them length
    collector, learner = collection(kinds, algorithm(**OVERLONG), ends=ENDS)
    assert collector.next(learner, last=True).problem_ids == ["2-mixed", "4-mixed", "5-mixed", "6-mixed"]
