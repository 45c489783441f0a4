"""TRL's half of `learner.py`, run by the Python of TRL's own environment.

    python learner_trl.py '{"work": {..}, "config": {..}, "rollouts": FILE, "beta": 0.04, "learning_rate": 1e-6}'

prints one line of JSON. Nothing here imports carerft, and TRL is imported only by `main`.

GRPOTrainer's own training loop, with generation and rewards replaced by the synthetic rollouts: the reference's
log-probabilities, loss, backward pass, clipping and AdamW are TRL's. It pads each batch to its longest prompt and
completion. A microbatch holds as many of these rows as fit its budget of tokens and divide the batch.
"""

import copy
import json
import sys
import tempfile
from functools import partial

import torch
from measuring import matmul_flops, peak, start_counting
from trl_trainer import Clock, grpo_config


def padded(rollouts: dict[str, torch.Tensor], group_size: int) -> dict[str, torch.Tensor]:
    """The rollouts in GRPOTrainer's form: prompts padded on the left, one for each completion, with masks."""
    lengths = rollouts["prompt_lengths"]
    positions = torch.arange(rollouts["prompt_tokens"].shape[1]) - (int(lengths.max()) - lengths[:, None])  # (P, T)
    tokens = rollouts["prompt_tokens"].gather(1, positions.clamp(min=0))
    mask = (torch.arange(rollouts["tokens"].shape[1]) < rollouts["lengths"][:, None]).long()
    return {
        "prompt_ids": (tokens * (positions >= 0)).repeat_interleave(group_size, 0),
        "prompt_mask": (positions >= 0).long().repeat_interleave(group_size, 0),
        "completion_ids": rollouts["tokens"],
        "completion_mask": mask,
        "advantages": rollouts["advantages"],
        "num_items_in_batch": mask.sum(),
    }


def rows_per_microbatch(sequences: int, width: int, budget: int) -> int:
    """The largest divisor of `sequences` that is at most budget / width; at least 1. width, budget: in tokens."""
    return max(n for n in range(1, sequences + 1) if sequences % n == 0 and (n == 1 or n * width <= budget))


def main(spec: dict) -> dict:
    """spec: work, config, beta and learning_rate of `learner.py`; rollouts: a file of tensors.

    Returns wall and CPU seconds of each step, the peak in bytes above what was allocated before the model, and how
    the batch was cut into microbatches.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOTrainer
    from trl.models.utils import disable_gradient_checkpointing
    from trl.trainer import grpo_trainer

    work, device = spec["work"], spec["work"]["device"]
    torch.set_num_threads(work["threads"])
    batch = padded(torch.load(spec["rollouts"], weights_only=True), work["group_size"])
    width = batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]
    rows = rows_per_microbatch(work["sequences"], width, work["tokens_per_microbatch"])
    if device == "cuda":
        torch.cuda.init()  # before this, there are no statistics of memory to reset
    before = start_counting(device)
    config = {key: value for key, value in spec["config"].items() if key != "model_type"}
    torch.manual_seed(work["seed"])
    with torch.device(device):
        model = Qwen2ForCausalLM(Qwen2Config(**config, bos_token_id=None, eos_token_id=1, pad_token_id=0))
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    # TRL reads the reference from a hub or a directory; this model has neither.
    grpo_trainer.create_model_from_path = lambda *_, **__: copy.deepcopy(model).eval()

    class Learner(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            tensors = {key: value.to(self.accelerator.device) for key, value in batch.items()}
            if self.ref_model is None:
                return tensors
            tokens = torch.cat([tensors["prompt_ids"], tensors["completion_ids"]], 1)
            mask = torch.cat([tensors["prompt_mask"], tensors["completion_mask"]], 1)
            width = tensors["completion_ids"].shape[1]
            with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
                tensors["ref_per_token_logps"] = self._get_per_token_logps_and_entropies(
                    self.ref_model, tokens, mask, width, batch_size=rows
                )[0]
            return tensors

    clock = Clock(work["warmup"], device, after_warmup=partial(start_counting, device))
    with tempfile.TemporaryDirectory() as directory:
        config = grpo_config(
            directory,
            work,
            spec["beta"],
            spec["learning_rate"],
            use_cpu=device == "cpu",
            bf16=work["precision"] == "bfloat16",
            gradient_checkpointing=work["checkpointing"],
            gradient_checkpointing_kwargs={"use_reentrant": False} if work["checkpointing"] else None,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=work["sequences"] // rows,
            num_generations=work["group_size"],
            max_completion_length=batch["completion_ids"].shape[1],
        )
        trainer = Learner(
            model=model,
            processing_class=tokenizer,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            train_dataset=Dataset.from_dict({"prompt": ["<eos>"] * (work["sequences"] // work["group_size"])}),
            callbacks=[clock],
            args=config,
        )
        rates = matmul_flops(device, work["precision"])
        trainer.train()
    wall, cpu = clock.measured()
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "matmul_flops": rates + matmul_flops(device, work["precision"]),
        "peak_bytes": None if before is None else peak(device) - before,
        "read_tokens": work["sequences"] * width,
        "microbatches": work["sequences"] // rows,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    try:
        print(json.dumps(main(json.loads(sys.argv[1]))))
    except torch.OutOfMemoryError as error:
        print(json.dumps({"why_not": f"out of memory: {error}"}))
