"""vLLM's weight transfer, as carerft drives it: real engine, real policy; a queue stands where NCCL is on GPUs."""

from collections.abc import Sequence
from queue import Queue

import pytest
import torch
from helpers.engines import needs_vllm, options, perturb, save_model
from helpers.sampling import PROMPTS, teacher_forced

from carerft.rollout import Sampling

pytestmark = needs_vllm


def test_an_engine_samples_from_the_weights_that_were_sent(tmp_path, monkeypatch):
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory
    from vllm.distributed.weight_transfer import nccl_engine as nccl

    from carerft.rollout.engine import Engine
    from carerft.rollout.transfer import PolicyWeights, Transfer

    wire: Queue = Queue()

    class QueueEngine(nccl.NCCLWeightTransferEngine):
        def init_transfer_engine(self, init_info):
            joined.append((init_info.rank_offset, init_info.world_size))

        def receive_weights(self, update_info):
            told = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
            for name, dtype, shape in told:
                weight = wire.get(timeout=60)
                assert (str(weight.dtype), list(weight.shape)) == (f"torch.{dtype}", list(shape))
                self.model.load_weights([(name, weight)])

    WeightTransferEngineFactory.register_engine("queue", QueueEngine)
    monkeypatch.setattr(nccl, "open_trainer_endpoint", lambda info: Queue())
    monkeypatch.setattr(
        nccl.NCCLTrainerWeightTransferEngine,
        "_broadcast",
        lambda self, source, meta: [wire.put(weight.clone()) for _, weight in self._checked_iter(source, meta)],
    )
    monkeypatch.setattr(
        PolicyWeights, "__iter__", lambda self, read=PolicyWeights.__iter__: asked.append("read") or read(self)
    )
    joined: list[tuple[int, int]] = []
    policy = save_model(tmp_path)
    engine = Engine(options(tmp_path, weight_transfer_config={"backend": "queue"}))
    asked: list[str] = []

    def ask(method: str, arguments: Sequence[tuple]) -> None:
        asked.append(arguments[0][0])
        for some in arguments:
            getattr(engine, method)(*some)

    transfer = Transfer(ask, 1, 1, torch.float32)
    try:
        for seed in (1, 2):
            perturb(policy, seed)
            with monkeypatch.context() as gpu:  # the weights are read once the optimizer, on its stream, has made them
                gpu.setattr(torch.accelerator, "is_available", lambda: True)
                gpu.setattr(torch.accelerator, "synchronize", lambda: asked.append("synchronize"))
                asked.append("send")
                transfer.send(policy)
            rollouts = engine.sample(PROMPTS, 1, Sampling(12, ignore_eos=True), seed=1)
            for prompt, tokens, log_probs in zip(PROMPTS, rollouts.tokens.tolist(), rollouts.log_probs, strict=True):
                torch.testing.assert_close(log_probs, teacher_forced(policy, prompt, tokens), atol=2e-5, rtol=0)
        sends = " ".join(asked).split("send ")[1:]
        assert all(send.startswith("synchronize ") and " read " in send for send in sends) and len(sends) == 2
        round_trip = ["start_weight_update", "update_weights", "finish_weight_update"]
        steps = [step for step in asked if step not in ("send", "read", "synchronize")]
        assert steps == ["init_weight_transfer_engine", *round_trip, *round_trip]
        assert joined == [(1, 2)] and wire.empty()
    finally:
        engine.close()


def test_each_engine_has_its_own_places_in_the_group():
    from carerft.rollout.transfer import Transfer

    asked: list[tuple] = []
    transfer = Transfer(
        lambda method, arguments: asked.append((method, arguments)), engines=3, devices=2, precision=torch.float32
    )
    transfer.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})
    ((method, arguments),) = asked
    assert method == "transfer" and {name for name, _ in arguments} == {"init_weight_transfer_engine"}
    assert [info["rank_offset"] for _, info in arguments] == [1, 3, 5]  # the learner is 0, and each engine has two
    assert {info["world_size"] for _, info in arguments} == {7}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_weights_are_told_as_they_are_sent_rounded_and_tied_ones_under_each_name(tmp_path, precision):
    from carerft.rollout.transfer import PolicyWeights

    source = PolicyWeights(precision)
    source.policy = policy = save_model(tmp_path)
    assert [(m.name, m.dtype, m.shape) for m in source.metadata()] == [
        (name, weight.dtype, tuple(weight.shape)) for name, weight in source
    ]
    sent, matrices = dict(source), precision.itemsize
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= sent.keys() == policy.state_dict().keys()
    assert not any(weight.requires_grad for weight in sent.values())
    for name, weight in policy.state_dict().items():
        assert torch.equal(sent[name], weight.to(precision) if weight.dim() > 1 else weight)
    assert sum(weight.nbytes for weight in sent.values()) == sum(
        (matrices if weight.dim() > 1 else 4) * weight.numel() for weight in policy.state_dict().values()
    )
