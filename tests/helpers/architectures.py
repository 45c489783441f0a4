"""A tiny random model of every causal-LM type of the installed transformers, built from its own configuration class.

Sizes shrink by the names of the configuration's fields; `OVERRIDES` says what else a type needs. Windows, chunks and
numbers of selected keys shrink below the sequences' lengths, so that whatever depends on them shows.
"""

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY, CONTEXT, EOS = 64, 96, 3
TYPES = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "decoder_vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "emb_dim": 32, "embedding_dim": 32, "embedding_size": 32,
    "input_embedding_size": 32, "output_embedding_size": 32, "word_embed_proj_dim": 32, "backbone_hidden_size": 32,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "num_blocks": 2, "num_layers_per_stack": 1,
    "encoder_layers": 1, "decoder_layers": 2, "num_decoder_layers": 2, "num_encoder_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_kv_heads": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4, "attention_heads": 4, "head_dim": 8, "swa_head_dim": 8, "d_head": 8,
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "dim_head": 8, "kv_channels": 8, "d_inner": 48,
    "intermediate_size": 48, "ffn_dim": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "dff": 48, "dim_ff": 48,
    "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "n_inner": 48, "dense_intermediate_size": 48,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "shared_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16, "intermediate_size_mlp": 48, "feed_forward_size": 48,
    "max_position_embeddings": CONTEXT, "n_positions": CONTEXT, "n_ctx": CONTEXT, "max_seq_len": CONTEXT,
    "max_target_positions": CONTEXT, "max_source_positions": CONTEXT, "model_max_length": CONTEXT,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "num_experts_per_token": 2, "moe_topk": 2, "moe_k": 2, "n_shared_experts": 1, "num_shared_experts": 1,
    "moe_num_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "zero_expert_num": 2,
    "num_dense_layers": 1, "moe_layer_start_index": 1, "moe_layer_end_index": 1,
    "kv_lora_rank": 8, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "qk_head_dim": 16, "o_lora_rank": 8, "o_groups": 2, "index_head_dim": 8, "index_n_heads": 2, "index_topk": CONTEXT,
    "index_topk_blocks": 24, "index_block_size": 4, "rotary_dim": 4, "query_pre_attn_scalar": 8,
    "sliding_window": 5, "sliding_window_size": 5, "window_size": 5, "attention_window_size": 5, "local_attention": 6,
    "attention_chunk_size": 5, "keep_window_size": CONTEXT, "swa_window": 5, "rel_extent": CONTEXT, "d_rel": 8,
    "floor_scale": 4, "router_hidden_size": 16, "gated_norm_rank": 4, "hidden_size_per_layer_input": 8,
    "laurel_rank": 4, "num_kv_shared_layers": 0, "num_nextn_predict_layers": 0,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_num_heads": 4, "linear_head_dim": 8, "prompt_length": 2, "prompt_mid_dim": 16, "embed_dim": 32,
    "pronunciation_embed_dim": 16, "shape_embed_dim": 16, "encoder_hash_byte_group_vocab": 50, "image_size": 16,
    "patch_size": 4, "num_mel_bins": 8, "num_channels": 3, "vision_soft_tokens_per_image": 4, "type_vocab_size": 2,
    "lru_width": 32, "mamba_d_state": 8, "mamba_d_head": 8, "mamba_n_heads": 8, "mamba_d_ssm": 64,
    "mamba_head_dim": 8, "mamba_num_heads": 8, "ssm_state_size": 8, "state_size": 8, "mamba_chunk_size": 8,
    "time_step_rank": 4, "mamba_dt_rank": 4, "attention_hidden_size": 32, "audio_vocab_size": 32,
    "num_codebooks": 2, "hidden_size_global": 32, "initializer_range": 0.2,
}  # fmt: skip
"""Values of fields by name, for every type that has the field."""

OVERRIDES: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "diffllama": {"attention_dropout": 0.0},
    "minimax_m3_vl_text": {"layer_types": ["minimax_m3_sparse", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 4, "ngram_vocab_size_base": 100, "split_ngram_parts": 4,
    },
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 12)},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4, "attention_hidden_size": 64,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4, "attention_hidden_size": 64,
        "mamba_headdim": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What a type needs beside `SIZES`."""


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """A small configuration of this type. changes: fields of its text part, over everything else."""
    kind = CONFIG_MAPPING[model_type]
    return kind(**_fields(kind, model_type, changes))


def _fields(kind: Any, model_type: str, changes: dict[str, Any]) -> dict[str, Any]:
    default = vars(kind())
    fields = {
        name: value
        for name, value in SIZES.items()
        if name in default and not (default[name] is None and ("window" in name or "chunk" in name))
    }
    for name, value in default.items():
        if ("drop" in name or "jitter" in name) and isinstance(value, float):
            fields[name] = 0.1  # noise that a training would add
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int) and not isinstance(value, bool):
            fields[name] = VOCABULARY - 1
    fields |= {"bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0}
    kinds = list(dict.fromkeys(default.get("layer_types") or []))
    if kinds:  # a layer of each kind
        kinds = kinds if len(kinds) > 1 else kinds * 2
        fields |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    if isinstance(default.get("mlp_layer_types"), list):
        count = fields.get("num_hidden_layers", 2)
        present = list(dict.fromkeys(default["mlp_layer_types"]))
        fields["mlp_layer_types"] = [present[min(i, len(present) - 1)] for i in range(count)]
    if "kv_lora_rank" in default:  # latent attention has keys for every head
        fields["num_key_value_heads"] = 4
    if "is_decoder" in default:
        fields["is_decoder"] = True
    parts = {name: value for name, value in default.items() if isinstance(value, PreTrainedConfig)}
    for name, part in parts.items():
        fields[name] = _fields(type(part), part.model_type, changes if name == "text_config" else {})
    if "text_config" in parts:
        changes = {}
    return fields | OVERRIDES.get(model_type, {}) | changes


def tiny(model_type: str, **changes: Any) -> PreTrainedModel:
    """A random model of this type whose logits are far from uniform, in evaluation mode."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which a new model has at one and zero
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            else:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word w0, w1, ..."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    backend = Tokenizer(WordLevel(words, unk_token="w2"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="w1", eos_token=f"w{EOS}", unk_token="w2", pad_token="w0"
    )
