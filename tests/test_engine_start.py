"""How an engine starts and ends: what vLLM makes of its arguments, also for a GPU, and what is said of a failure."""

import json
import os
from typing import Any

import pytest
import torch
from helpers.engines import letters, needs_vllm, options, save_model

from carerft.errors import CareError
from carerft.planning.assumptions import load

pytestmark = needs_vllm

QWEN = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16", "hidden_act": "silu",
    "bos_token_id": 151643, "eos_token_id": 151643, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
}  # fmt: skip
MODELS = {
    "3B": {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 131072, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""The config.json of Qwen2.5's base models."""


class Gpu:
    """vLLM's platform, of this machine, as its rules for the sizes of a batch would see a GPU."""

    def __init__(self, platform: Any, name: str, gib: float):
        self._platform, self._name, self._gib = platform, name, gib

    def __getattr__(self, name: str) -> Any:
        return getattr(self._platform, name)

    def is_cpu(self) -> bool:
        return False

    def get_device_name(self) -> str:
        return self._name

    def get_device_total_memory(self) -> int:
        return int(self._gib * 2**30)


@pytest.mark.parametrize("size", MODELS)
@pytest.mark.parametrize(
    ("gpu", "gib", "tokens", "sequences"),
    [("NVIDIA H100 80GB HBM3", 79.6, 16384, 1024), ("NVIDIA GeForce RTX 4090", 23.6, 8192, 256)],
)
def test_memory_is_measured_with_vllms_own_number_of_tokens_and_not_with_the_context(
    size, gpu, gib, tokens, sequences, tmp_path, monkeypatch
):
    """That run, with so many tokens at once, takes what it needs from the cache."""
    from vllm.engine import arg_utils
    from vllm.usage.usage_lib import UsageContext

    letters().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(QWEN | MODELS[size]))
    monkeypatch.setattr(arg_utils, "current_platform", Gpu(arg_utils.current_platform, gpu, gib))
    context = MODELS[size]["max_position_embeddings"]  # as rollout.max_model_len may say
    chosen = options(tmp_path, dtype="bfloat16", max_model_len=context, max_num_seqs=None)

    def config(cpu: bool) -> Any:
        return arg_utils.EngineArgs(**chosen.arguments(cpu)).create_engine_config(UsageContext.LLM_CLASS)

    found = config(cpu=False)
    assert found.scheduler_config.max_num_batched_tokens == tokens
    assert found.scheduler_config.max_num_seqs == sequences
    assert found.model_config.max_model_len == context
    assert found.model_config.head_dtype == torch.float32 and found.model_config.dtype == torch.bfloat16
    # What a CPU needs would be 15.6 GiB for 7B on a GPU.
    assert config(cpu=True).scheduler_config.max_num_batched_tokens == max(context, tokens)


def test_a_plan_knows_what_vllm_takes_by_default_on_each_card(monkeypatch):
    from vllm.engine import arg_utils
    from vllm.usage.usage_lib import UsageContext

    for kind, device in load().hardware.items():
        for name in device.names:
            gpu = Gpu(arg_utils.current_platform, f"NVIDIA {name}", device.memory_gib)
            with monkeypatch.context() as patch:
                patch.setattr(arg_utils, "current_platform", gpu)
                tokens, sequences = arg_utils.EngineArgs.get_batch_defaults(world_size=1)
            defaults = tokens[UsageContext.LLM_CLASS], sequences[UsageContext.LLM_CLASS]
            assert (device.engine_tokens, device.engine_sequences) == defaults, kind


def test_an_engine_in_float32_computes_in_float32_and_is_woken_before_it_is_closed(tmp_path, monkeypatch):
    """On a GPU, where Triton would use TF32, and where engines sleep: what sleeps would be freed twice."""
    from triton import knobs

    from carerft.rollout.engine import Engine

    calls: list[str] = []
    save_model(tmp_path)
    monkeypatch.delenv("TRITON_F32_DEFAULT", raising=False)
    engine = Engine(options(tmp_path))
    assert engine.runner == "V1"  # the other one needs Triton, which has no backend for a CPU
    assert knobs.language.fp32_default == "ieee"  # tests/test_dedicated.py asks the process of a dedicated engine
    core = engine.llm.llm_engine.engine_core
    engine.can_sleep = True
    monkeypatch.setattr(engine.llm, "sleep", lambda level: calls.append("sleep"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    monkeypatch.setattr(core, "shutdown", lambda end=core.shutdown: [calls.append("shutdown"), end()])

    def wake_up() -> None:
        calls.append("wake_up")
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(engine.llm, "wake_up", wake_up)
    engine.sleep()
    engine.close()
    engine.close()
    assert calls == ["sleep", "empty_cache", "wake_up", "shutdown"]


def test_too_little_memory_names_the_options_to_lower(tmp_path):
    from carerft.rollout.engine import Engine

    save_model(tmp_path)
    with pytest.raises(CareError, match=r"too little memory.*\n.*gpu_memory_utilization.*rollout.kv_cache_gib"):
        Engine(options(tmp_path, kv_cache_memory_bytes=10**14))
    with pytest.raises(CareError, match=r"cannot hold one sequence of 400 tokens.*\n.*max_model_len"):
        Engine(options(tmp_path, kv_cache_memory_bytes=10**5))


@pytest.mark.parametrize(
    ("assertion", "message"),
    [
        (
            "CuMem allocator can only be used for one instance per process.",
            "another vLLM engine already.*\n.*dedicated",
        ),
        ("Error in memory profiling. Initial free memory 70 GiB, current free memory 75 GiB.", "another program"),
    ],
)
def test_what_vllm_asserts_of_a_gpu_is_explained(tmp_path, monkeypatch, assertion, message):
    import vllm

    from carerft.rollout.engine import Engine

    def failing(**arguments: Any) -> None:
        raise AssertionError(assertion)

    monkeypatch.setattr(vllm, "LLM", failing)
    monkeypatch.delenv("TRITON_F32_DEFAULT", raising=False)
    with pytest.raises(CareError, match=message):
        Engine(options(tmp_path, dtype="bfloat16"))
    assert "TRITON_F32_DEFAULT" not in os.environ  # bfloat16 has no need of it
