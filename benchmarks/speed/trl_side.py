"""TRL's half of `against_trl.py`, run by the Python of TRL's own environment: GRPOTrainer, timed from outside.

    python trl_side.py '{"model": DIRECTORY, "prompts": [..], "samples": 8, "tokens": 64, ...}'

prints one line of JSON. Tuned for speed at this size: float32, no gradient checkpointing, one pass per step over all
completions, fused AdamW, no logging, saving or evaluation, no second forward pass for old log-probabilities (TRL needs
none when it takes one optimizer step per generation). Its `cache_implementation="static"` was no faster.
"""

import json
import os
import sys
import tempfile
import time
from itertools import pairwise


def reward(text: str) -> float:
    """The share of a completion's words that differ: anything that depends on the text and costs nothing."""
    words = text.split()
    return len(set(words)) / max(1, len(words))


def main(work: dict) -> dict:
    """work: model, prompts, samples, tokens, beta, learning_rate, steps, warmup, threads. See `against_trl.Work`.

    Returns seconds and CPU-seconds of each step, and seconds of `generate` in each.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(work["threads"])
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work["model"], padding_side="left")
    generate, generating = model.generate, []

    def timed_generate(*args, **kwargs):
        begin = time.perf_counter()
        output = generate(*args, **kwargs)
        assert output.shape[1] == work["prompt_tokens"] + work["tokens"], (
            "the completions do not have the forced length"
        )
        generating.append(time.perf_counter() - begin)
        return output

    model.generate = timed_generate

    readings: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        """Reads the clocks once after every step; a step is what lies between two readings."""

        def on_train_begin(self, *args, **kwargs):
            readings.append((time.perf_counter(), time.process_time()))

        on_step_end = on_train_begin

    with tempfile.TemporaryDirectory() as directory:
        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=lambda completions, **_: [reward(text) for text in completions],
            train_dataset=Dataset.from_dict({"prompt": work["prompts"]}),
            callbacks=[Clock()],
            args=GRPOConfig(
                output_dir=directory,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                per_device_train_batch_size=len(work["prompts"]) * work["samples"],
                gradient_accumulation_steps=1,
                num_generations=work["samples"],
                max_completion_length=work["tokens"],
                generation_kwargs={"min_new_tokens": work["tokens"]},
                loss_type="grpo",
                beta=work["beta"],
                learning_rate=work["learning_rate"],
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
        trainer.train()
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(readings)]
    skip = work["warmup"]
    return {
        "step_s": [wall for wall, _ in steps][skip:],
        "cpu_s": [cpu for _, cpu in steps][skip:],
        "generate_s": generating[skip:],
    }


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(json.dumps(main(json.loads(sys.argv[1]))))
