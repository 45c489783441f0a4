"""Runs of every algorithm through the command line, and strengths that move over a run."""

import json
from pathlib import Path

import pytest

from carerft import cli
from carerft.objective.regularizers import (
    ForwardKL,
    JensenShannon,
    NoRegularizer,
    Regularizer,
    ReverseKL,
    SkewReverseKL,
)
from carerft.objective.schedules import scheduled

GROUP, MAX_TOKENS = 4, 24  # the world's completions have at most 24 tokens
SMALL = [
    "model=tiny", "rollout.prompts_per_batch=8", f"algorithm.group_size={GROUP}", "benchmark=none", "tracker=none",
]  # fmt: skip


def run(directory: Path, *overrides: str) -> list[dict]:
    """The metrics of each step."""
    assert cli.main(["train", *SMALL, *overrides, f'hydra.run.dir="{directory}"']) == 0
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


# The first step of a batch is on-policy: every ratio is 1 and nothing is clipped, so that algorithms which sample the
# same batch differ by their advantages and weights alone. The second step is off-policy.


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> dict[str, list[dict]]:
    """Of each algorithm two steps without a penalty, on the two halves of one batch, which all but DAPO share."""
    directory = tmp_path_factory.mktemp("algorithms")

    def two(name: str, *overrides: str) -> list[dict]:
        return run(directory / name, "steps=2", "regularizer=none", *overrides)

    found = {name: two(name, f"algorithm={name}") for name in ("grpo", "gspo", "dapo", "dr_grpo", "rloo")}
    for sign in ("positive", "negative"):
        found[sign] = two(sign, "algorithm=grpo", f"algorithm.polarity={sign}")
    return found


@pytest.mark.parametrize("name", ["grpo", "gspo", "dapo", "dr_grpo", "rloo", "positive", "negative"])
def test_a_run_learns(name: str, steps: dict[str, list[dict]]):
    first, second = steps[name]
    assert (first["step"], second["step"]) == (1, 2)
    assert first["learner/grad_norm"] > 0 and first["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert first["policy/clip_fraction"] == 0 and second["policy/ratio_max"] > 1.001  # the first step moved the policy
    shared = [key for key in first if key.startswith(("reward/", "rollout/"))]
    assert [first[key] for key in shared] == [second[key] for key in shared]  # one batch
    if name != "dapo":
        assert [first[key] for key in shared] == [steps["grpo"][0][key] for key in shared]


def test_gspo_is_grpo_on_policy_and_clips_much_closer_off_policy(steps: dict[str, list[dict]]):
    # A completion's ratio has the gradient sum_t grad log pi_t / |o| on each of its |o| tokens, of weight 1/|o|.
    assert steps["gspo"][0]["learner/grad_norm"] == pytest.approx(steps["grpo"][0]["learner/grad_norm"], rel=1e-4)
    assert steps["gspo"][1]["policy/clip_fraction"] > steps["grpo"][1]["policy/clip_fraction"]


def test_rloo_is_dr_grpo_times_a_number_on_policy(steps: dict[str, list[dict]]):
    # A leave-one-out advantage is 4/3 times the distance from the mean of four, and a sum is 24 times a 24th of it: 32.
    assert GROUP / (GROUP - 1) * MAX_TOKENS == 32
    rloo, dr_grpo = (steps[name][0]["learner/grad_norm"] for name in ("rloo", "dr_grpo"))
    assert rloo == pytest.approx(32 * dr_grpo, rel=1e-4)


def test_the_polarities_are_the_two_parts_of_the_loss(steps: dict[str, list[dict]]):
    both, positive, negative = (steps[name][0]["loss/policy"] for name in ("grpo", "positive", "negative"))
    assert positive < -0.01 and negative > 0.01 and both == pytest.approx(positive + negative, abs=1e-6)


def test_dapo_goes_on_sampling_until_its_groups_differ(steps: dict[str, list[dict]]):
    first, second = steps["dapo"]
    assert steps["grpo"][0]["rollout/rounds"] == 1 < first["rollout/rounds"] <= 10
    assert first["reward/equal_groups"] > 0 and second["learner/grad_norm"] > 0


# Strengths that move


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.2, 0.2, 0.2, 0.2]),
        ("linear", [0.2, 0.35, 0.5, 0.8]),
        # half a wave: (1 - cos(pi/4)) / 2 = 0.146447 of the way after a quarter of the run
        ("cosine", [0.2, 0.2 + 0.6 * 0.146447, 0.5, 0.8]),
    ],
)
def test_a_schedule_by_hand(schedule: str, expected: list[float]):
    assert [scheduled(schedule, 0.2, 0.8, p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(expected, abs=1e-6)
    down = [1.0 - value for value in expected]  # from 0.8 to 0.2
    assert [scheduled(schedule, 0.8, 0.2, p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(down, abs=1e-6)


MOVING = {"beta_schedule": "cosine", "beta_end": 0.4}
MOMENTS = (0.0, 0.5, 1.0)


@pytest.mark.parametrize("kind", [NoRegularizer, ReverseKL, SkewReverseKL, ForwardKL, JensenShannon])
def test_beta_moves_and_all_else_stays(kind: type[Regularizer]):
    regularizer = kind(beta=0.2, name="moving", entropy_bonus=0.1, **MOVING)
    found = [regularizer.at(moment) for moment in MOMENTS]
    assert [now.beta for now in found] == pytest.approx([0.2, 0.3, 0.4])
    assert [now.parameters()["regularizer/beta"] for now in found] == pytest.approx([0.2, 0.3, 0.4])
    assert all(type(now) is kind and (now.name, now.entropy_bonus) == ("moving", 0.1) for now in found)
    assert kind(beta=0.2).at(0.5) == kind(beta=0.2)


def test_alpha_moves_by_itself_and_beside_beta():
    alone = SkewReverseKL(beta=0.2, alpha=0.2, alpha_schedule="linear", alpha_end=0.8)
    assert [alone.at(moment).alpha for moment in MOMENTS] == pytest.approx([0.2, 0.5, 0.8])
    assert [alone.at(moment).weight for moment in MOMENTS] == [0.2, 0.2, 0.2]
    both = SkewReverseKL(beta=0.2, alpha=0.2, alpha_schedule="linear", alpha_end=0.8, **MOVING)
    assert [(both.at(m).alpha, both.at(m).beta) for m in MOMENTS] == [
        pytest.approx(pair) for pair in [(0.2, 0.2), (0.5, 0.3), (0.8, 0.4)]
    ]


def test_matched_strength_follows_alpha_and_beta():
    matched = SkewReverseKL(beta=0.2, match="local", alpha=0.2, alpha_schedule="linear", alpha_end=0.8, **MOVING)
    expected = pytest.approx([0.3125, 1.2, 10.0])  # beta / (1 - alpha)^2: 0.2 / 0.64, 0.3 / 0.25, 0.4 / 0.04
    assert [matched.at(moment).weight for moment in MOMENTS] == expected
    assert [matched.at(moment).parameters()["regularizer/beta"] for moment in MOMENTS] == expected
    # Near the base Jensen-Shannon is a quarter of reverse KL, and forward KL is all of it.
    jensen_shannon, forward = (kind(beta=0.2, match="local", **MOVING) for kind in (JensenShannon, ForwardKL))
    assert [jensen_shannon.at(moment).weight for moment in MOMENTS] == pytest.approx([0.8, 1.2, 1.6])
    assert [forward.at(moment).weight for moment in MOMENTS] == pytest.approx([0.2, 0.3, 0.4])


def test_a_run_shows_the_strengths_of_each_step(tmp_path: Path):
    schedules = [
        "regularizer=srkl", "regularizer.beta=0.2", "regularizer.beta_schedule=cosine", "regularizer.beta_end=0.4",
        "regularizer.alpha=0.2", "regularizer.alpha_schedule=linear", "regularizer.alpha_end=0.8",
        "algorithm.aggregation=token",
    ]  # fmt: skip
    plain = run(tmp_path / "plain", "steps=3", *schedules)
    assert [line["regularizer/alpha"] for line in plain] == pytest.approx([0.2, 0.5, 0.8])
    assert [line["regularizer/beta"] for line in plain] == pytest.approx([0.2, 0.3, 0.4])
    matched = run(tmp_path / "matched", "steps=3", *schedules, "regularizer.match=local")
    assert [line["regularizer/beta"] for line in matched] == pytest.approx([0.3125, 1.2, 10.0])
    # They are those that the loss has: where all tokens weigh the same, it is the strength times the mean divergence.
    for line in [*plain[1:], *matched[1:]]:  # at the first step there is no divergence yet
        assert line["loss/regularizer"] == pytest.approx(line["regularizer/beta"] * line["regularizer/value"], rel=1e-4)
        assert line["regularizer/value"] > 1e-6


def test_a_run_of_one_step_starts_where_its_schedule_does(tmp_path: Path):
    (line,) = run(tmp_path, "steps=1", "regularizer=rkl", "regularizer.beta_schedule=linear", "regularizer.beta_end=9")
    assert line["regularizer/beta"] == 0.04
