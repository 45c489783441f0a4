"""TRL's half of `learner.py`, run by the Python of TRL's own environment, and the measuring that both halves share.

    python learner_trl.py '{"work": {..}, "config": {..}, "rollouts": FILE, "beta": 0.04}'

prints one line of JSON. Nothing here imports carerft, and TRL is imported only by `main`.

GRPOTrainer's own training loop, with generation and rewards replaced by the synthetic rollouts: the reference's
log-probabilities, loss, backward pass, clipping and AdamW are TRL's. It pads each batch to its longest prompt and
completion; as many such rows share a microbatch as its token budget allows and divide the batch.
"""

import copy
import json
import os
import sys
import tempfile
import time
from itertools import pairwise

import torch
from lm_head_trl import peak, seconds, start_counting


def matmul_flops(device: str, precision: str, repeats: int = 5) -> list[float]:
    """Operations per second of a bare matrix product in the step's precision, each of several."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, precision)) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    return [2 * size**3 / seconds(device, lambda: torch.mm(a, b, out=out)) for _ in range(repeats)]


def padded(rollouts: dict[str, torch.Tensor], group_size: int) -> dict[str, torch.Tensor]:
    """As GRPOTrainer wants them: prompts padded on the left, one for each completion, with masks."""
    lengths = rollouts["prompt_lengths"]
    places = torch.arange(rollouts["prompt_tokens"].shape[1]) - (int(lengths.max()) - lengths[:, None])  # (P, T)
    tokens = rollouts["prompt_tokens"].gather(1, places.clamp(min=0))
    mask = (torch.arange(rollouts["tokens"].shape[1]) < rollouts["lengths"][:, None]).long()
    return {
        "prompt_ids": (tokens * (places >= 0)).repeat_interleave(group_size, 0),
        "prompt_mask": (places >= 0).long().repeat_interleave(group_size, 0),
        "completion_ids": rollouts["tokens"],
        "completion_mask": mask,
        "advantages": rollouts["advantages"],
        "num_items_in_batch": mask.sum(),
    }


def rows_per_microbatch(sequences: int, width: int, budget: int) -> int:
    """The largest divisor of `sequences` of which as many rows of `width` fit the budget; at least 1."""
    return max(n for n in range(1, sequences + 1) if sequences % n == 0 and (n == 1 or n * width <= budget))


def main(spec: dict) -> dict:
    """work, config, beta: as `learner.py` has them; rollouts: a file of tensors.

    Returns wall and CPU seconds of each step, the peak in bytes above what was there before the model, and how the
    batch was cut.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.models.utils import disable_gradient_checkpointing
    from trl.trainer import grpo_trainer

    work, device = spec["work"], spec["work"]["device"]
    torch.set_num_threads(work["threads"])
    batch = padded(torch.load(spec["rollouts"], weights_only=True), work["group_size"])
    width = batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]
    rows = rows_per_microbatch(work["sequences"], width, work["tokens_per_microbatch"])
    if device == "cuda":
        torch.cuda.init()  # else there is nothing to count yet
    before = start_counting(device)
    config = {key: value for key, value in spec["config"].items() if key != "model_type"}
    torch.manual_seed(work["seed"])
    with torch.device(device):
        model = Qwen2ForCausalLM(Qwen2Config(**config, bos_token_id=None, eos_token_id=1, pad_token_id=0))
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    # TRL reads the reference from a hub or a directory; this model is in neither.
    grpo_trainer.create_model_from_path = lambda *_, **__: copy.deepcopy(model).eval()

    class Learner(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            given = {key: value.to(self.accelerator.device) for key, value in batch.items()}
            if self.ref_model is None:
                return given
            tokens = torch.cat([given["prompt_ids"], given["completion_ids"]], 1)
            mask = torch.cat([given["prompt_mask"], given["completion_mask"]], 1)
            wanted = given["completion_ids"].shape[1]
            with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
                given["ref_per_token_logps"] = self._get_per_token_logps_and_entropies(
                    self.ref_model, tokens, mask, wanted, batch_size=rows
                )[0]
            return given

    readings: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        """Reads the clocks once after every step; a step is what lies between two readings."""

        def on_train_begin(self, *args, **kwargs):
            if len(readings) == work["warmup"]:
                start_counting(device)
            if device == "cuda":
                torch.cuda.synchronize()
            readings.append((time.perf_counter(), time.process_time()))

        on_step_end = on_train_begin

    with tempfile.TemporaryDirectory() as directory:
        trainer = Learner(
            model=model,
            processing_class=tokenizer,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            train_dataset=Dataset.from_dict({"prompt": ["<eos>"] * (work["sequences"] // work["group_size"])}),
            callbacks=[Clock()],
            args=GRPOConfig(
                output_dir=directory,
                use_cpu=device == "cpu",
                bf16=work["precision"] == "bfloat16",
                gradient_checkpointing=work["checkpointing"],
                gradient_checkpointing_kwargs={"use_reentrant": False} if work["checkpointing"] else None,
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=work["sequences"] // rows,
                num_generations=work["group_size"],
                max_completion_length=batch["completion_ids"].shape[1],
                loss_type="grpo",
                beta=spec["beta"],
                learning_rate=spec["learning_rate"],
                lr_scheduler_type="constant",
                max_grad_norm=1.0,
                optim="adamw_torch_fused",
                max_steps=work["warmup"] + work["steps"],
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )
        rates = matmul_flops(device, work["precision"])
        trainer.train()
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(readings)][work["warmup"] :]
    return {
        "seconds": [wall for wall, _ in steps],
        "cpu_seconds": [cpu for _, cpu in steps],
        "matmul_flops": rates + matmul_flops(device, work["precision"]),
        "peak_bytes": None if before is None else peak(device) - before,
        "read_tokens": work["sequences"] * width,
        "microbatches": work["sequences"] // rows,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        print(json.dumps(main(json.loads(sys.argv[1]))))
    except torch.OutOfMemoryError as error:
        print(json.dumps({"why_not": f"out of memory: {error}"}))
