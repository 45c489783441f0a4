"""TRL's half of `against_trl.py`, run by the Python of TRL's own environment: GRPOTrainer, timed from outside.

    python trl_side.py '{"model": DIRECTORY, "prompts": [..], "samples": 8, "tokens": 64, ...}'

prints one line of JSON. TRL is tuned for speed at this size: no gradient checkpointing, one pass per step over all
completions, fused AdamW, no logging, saving or evaluation, no second forward pass for old log-probabilities (TRL needs
none when it takes one optimizer step per generation). `cache_implementation="static"` was no faster.
"""

import json
import sys
import tempfile
import time

from trl_trainer import Clock, grpo_config


def reward(text: str) -> float:
    """The share of a completion's words that differ from each other: depends on the text, and costs nothing."""
    words = text.split()
    return len(set(words)) / max(1, len(words))


def main(work: dict) -> dict:
    """work: the fields of `against_trl.Work`, with the texts as prompts; model: a directory; beta.

    Returns wall and CPU seconds of each step, and seconds of `generate` in each.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOTrainer

    torch.set_num_threads(work["threads"])
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work["model"], padding_side="left")
    generate, generation_seconds = model.generate, []

    def timed_generate(*args, **kwargs):
        begin = time.perf_counter()
        output = generate(*args, **kwargs)
        assert output.shape[1] == work["prompt_tokens"] + work["tokens"], (
            "the completions do not have the forced length"
        )
        generation_seconds.append(time.perf_counter() - begin)
        return output

    model.generate = timed_generate
    clock = Clock(work["warmup"])
    with tempfile.TemporaryDirectory() as directory:
        config = grpo_config(
            directory,
            work,
            work["beta"],
            work["learning_rate"],
            use_cpu=True,
            bf16=work["precision"] == "bfloat16",
            gradient_checkpointing=False,
            per_device_train_batch_size=len(work["prompts"]) * work["samples"],
            gradient_accumulation_steps=1,
            num_generations=work["samples"],
            max_completion_length=work["tokens"],
            generation_kwargs={"min_new_tokens": work["tokens"]},
        )
        GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=lambda completions, **_: [reward(text) for text in completions],
            train_dataset=Dataset.from_dict({"prompt": work["prompts"]}),
            callbacks=[clock],
            args=config,
        ).train()
    wall, cpu = clock.measured()
    return {"step_s": wall, "cpu_s": cpu, "generate_s": generation_seconds[work["warmup"] :]}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
