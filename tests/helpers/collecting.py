"""What the tests of collecting share: a tiny model samples, and a task grades each group by the kind of its problem, so
that what is informative is known."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from carerft.config.settings import LearnerSettings, RewardSettings, RolloutSettings
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import NoRegularizer, Regularizer
from carerft.rollout import Rollouts, Sampling
from carerft.rollout.transformers import TransformersWorker
from carerft.tasks import Grade, Problem
from carerft.tasks.encoding import Prompts
from carerft.training.collector import Collector, prompt_order
from carerft.training.learner import Learner
from carerft.training.rewards import Rewards
from carerft.training.trainer import Trainer
from helpers.models import VOCABULARY, tiny_model

SEED, PROMPTS, GROUP, MAX_TOKENS = 3, 4, 4, 8
ENDS = (1, 5, 8, 14, 21)


def algorithm(**changes: object) -> Algorithm:
    settings = {"name": "dapo", "group_size": GROUP, "clip_low": 0.2, "clip_high": 0.28, "ratio": "token"}
    settings |= {"aggregation": "token", "advantage_std": "sample", "dynamic_sampling": True}
    return Algorithm(**{**settings, **changes})


class ByKind:
    """Problems named "<position>-<kind>", drawn in the order of their positions. Of a problem's completions

    right: all are right. wrong: none. mixed: the alphabetically first alone. silent: none has a verdict.
    lone: as mixed, but the others have no verdict. gap: as mixed, but the alphabetically last has no verdict.
    """

    name = "by_kind"

    def __init__(self, kinds: str):
        named = list(enumerate(kinds.split()))
        places = prompt_order(len(named), SEED, 0, len(named))
        found = [
            (place, Problem(f"{position}-{kind}", f"w{2 + place % 20} w{2 + place // 20}", None))
            for place, (position, kind) in zip(places, named, strict=True)
        ]
        self._problems = [problem for _, problem in sorted(found, key=lambda pair: pair[0])]

    def problems(self) -> list[Problem]:
        return self._problems

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        groups: dict[str, list[str]] = {}
        for problem, text in zip(problems, texts, strict=True):
            groups.setdefault(problem.id, []).append(text)

        def verdict(kind: str, text: str, group: list[str]) -> bool | None:
            first, last = text == min(group), text == max(group)
            if kind in ("right", "wrong", "silent"):
                return {"right": True, "wrong": False, "silent": None}[kind]
            return None if (kind == "lone" and not first) or (kind == "gap" and last) else first

        pairs = zip(problems, texts, strict=True)
        return [Grade(text, verdict(problem.id.split("-")[1], text, groups[problem.id])) for problem, text in pairs]


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")


class Imprecise(TransformersWorker):
    """Reports log-probabilities that are off, as a sampler of another precision or with stale weights does."""

    def sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> Rollouts:
        found = super().sample(prompts, n, sampling, seed)
        noise = 0.5 * torch.randn(found.log_probs.shape, generator=torch.Generator().manual_seed(seed))
        found.log_probs = torch.where(found.mask(), found.log_probs + noise, 0.0)
        return found


class Rounded(TransformersWorker):
    """Reports log-probabilities in bfloat16, as a sampler with logits in bfloat16 does."""

    def sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> Rollouts:
        found = super().sample(prompts, n, sampling, seed)
        found.log_probs = found.log_probs.bfloat16().float()
        return found


def collection(
    kinds: str,
    chosen: Algorithm | None = None,
    regularizer: Regularizer | None = None,
    worker: type[TransformersWorker] = TransformersWorker,
    ends: Sequence[int] = (1,),
    **settings: object,
) -> tuple[Collector, Learner]:
    """A collector, and a learner whose policy has moved away from its reference. ends: tokens that end a completion,
    of which there are several where lengths should differ."""
    chosen, policy = chosen or algorithm(), tiny_model()
    learner = Learner(policy, chosen, regularizer or NoRegularizer(), LearnerSettings(learning_rate=1e-3), 10)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    settings = RolloutSettings(
        "here", **{"prompts_per_batch": PROMPTS, "max_tokens": MAX_TOKENS, "reward_truncated": True, **settings}
    )
    sampler = worker(policy, eos_token_ids=ends, pad_token_id=0)
    task, tokenizer = ByKind(kinds), word_tokenizer()
    prompts = Prompts(task.problems(), tokenizer, settings.max_tokens, context=128)
    return Collector(sampler, task, tokenizer, chosen, settings, SEED, prompts, Rewards(RewardSettings())), learner


def trainer(directory: Path, collector: Collector, learner: Learner, steps: int, epochs: int = 1) -> Trainer:
    settings = replace(learner.settings, updates_per_batch=2, epochs=epochs, checkpoint_every=100)
    return Trainer(learner, collector, collector.tokenizer, settings, steps, directory)
