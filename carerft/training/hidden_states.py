"""Hidden states that predict each completion token. The packed and the padded implementation agree."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from carerft.rollout import Rollouts
from carerft.training.attention import NAME, use_packed_attention
from carerft.training.packing import Layout, pack


def best_layout(model: PreTrainedModel, share_prompts: bool) -> Layout:
    """The fastest layout that the model supports; makes it use packed attention if possible. share_prompts: read each
    prompt once for all of its completions, if possible."""
    if not use_packed_attention(model):
        return "padded"
    return "shared" if share_prompts else "separate"


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
    hidden = model.get_decoder()(
        input_ids=row.tokens[None],
        position_ids=row.positions[None],
        # Any mask keeps transformers from making one; packed attention ignores it.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=model.device),
        packed=row,
        use_cache=False,
    ).last_hidden_state
    return hidden[0, row.predictors]


def _padded_states(model: PreTrainedModel, rollouts: Rollouts, index: Tensor) -> Tensor:
    """One row for each sequence, padded on the right, where causal attention cannot see the padding."""
    owners = index // rollouts.group_size
    prompts, lengths = rollouts.prompt_lengths[owners].tolist(), rollouts.lengths[index].tolist()
    sequences = [
        torch.cat([rollouts.prompt_tokens[owner, :p], rollouts.tokens[i, :n]])
        for i, owner, p, n in zip(index.tolist(), owners.tolist(), prompts, lengths, strict=True)
    ]
    tokens = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True).to(model.device)  # (b, L)
    hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    # The state at position t predicts the token at t + 1.
    return torch.cat([hidden[i, p - 1 : p + n - 1] for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))])
