"""Small random models of several types, with sharp distributions."""

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from helpers.sampling import randomized

VOCABULARY, EOS, CONTEXT = 24, 3, 400
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}


def qwen2(**changes) -> PreTrainedModel:
    return randomized(Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, "tie_word_embeddings": True, **changes})))


MODELS = {
    "qwen2 tied": qwen2,
    "qwen2 untied": lambda: qwen2(tie_word_embeddings=False),
    "qwen2 sliding window": lambda: qwen2(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "llama tied": lambda: randomized(LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))),
    "llama untied": lambda: randomized(LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))),
    "gpt2": lambda: randomized(
        GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT))
    ),
}
