"""The hidden states in which a policy chose the tokens of its completions, two ways to the same numbers.

`separate_states` reads each prompt with each of its completions: nothing but a causal model is needed, and attention
without a mask can take the fastest kernel. `shared_states` reads each prompt once and lets all of its completions
attend to its keys and values: less work where prompts are long beside completions. Only the states of completion tokens
are returned, so that only they go through the LM head.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from carerft.rollout import Rollouts


def separate_states(model: PreTrainedModel, rollouts: Rollouts, index: Tensor) -> Tensor:
    """(N, H): the states of the N completion tokens of the sequences `index` (b,), one sequence after another."""
    owners = index // rollouts.group_size
    prompts, lengths = rollouts.prompt_lengths[owners].tolist(), rollouts.lengths[index].tolist()
    width = max(p + n for p, n in zip(prompts, lengths, strict=True))
    # Padding on the right: no real token sees it under a causal mask, so no mask has to be made.
    tokens = torch.zeros(len(index), width, dtype=torch.int64)  # (b, L)
    for row, (i, owner, p, n) in enumerate(zip(index.tolist(), owners.tolist(), prompts, lengths, strict=True)):
        tokens[row, :p] = rollouts.prompt_tokens[owner, :p]
        tokens[row, p : p + n] = rollouts.tokens[i, :n]
    # The state at position t chooses the token at t + 1.
    rows = enumerate(zip(prompts, lengths, strict=True))
    places = torch.cat([row * width + torch.arange(p - 1, p + n - 1) for row, (p, n) in rows])
    hidden = model.get_decoder()(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[places.to(model.device)]


def shared_states(model: PreTrainedModel, rollouts: Rollouts, index: Tensor) -> Tensor:
    """As `separate_states`, for a model whose every layer attends to the whole context."""
    device, decoder = model.device, model.get_decoder()
    chosen, owner = (index // rollouts.group_size).unique(return_inverse=True)  # (p,), (b,)
    prompt_lengths = rollouts.prompt_lengths[chosen]
    # Where weights are sharded, every process must go through the decoder as often as the others: at least one token
    # is read after the prompts, if any batch has such a one.
    longest = max(int(rollouts.lengths[index].max()), min(2, rollouts.tokens.shape[1]))
    width = int(prompt_lengths.max())
    owner, prompt_lengths = owner.to(device), prompt_lengths.to(device)
    cache = DynamicCache()
    prompt = decoder(
        input_ids=rollouts.prompt_tokens[chosen, :width].to(device), past_key_values=cache, use_cache=True
    ).last_hidden_state
    # The last state of a prompt chooses the first token of each of its completions.
    states = prompt[torch.arange(len(chosen), device=device), prompt_lengths - 1][owner][:, None]  # (b, 1, H)
    if longest > 1:
        expanded = DynamicCache()
        for number, layer in enumerate(cache.layers):
            expanded.update(layer.keys.index_select(0, owner), layer.values.index_select(0, owner), number)
        steps = torch.arange(longest - 1, device=device)
        begin = prompt_lengths[owner]  # (b,), the position of a completion's first token
        in_prompt = torch.arange(width, device=device)[None, :] < begin[:, None]  # (b, width), False on padding
        before = steps[None, :] <= steps[:, None]  # (T - 1, T - 1), causal
        visible = torch.cat(
            [in_prompt[:, None, :].expand(-1, len(steps), -1), before.expand(len(index), -1, -1)], dim=-1
        )  # (b, T - 1, width + T - 1)
        rest = decoder(
            input_ids=rollouts.tokens[index, : longest - 1].to(device),
            attention_mask=visible[:, None],
            position_ids=begin[:, None] + steps,
            past_key_values=expanded,
            use_cache=True,
        ).last_hidden_state
        states = torch.cat([states, rest], dim=1)
    mask = rollouts.mask()[index, :longest].to(device)
    return states[mask]


def attends_to_everything(model: PreTrainedModel) -> bool:
    """Whether `shared_states` is right for a model: attention layers alone, none with a window."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    return layers == {"full_attention"} and not model._is_stateful
