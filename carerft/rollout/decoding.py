"""Decodes many sequences one token at a time, with a key/value cache that is written in place.

`Decoder` calls the model's own forward and works for most attention models of transformers; `decoding_mismatch`
tries it. `LeanDecoder` writes out the arithmetic of Qwen2 and Llama: in a model of a few million parameters,
the many small operations between the matrix products take longer than the products. `decoder_for` chooses between them.

Left out: recurrent models (such as Mamba), encoder-decoders, and sharing one copy of a prompt's keys among its samples
while decoding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from carerft.model.grouped_attention import grouping_queries
from carerft.model.probe import Probe

BLOCK = 256  # spare slots of a new cache; it doubles when it is full, so that memory follows the actual lengths
SHARED = 32  # tokens; a shorter beginning of all prompts is not worth a forward pass of its own
LEAN_PARAMETERS = 50_000_000  # `LeanDecoder` copies the weights, and gains little if the products dominate


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values, (R, heads, slots, head_dim), of which the first `length` slots are filled.

    It never drops old tokens: a model with a sliding window masks them itself.
    """

    keys: Any  # Tensor; transformers declares Tensor | None
    values: Any

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, limit: int, dtype: torch.dtype | None):
        """keys, values: (P, heads, T, head_dim) of the prompts; rows: (R,) the index of each row's prompt; limit: the
        most slots that will be needed; dtype: in which they are kept, if not their own."""
        super().__init__()
        self.length, self.limit = keys.shape[2], limit
        self.keys, self.values = (self._enlarged(x.to(dtype or x.dtype), rows) for x in (keys, values))
        self.is_initialized = True

    def _enlarged(self, filled: Tensor, rows: Tensor) -> Tensor:
        """A larger buffer that holds what is filled of these rows."""
        slots = min(self.limit, self.length + max(BLOCK, self.length))
        buffer = filled.new_empty(len(rows), filled.shape[1], slots, filled.shape[3])
        torch.index_select(filled[:, :, : self.length], 0, rows, out=buffer[:, :, : self.length])
        return buffer

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Appends (R, heads, new, head_dim) and returns views of all keys and values."""
        end = self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            rows = torch.arange(len(self.keys), device=self.keys.device)
            self.keys, self.values = self._enlarged(self.keys, rows), self._enlarged(self.values, rows)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length


def prompt_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache of the layers that the model's configuration asks for, except that each keeps every token: a layer
    with a window would drop old ones of a long prompt, which `PreallocatedLayer` cannot."""
    try:
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    except Exception:  # a configuration that the cache cannot read
        return DynamicCache()
    if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return DynamicCache()  # makes layers as they are needed, which may be more than the configuration says
    cache.layers = [DynamicLayer() if type(x) is DynamicSlidingWindowLayer else x for x in cache.layers]
    return cache


def common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, at most all but one of the shortest."""
    # In alphabetic order: what the first and the last share, those between them share, too.
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    most = min(map(len, prompts)) - 1
    return next((i for i, (a, b) in enumerate(zip(first[:most], last, strict=False)) if a != b), most)


def attention_dtype(model: PreTrainedModel) -> torch.dtype | None:
    """The type to which autocast rounds the keys that attention reads. Kept in it, they are rounded once and not at
    every step: rotary embeddings leave them in float32."""
    kind, attention = model.device.type, model.config.get_text_config()._attn_implementation
    rounds = torch.is_autocast_enabled(kind) and attention in ("sdpa", "packed")
    return torch.get_autocast_dtype(kind) if rounds else None


def spread(layer: Any, rows: Tensor, limit: int, dtype: torch.dtype | None) -> Any:
    """A prompt's layer of the cache, copied to all of its rows. rows, limit, dtype: of `PreallocatedLayer`."""
    if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
        return PreallocatedLayer(layer.keys, layer.values, rows, limit, dtype)
    select(layer, rows)
    return layer


def select(layer: Any, rows: Tensor) -> None:
    """Keep these rows of a cache's layer, each as often as it is named."""
    if hasattr(layer, "conv_states"):  # perhaps beside keys and values
        layer.reorder_cache(rows)
    else:
        layer.batch_select_indices(rows)


class Decoder:
    """Reads each prompt once, copies its keys and values to all of its rows, then decodes all rows, token by token.

    Shorter prompts are padded on the left, behind the beginning that all share, so that a step fills the same slot in
    every row; padding is masked, and positions do not count it.
    logits: (R, vocabulary), for each row's first token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        rows: Tensor,
        steps: int,
        pad: int,
        shared: int = 0,
    ):
        """prompts: P lists of tokens; rows: (R,) the index of each row's prompt; steps: how many tokens of each will be
        read; pad: any token that exists; shared: how many tokens that all prompts begin with are read once, from
        `common_beginning`."""
        device = model.device
        width = max(map(len, prompts))
        padding = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
        slots = torch.arange(width + steps, device=device)
        visible = (slots < shared) | (slots >= shared + padding[:, None]) if padding.any() else None
        cache: Any = prompt_cache(model)
        if shared:
            beginning = torch.tensor([list(prompts[0][:shared])], device=device)
            model(beginning, position_ids=slots[None, :shared], past_key_values=cache, use_cache=True, logits_to_keep=1)
            for layer in cache.layers:
                select(layer, torch.zeros(len(prompts), dtype=torch.int64))
        rest = [[pad] * (width - len(prompt)) + list(prompt[shared:]) for prompt in prompts]
        output = model(
            torch.tensor(rest, device=device),
            attention_mask=None if visible is None else visible[:, :width],
            position_ids=(slots[shared:width] - padding[:, None]).clamp(min=shared),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        rows = rows.to(device)
        self.model, self.limit = model, width + steps
        dtype = attention_dtype(model)
        self.cache: Any = Cache([spread(layer, rows, self.limit, dtype) for layer in cache.layers] if steps else [])
        self.length = width  # slots that are filled
        self.logits = output.logits[rows, -1]
        self.visible = None if visible is None else visible[rows]  # (R, slots) bool
        self.positions = width - padding[rows]  # (R,), of the token that the next step reads

    def read(self, tokens: Tensor) -> Tensor:
        """tokens: (R, T), the next of each row. Returns the logits after each of them, (R, T, vocabulary)."""
        count = tokens.shape[1]
        output = self.model(
            tokens,
            attention_mask=None if self.visible is None else self.visible[:, : self.length + count],
            position_ids=self.positions[:, None] + torch.arange(count, device=tokens.device),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.positions, self.length = self.positions + count, self.length + count
        return output.logits

    def read_places(self, tokens: Tensor, places: Tensor) -> Tensor:
        """As `read`, but the logits after the N tokens in these places, (R, T) bool, row by row: (N, vocabulary). The
        head is given no other states, unless the model's code does without the head's own `forward`."""
        head = self.model.get_output_embeddings() or nn.Identity()
        hook = head.register_forward_pre_hook(lambda _, states: (states[0][places][None], *states[1:]))
        try:
            logits = self.read(tokens)
        finally:
            hook.remove()
        return logits[places] if logits.shape[:2] == places.shape else logits[0]

    def step(self, tokens: Tensor) -> Tensor:
        """tokens: (R,), the newest of each row. Returns the logits of the next token, (R, vocabulary)."""
        return self.read(tokens[:, None])[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        for layer in self.cache.layers:
            select(layer, rows)
        self.positions = self.positions[rows]
        self.visible = None if self.visible is None else self.visible[rows]


@dataclass
class LeanLayer:
    """A decoder layer's weights, transposed to (in, out), by which a CPU multiplies a quarter faster.

    The weights of the product after each RMSNorm include its scale times sqrt(hidden); those of the queries include
    head_dim ** -0.5.
    """

    qkv: Tensor  # (hidden, (heads + 2 * groups) * head_dim); groups: key/value heads
    qkv_bias: Tensor
    output: Tensor  # (heads * head_dim, hidden)
    gate_up: Tensor  # (hidden, 2 * intermediate)
    down: Tensor  # (intermediate, hidden)


class LeanDecoder(Decoder):
    """`Decoder` for Qwen2 and Llama, with the arithmetic of a step written out."""

    def __init__(self, layers: list[LeanLayer], head: Tensor, model: PreTrainedModel, *arguments):
        """layers, head: from `lean_layers`; arguments: those of `Decoder`."""
        super().__init__(model, *arguments)
        self.lean, self.head = layers, head
        slots = torch.arange(self.limit, device=model.device)
        self.cos, sin = (table[0] for table in model.model.rotary_emb(self.logits, slots[None]))  # (slots, head_dim)
        half = sin.shape[1] // 2
        self.sin = torch.cat([-sin[:, :half], sin[:, half:]], dim=1)  # rotate_half(x) * sin = roll(x, half) * self.sin

    def step(self, tokens: Tensor) -> Tensor:
        config, slot, rows, dim = self.model.config, self.length, len(tokens), self.cos.shape[1]
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        if self.visible is None:
            cos, sin, bias = self.cos[slot], self.sin[slot], None
        else:
            cos, sin = self.cos[self.positions, None], self.sin[self.positions, None]
            bias = cos.new_zeros(rows, 1, slot + 1).masked_fill_(~self.visible[:, None, : slot + 1], -torch.inf)

        # RMSNorm, x / sqrt(mean(x^2) + eps), is sqrt(hidden) x / |(x, sqrt(hidden eps))|: two operations, not five.
        embedded = F.embedding(tokens, self.model.model.embed_tokens.weight)
        extended = F.pad(embedded, (0, 1), value=(config.hidden_size * config.rms_norm_eps) ** 0.5)
        x = extended[:, :-1]  # (R, hidden): the residual stream, to which the layers add in place

        def normed() -> Tensor:
            return x / torch.linalg.vector_norm(extended, dim=1, keepdim=True)

        for cache, layer in zip(self.cache.layers, self.lean, strict=True):
            qkv = torch.addmm(layer.qkv_bias, normed(), layer.qkv).view(rows, heads + 2 * groups, dim)
            qk, v = qkv[:, : heads + groups], qkv[:, heads + groups :]
            qk = torch.addcmul(qk * cos, qk.roll(dim // 2, -1), sin)
            keys, values = cache.update(qk[:, heads:, None], v[:, :, None])
            # Each key/value head is multiplied with all queries that share it: its keys are never repeated.
            q = qk[:, :heads].reshape(rows * groups, heads // groups, dim)
            scores = torch.bmm(q, keys.flatten(0, 1).transpose(1, 2))
            if bias is not None:
                scores.view(rows, heads, slot + 1).add_(bias)
            attended = torch.bmm(scores.softmax(-1), values.flatten(0, 1))
            x.addmm_(attended.view(rows, heads * dim), layer.output)
            gate, up = (normed() @ layer.gate_up).chunk(2, dim=1)
            x.addmm_(F.silu(gate).mul_(up), layer.down)
        self.positions, self.length = self.positions + 1, self.length + 1
        return normed() @ self.head


def lean_layers(model: PreTrainedModel) -> tuple[list[LeanLayer], Tensor] | None:
    """The layers and the (hidden, vocabulary) head for `LeanDecoder`; None where that is not exact or not faster."""
    if type(model) not in (Qwen2ForCausalLM, LlamaForCausalLM) or model.num_parameters() > LEAN_PARAMETERS:
        return None
    config, inner = model.config, model.model
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if (
        any(type(p) is not nn.Parameter or p.dtype != torch.float32 for p in model.parameters())  # sharded, or cast
        or any(type(m) is not nn.Linear for m in linear)
        or len(linear) != 7 * len(inner.layers) + 1  # an adapter adds linear layers, quantisation replaces them
        or any(m.bias is not None for b in inner.layers for m in (b.self_attn.o_proj, *b.mlp.children()) if m in linear)
        or config.hidden_act != "silu"
        or set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}
        or inner.rotary_emb.rope_type in ("dynamic", "longrope")  # the tables of these change with the length
    ):
        return None

    def joined(*modules: nn.Linear, norm: nn.Module | None = None) -> Tensor:
        weight = torch.cat([m.weight for m in modules])
        return (weight if norm is None else weight * (norm.weight * config.hidden_size**0.5)).t().contiguous()

    layers = []
    for block in inner.layers:
        attention, mlp = block.self_attn, block.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = joined(*projections, norm=block.input_layernorm)
        bias = torch.cat([qkv.new_zeros(m.out_features) if m.bias is None else m.bias for m in projections])
        queries = attention.q_proj.out_features
        qkv[:, :queries] *= attention.scaling
        bias[:queries] *= attention.scaling
        gate_up = joined(mlp.gate_proj, mlp.up_proj, norm=block.post_attention_layernorm)
        layers.append(LeanLayer(qkv, bias, joined(attention.o_proj), gate_up, joined(mlp.down_proj)))
    return layers, joined(model.lm_head, norm=inner.norm)


def decoder_for(model: PreTrainedModel) -> Callable[..., Decoder]:
    """A factory of decoders, (prompts, rows, steps, pad) -> Decoder, for the model's current weights."""
    lean = None if torch.is_autocast_enabled(model.device.type) else lean_layers(model)
    return partial(Decoder, model) if lean is None else partial(LeanDecoder, *lean, model)


def decoding_mismatch(model: PreTrainedModel, probe: Probe, padded: bool, pad: int, shared: int = 0) -> str:
    """How decoding differs from a plain forward pass of each sequence, token by token or all tokens at once; "" if it
    doesn't. padded: prompts of unequal lengths side by side; otherwise each prompt's samples by themselves. shared: of
    `Decoder`."""
    with grouping_queries():
        wrong = (probe.mismatch(partial(_decoded, model, probe, padded, way, pad, shared)) for way in (True, False))
        return next(filter(None, wrong), "")


def _decoded(model: PreTrainedModel, probe: Probe, padded: bool, by_step: bool, pad: int, shared: int) -> Tensor:
    """The logits (N, V) of the probe's completions, one after another."""
    group, count = len(probe.completions) // len(probe.prompts), len(probe.prompts)
    together = [list(range(count))] if padded else [[i] for i in range(count)]
    found: list[Tensor] = []
    for prompts in together:
        completions = [probe.completions[p * group + i] for p in prompts for i in range(group)]
        width = max(map(len, completions))
        tokens = torch.tensor([c + [pad] * (width - len(c)) for c in completions], device=model.device)
        rows = torch.arange(len(prompts)).repeat_interleave(group)
        make_decoder = decoder_for(model) if by_step else partial(Decoder, model)
        decoder = make_decoder([probe.prompts[p] for p in prompts], rows, width - 1, pad, shared)
        rest = [len(c) - 1 for c in completions]
        places = (torch.arange(width - 1) < torch.tensor(rest)[:, None]).to(model.device)
        if by_step:
            later = torch.stack([decoder.step(column) for column in tokens[:, :-1].t()], dim=1)[places]
        else:
            later = decoder.read_places(tokens[:, :-1], places)
        found += [part for pair in zip(decoder.logits[:, None], later.split(rest), strict=True) for part in pair]
    return torch.cat(found)
