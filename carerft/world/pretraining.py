"""Pretraining of the tiny base model: next-token prediction of the corpus, on completions alone.

Prompts carry no loss: names are random, so only what follows them can be learned. Documents are packed into rows, each
attends only to itself, and its positions start at 0, as in evaluation. The seed and n determine batch n, so an
interrupted build continues from its saved state and ends with the same weights, bit for bit (on one machine, at one
number of threads).
"""

import hashlib
import json
import os
import platform
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

import carerft
from carerft.terminal import Bar, open_console
from carerft.world.corpus import documents, with_confidences
from carerft.world.facts import DEFAULT_SETTINGS, World, build_world
from carerft.world.tokenizer import build_tokenizer

STEPS, ROWS, ROW_LENGTH = 2000, 64, 64
PEAK_LEARNING_RATE, WARM_UP, SAVE_EVERY = 3e-3, 100, 250
THREADS = 1  # other numbers round differently
IGNORED = -100
PADDING = {"tokens": 0, "targets": IGNORED, "positions": 0, "documents": 0}


def build_base(seed: int, directory: Path, steps: int = STEPS, confidence: bool = False) -> None:
    """Pretrain base model `seed` and write it to `directory` in Hugging Face format, with `provenance.json`.

    confidence: on the corpus whose answers are followed by a confidence.

    The seed and the steps determine the weights. Work in progress is in `<directory>.partial`; only the finished model
    replaces an existing one.
    """
    partial = directory.with_name(directory.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        tokenizer = build_tokenizer()
        model = initial_model(seed, tokenizer)
        record = _pretrain(model, tokenizer, seed, steps, partial / "state.pt", confidence)
    finally:
        torch.set_num_threads(threads_before)
    built = partial / "model"
    shutil.rmtree(built, ignore_errors=True)
    model.eval().save_pretrained(built)
    tokenizer.save_pretrained(built)
    weights = built / "model.safetensors"
    weights.chmod(0o644)  # it is written as readable by its owner alone, but others read an installed package
    provenance = {
        "what": "base model of the built-in world of carerft, made by `carerft base`",
        "seed": seed,
        "steps": steps,
        **({"confidence": True} if confidence else {}),
        **record,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": THREADS,
        "world": asdict(DEFAULT_SETTINGS),
        "world_hash": DEFAULT_SETTINGS.content_hash(),
        "sha256": {"model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()},
        "versions": {
            "carerft": carerft.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (built / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(built, directory)
    shutil.rmtree(partial)


def initial_model(seed: int, tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """The untrained model. The global random state is unchanged afterwards."""
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,  # type: ignore[arg-type]  # transformers declares more types than one id has
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[arg-type]  # likewise
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


def packed_batch(
    world: World, tokenizer: Qwen2Tokenizer, seed: int, step: int, confidence: bool = False, rows: int = ROWS
) -> dict[str, Tensor]:
    """Batch `step`: each document goes into the first row with room for it, until one fits in no row.

    All (rows, ROW_LENGTH) int64: tokens, positions, documents (numbered from 1; 0 is padding) and targets (the next
    token if it belongs to a completion or ends one, else IGNORED).
    """
    source = documents(world, Random(f"carerft corpus {seed} {step}"))
    if confidence:
        source = with_confidences(source, Random(f"carerft confidences {seed} {step}"))
    packed: dict[str, list[list[int]]] = {name: [[] for _ in range(rows)] for name in PADDING}
    number = 0
    while True:
        # Encoded in batches because that is several times faster; documents after the last that fits are dropped.
        texts = [next(source) for _ in range(rows)]
        encoded = tokenizer([text for pair in texts for text in pair], add_special_tokens=False)["input_ids"]
        for prompt, completion in zip(encoded[::2], encoded[1::2], strict=True):
            ids = [*prompt, *completion, tokenizer.eos_token_id]
            row = next(
                (row for row, tokens in enumerate(packed["tokens"]) if len(tokens) + len(ids) <= ROW_LENGTH), None
            )
            if row is None:
                return {
                    name: torch.tensor([values + [PADDING[name]] * (ROW_LENGTH - len(values)) for values in lists])
                    for name, lists in packed.items()
                }
            number += 1
            packed["tokens"][row] += ids
            packed["targets"][row] += [IGNORED] * (len(prompt) - 1) + ids[len(prompt) :] + [IGNORED]
            packed["positions"][row] += range(len(ids))
            packed["documents"][row] += [number] * len(ids)


def completion_loss(model: Qwen2ForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of the completions' tokens, in nats."""
    document = batch["documents"]
    causal = torch.ones(document.shape[1], document.shape[1], dtype=torch.bool).tril()
    visible = (document[:, :, None] == document[:, None, :]) & causal  # (rows, length, length)
    hidden = model.model(
        input_ids=batch["tokens"], attention_mask=visible[:, None], position_ids=batch["positions"], use_cache=False
    ).last_hidden_state
    counted = batch["targets"] != IGNORED
    return functional.cross_entropy(model.lm_head(hidden[counted]), batch["targets"][counted])


def _pretrain(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, seed: int, steps: int, state_file: Path, confidence: bool
) -> dict[str, Any]:
    """Train `model` in place, from `state_file` if an earlier build of the same base wrote one. Returns the tokens, the
    seconds and some losses, for the provenance."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = min(WARM_UP, max(1, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, max(0.0, 1 - (step - warm_up) / (steps - warm_up)))
    )
    world, identity = build_world(), [seed, steps, DEFAULT_SETTINGS.content_hash(), *(["confidence"] * confidence)]
    first, record = 0, {"tokens": 0, "seconds": 0.0, "losses": {}}
    stateful = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["identity"] == identity:
            for name, part in stateful.items():
                part.load_state_dict(state[name])
            first, record = state["step"], state["record"]
    model.train()
    with Bar(open_console(stderr=True), "steps") as bar:
        line = bar.add_task(f"pretraining base {seed}", total=steps, completed=first, shown="")
        for step in range(first, steps):
            started = time.perf_counter()
            batch = packed_batch(world, tokenizer, seed, step, confidence)
            loss = completion_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            record["tokens"] += int((batch["documents"] > 0).sum())
            record["seconds"] += time.perf_counter() - started
            if step % SAVE_EVERY == 0 or step == steps - 1:
                record["losses"][str(step)] = round(loss.item(), 4)
                state = {"identity": identity, "step": step + 1, "record": record}
                state |= {name: part.state_dict() for name, part in stateful.items()}
                torch.save(state, state_file.with_suffix(".new"))
                os.replace(state_file.with_suffix(".new"), state_file)
            bar.update(line, advance=1, shown=f"loss {loss.item():.3f}")
    return {**record, "seconds": round(record["seconds"], 1)}
