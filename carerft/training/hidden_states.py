"""The hidden states in which a policy chose the tokens of its completions, two ways to the same numbers."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from carerft.rollout import Rollouts
from carerft.training.attention import NAME, use_packed_attention
from carerft.training.packing import Layout, pack


def best_layout(model: PreTrainedModel, share_prompts: bool) -> Layout:
    """How sequences are laid out for a model, which is made ready for it. share_prompts: where that can be."""
    if not use_packed_attention(model):
        return "padded"
    return "shared" if share_prompts else "separate"


def completion_states(model: PreTrainedModel, rollouts: Rollouts, index: Tensor, layout: Layout) -> Tensor:
    """(N, H): the states of the N completion tokens of the sequences `index` (b,), one sequence after another.

    layout: of `best_layout`. Raises ValueError for a row that this model would read across sequences.
    """
    if layout == "padded":
        return _padded_states(model, rollouts, index)
    if model.config.get_text_config()._attn_implementation != NAME:
        raise ValueError(f"layout {layout!r} needs a model that `use_packed_attention` has made ready")
    row = pack(rollouts, index, layout, model.device)
    hidden = model.get_decoder()(
        input_ids=row.tokens[None],
        position_ids=row.positions[None],
        # A mask that is there already: none is made, and this one is not looked at.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=model.device),
        packed=row,
        use_cache=False,
    ).last_hidden_state
    return hidden[0, row.chosen_in]


def _padded_states(model: PreTrainedModel, rollouts: Rollouts, index: Tensor) -> Tensor:
    """A row for each sequence, padded on the right, where no real token of a causal model sees it."""
    owners = index // rollouts.group_size
    prompts, lengths = rollouts.prompt_lengths[owners].tolist(), rollouts.lengths[index].tolist()
    sequences = [
        torch.cat([rollouts.prompt_tokens[owner, :p], rollouts.tokens[i, :n]])
        for i, owner, p, n in zip(index.tolist(), owners.tolist(), prompts, lengths, strict=True)
    ]
    tokens = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)  # (b, L)
    # The state at position t chooses the token at t + 1.
    rows = enumerate(zip(prompts, lengths, strict=True))
    places = torch.cat([row * tokens.shape[1] + torch.arange(p - 1, p + n - 1) for row, (p, n) in rows])
    hidden = model.get_decoder()(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[places.to(model.device)]
