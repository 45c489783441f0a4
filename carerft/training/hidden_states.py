"""Hidden states that predict each completion token. The packed and the padded implementation agree."""

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from carerft.errors import ConfigError
from carerft.model.loading import backbone, described
from carerft.model.probe import Probe, probe
from carerft.rollout import Rollouts
from carerft.training.attention import NAME, use_own_attention, use_packed_attention
from carerft.training.packing import Layout, pack


def best_layout(model: PreTrainedModel, share_prompts: bool) -> Layout:
    """The fastest layout in which the model reads each sequence as it does by itself: packed, if possible.

    A short test decides (`carerft.model.probe`): some models have layers that lose the packed row, or masks of their
    own. share_prompts: read each prompt once for all of its completions, if possible. Raises ConfigError if the model
    cannot even be read in padded rows.
    """
    packed: Layout = "shared" if share_prompts else "separate"
    expected = probe(model)
    if use_packed_attention(model):
        if expected is None or not _mismatch(expected, packed):
            return packed
        use_own_attention(model)
    if wrong := expected and _mismatch(expected, "padded"):
        raise ConfigError(
            f"{described(model)} cannot be trained: where the learner reads it, layers and head apart and sequences in "
            f"padded rows, {wrong} from the model's own forward pass of each sequence",
            "choose another model, of the types in docs/models.md",
        )
    return "padded"


def _mismatch(expected: Probe, layout: Layout) -> str:
    """How a probe's sequences, read in this layout, differ from what they are by themselves; "" if they don't."""
    tokens = [torch.tensor(completion) for completion in expected.completions]
    zeros = [torch.zeros(len(row)) for row in tokens]
    rollouts = Rollouts.from_rows(expected.prompts, tokens, zeros, torch.ones(len(tokens), dtype=torch.bool))
    index = torch.arange(len(tokens))
    return expected.mismatch(lambda: expected.logits(completion_states(expected.model, rollouts, index, layout)))


def completion_states(model: PreTrainedModel, rollouts: Rollouts, index: Tensor, layout: Layout) -> Tensor:
    """(N, H): the state that predicts each of the N completion tokens of the sequences `index` (b,), one sequence
    after another.

    layout: from `best_layout`. Raises ValueError if the model would attend across the sequences of a packed row.
    """
    if layout == "padded":
        return _padded_states(model, rollouts, index)
    if model.config.get_text_config()._attn_implementation != NAME:
        raise ValueError(f"layout {layout!r} needs a model that `use_packed_attention` has prepared")
    row = pack(rollouts, index, layout, model.device)
    hidden = backbone(model)(
        input_ids=row.tokens[None],
        position_ids=row.positions[None],
        # Any mask keeps transformers from making one; packed attention ignores it.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=model.device),
        packed=row,
        use_cache=False,
    ).last_hidden_state
    # Not hidden[0, row.predictors]: on a CPU, its gradient adds the rows that several completions share in whatever
    # order threads come to them, which is another rounding in every run (tests/test_repeatable.py).
    return functional.embedding(row.predictors, hidden[0])


def _padded_states(model: PreTrainedModel, rollouts: Rollouts, index: Tensor) -> Tensor:
    """One row for each sequence, padded on the right, where causal attention cannot see the padding."""
    owners = index // rollouts.group_size
    prompts, lengths = rollouts.prompt_lengths[owners].tolist(), rollouts.lengths[index].tolist()
    sequences = [
        torch.cat([rollouts.prompt_tokens[owner, :p], rollouts.tokens[i, :n]])
        for i, owner, p, n in zip(index.tolist(), owners.tolist(), prompts, lengths, strict=True)
    ]
    tokens = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True).to(model.device)  # (b, L)
    hidden = backbone(model)(input_ids=tokens, use_cache=False).last_hidden_state
    # The state at position t predicts the token at t + 1.
    return torch.cat([hidden[i, p - 1 : p + n - 1] for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))])
