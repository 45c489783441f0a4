"""How far sampler and learner are from a plain forward pass, for a model loaded from a directory as a user's is."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from carerft.config.settings import LearnerSettings, ModelSettings
from carerft.errors import CareError
from carerft.model.loading import load_model
from carerft.model.lora import add_lora, linear_layers, merged_weights
from carerft.model.modes import recompute_activations
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import NoRegularizer
from carerft.rollout import Rollouts, Sampling
from carerft.rollout.transformers import TransformersWorker
from carerft.training.learner import Learner
from helpers.architectures import EOS, VOCABULARY, tiny, tiny_tokenizer

PROMPTS = [[5, 6, 9, 20, 11], [8], [9, 12, 4, 4, 13, 12, 22, 10, 7], [6, 33, 9, 51, 11]]
NATS, RELATIVE = 1e-4, 1e-3
"""What may separate log-probabilities, and gradients."""
CPU = torch.device("cpu")


@dataclass
class Measured:
    """What became of a type. sampler, learner, gradient: the largest differences; None: not reached. refused: why.

    implementation: the difference between torch's attention and the model's own.
    """

    model_type: str
    sampler: float | None = None
    learner: float | None = None
    gradient: float | None = None
    checkpointed: float | None = None
    layout: str = ""
    implementation: float = 0.0
    adapter: float | None = None
    targets: str = ""
    equal_lengths: bool = False
    refused: str = ""
    unbuilt: str = ""

    @property
    def exact(self) -> bool:
        """Whether everything that a training reads is within what rounding explains."""
        pairs = [
            (self.implementation, NATS),
            (self.sampler, NATS),
            (self.learner, NATS),
            (self.gradient, RELATIVE),
            (self.checkpointed, RELATIVE),
        ]
        return not self.refused and all(value is not None and value <= most for value, most in pairs)

    @property
    def adapter_exact(self) -> bool:
        """Whether an adapter, if it is not refused, is exact as well."""
        return not self.targets or (self.adapter is not None and self.adapter <= NATS)


def saved(model: PreTrainedModel, directory: Path) -> ModelSettings:
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    implementation = "sdpa" if model._supports_sdpa else "eager"
    return ModelSettings(name="tiny", path=str(directory), attention=implementation)


def measure(model_type: str, directory: Path, adapters: bool = False, **changes: Any) -> Measured:
    """adapters: measure LoRA, too. changes: fields of the configuration."""
    found = Measured(model_type)
    try:
        settings = saved(tiny(model_type, **changes), directory)
    except Exception as error:
        found.unbuilt = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
        return found
    try:
        policy, tokenizer = load_model(settings, CPU)
        plain = copy.deepcopy(policy)
        if settings.attention == "sdpa":
            found.implementation = implementations_differ(plain)
        worker = TransformersWorker(policy, [EOS], 0, tokenizer=tokenizer)
        found.equal_lengths = not worker.mixes_lengths
        rollouts = worker.sample(PROMPTS, 3, Sampling(20), seed=0)
        found.sampler = difference(rollouts, rollouts.log_probs, plain)
        scored = worker.log_likelihood([PROMPTS[i // 3] for i in range(12)], completions(rollouts))
        sums = (rollouts.log_probs * rollouts.mask()).sum(1)
        found.sampler = max(found.sampler, float((torch.tensor(scored) - sums).abs().max()) / 10)
        learner = make_learner(policy)
        found.layout = learner.layout
        found.learner = difference(rollouts, learner.log_probs(rollouts), plain)
        expected = plain_gradient(plain, rollouts)
        found.gradient = relative(learner_gradient(learner, rollouts), expected)
        if plain.supports_gradient_checkpointing:
            recompute_activations(policy)
            learner = make_learner(policy)
            found.checkpointed = relative(learner_gradient(learner, rollouts), expected)
            found.learner = max(found.learner, difference(rollouts, learner.log_probs(rollouts), plain))
        else:
            found.checkpointed = 0.0
        if adapters:
            found.targets, found.adapter = measure_adapter(settings, rollouts)
    except CareError as error:
        found.refused = str(error)
    return found


def measure_adapter(settings: ModelSettings, rollouts: Rollouts) -> tuple[str, float | None]:
    """The learner with an adapter against a plain pass of the merged weights: `model.lora_targets`, the default or else
    what its refusal says, and the largest difference."""
    policy, _ = load_model(settings, CPU)
    advised = f"[{','.join(linear_layers(policy))}]"
    for targets in ("all-linear", advised):
        policy, _ = load_model(settings, CPU)
        plain = copy.deepcopy(policy)
        try:
            names = targets.strip("[]").split(",") if targets.startswith("[") else targets
            add_lora(policy, replace(settings, adapter="lora", lora_rank=2, lora_alpha=2, lora_targets=names), seed=0)
        except CareError as error:
            if targets == advised:
                return "", None
            assert advised in str(error)
            continue
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if ".lora_B." in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        plain.load_state_dict(dict(merged_weights(policy)))
        return targets, difference(rollouts, make_learner(policy).log_probs(rollouts), plain)
    raise AssertionError("the advice is tried last")


def implementations_differ(model: PreTrainedModel) -> float:
    """The largest difference, in nats, between two of transformers' attention implementations."""
    log_probs = []
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        with torch.no_grad():
            log_probs.append(model(torch.tensor([PROMPTS[2]]), use_cache=False).logits.log_softmax(-1))
    return float((log_probs[0] - log_probs[1]).abs().max())


def make_learner(policy: PreTrainedModel) -> Learner:
    algorithm = Algorithm("grpo", 3, 0.2, 0.2, "token", "sequence", "sample", 1e-6)
    return Learner(policy, algorithm, NoRegularizer(), LearnerSettings(1e-3, monitor_reference=False), 10)


def completions(rollouts: Rollouts) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(rollouts.tokens, rollouts.lengths, strict=True)]


def sequences(rollouts: Rollouts) -> list[tuple[list[int], list[int]]]:
    owners = [i // rollouts.group_size for i in range(len(rollouts.tokens))]
    prompts = [row[:n].tolist() for row, n in zip(rollouts.prompt_tokens, rollouts.prompt_lengths, strict=True)]
    return [(prompts[owner], tokens) for owner, tokens in zip(owners, completions(rollouts), strict=True)]


def plain_log_probs(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """(T,) of the completion's tokens, by one forward pass of one sequence."""
    logits = model(torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def difference(rollouts: Rollouts, found: Tensor, plain: PreTrainedModel) -> float:
    with torch.no_grad():
        parts = [
            (found[i, : len(completion)] - plain_log_probs(plain, prompt, completion)).abs().max()
            for i, (prompt, completion) in enumerate(sequences(rollouts))
        ]
    return float(torch.stack(parts).max())


def weights(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(3))


def plain_gradient(model: PreTrainedModel, rollouts: Rollouts) -> dict[str, Tensor]:
    model.zero_grad()
    log_probs = torch.cat([plain_log_probs(model, *sequence) for sequence in sequences(rollouts)])
    (weights(len(log_probs)) * log_probs).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def learner_gradient(learner: Learner, rollouts: Rollouts) -> dict[str, Tensor]:
    """The same loss as `plain_gradient`, through the learner's pass, in two microbatches."""
    learner.policy.zero_grad()
    count, split = int(rollouts.lengths.sum()), len(rollouts.tokens) // 2
    parts = weights(count).split([int(rollouts.lengths[:split].sum()), int(rollouts.lengths[split:].sum())])
    for index, part in zip(torch.arange(len(rollouts.tokens)).split(split), parts, strict=True):
        (part * learner.score(rollouts, index).log_prob).sum().backward()
    return {name: p.grad.clone() for name, p in learner.policy.named_parameters() if p.grad is not None}


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any parameter's gradient, relative to the largest entry of all."""
    if found.keys() != expected.keys():
        unlike = found.keys() ^ expected.keys()
        if any(float(part[name].abs().max()) for part in (found, expected) for name in unlike & part.keys()):
            return torch.inf
    size = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in found.keys() & expected.keys()) / size


REASONS = {
    "is not a plain matrix": "its head is more than a matrix: a bias, a soft cap, a scale or layers",
    "no decoder of attention layers": "it keeps a recurrent state",
    "with cached keys and values": "cached keys and values don't give what a forward pass without them gives",
    "cannot be trained": "it changes hidden states before the head",
    "cannot load the model": "transformers cannot load it as a language model",
}
"""Of each kind of refusal, a part of its message, and what the table says."""


def row(found: Measured) -> str:
    """A line of the table in docs/models.md."""
    name = f"`{found.model_type}`"
    if found.unbuilt:
        return f"| {name} | | | | | not tried: {NOT_TRIED[found.model_type]} |"
    sampler = "" if found.sampler is None else "exact, one prompt length at a time" if found.equal_lengths else "exact"
    if found.refused:
        why = next(says for part, says in REASONS.items() if part in found.refused)
        return f"| {name} | {sampler} | | | | {why} |"
    assert found.exact and found.adapter_exact, found
    layout = "padded" if found.layout == "padded" else "packed"
    return f"| {name} | {sampler} | exact | {layout} | {f'`{found.targets}`' if found.targets else ''} | |"


def table(measured: list[Measured]) -> str:
    head = ["| type | sampler | learner | rows | LoRA (`model.lora_targets`) | refused, because |", "|---" * 6 + "|"]
    return "\n".join([*head, *map(row, measured)]) + "\n"


def summary(measured: list[Measured]) -> str:
    """The counts above the table."""
    exact = [found for found in measured if found.exact]
    padded = sum(found.layout == "padded" for found in exact)
    refused, unbuilt = sum(bool(m.refused) for m in measured), sum(bool(m.unbuilt) for m in measured)
    wrong = len(measured) - len(exact) - refused - unbuilt
    return (
        f"{len(measured)} types: {len(exact)} exact ({len(exact) - padded} packed, {padded} padded), "
        f"{refused} refused, {unbuilt} not tried, {wrong} wrong."
    )


NOT_TRIED = {
    "gemma3n": "its vision part needs the package timm; `gemma3n_text` is its text part",
    "gemma4_assistant": "drafts for another model's decoding, and is no model by itself",
    "gemma4_unified_assistant": "drafts for another model's decoding, and is no model by itself",
    "musicgen": "makes sound from the states of a text encoder",
    "musicgen_melody": "makes sound from the states of a text encoder",
}
"""Types whose own configuration class makes no tiny model, and why."""


def rollouts_of(*lengths: tuple[int, int]) -> Rollouts:
    """Random sequences of these lengths, of prompt and completion."""
    generator = torch.Generator().manual_seed(0)
    prompts, rows = (
        [torch.randint(4, VOCABULARY - 4, (pair[part],), generator=generator) for pair in lengths] for part in (0, 1)
    )
    zeros = [torch.zeros(len(tokens)) for tokens in rows]
    return Rollouts.from_rows([p.tolist() for p in prompts], rows, zeros, torch.ones(len(rows), dtype=torch.bool))
