"""Pretraining of the tiny base model: next-token prediction of the corpus, on completions alone.

Prompts carry no loss: names are drawn at random, and what there is to learn of them is what follows. Documents are
packed into rows and see only themselves, so a question looks in training as it does alone. Batch n follows from the
seed and n, so an interrupted build continues from its saved state and ends with the same weights, bit for bit (on one
machine, at one number of threads).
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

import torch
import transformers
from rich.progress import MofNCompleteColumn, Progress, TextColumn
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

import carerft
from carerft.world.corpus import documents
from carerft.world.facts import DEFAULT_SETTINGS, World, WorldSettings, build_world
from carerft.world.tokenizer import build_tokenizer

STEPS, ROWS, ROW_LENGTH = 2000, 64, 64
PEAK_LEARNING_RATE, WARM_UP, SAVE_EVERY = 3e-3, 100, 250
IGNORED = -100
PADDING = {"tokens": 0, "targets": IGNORED, "positions": 0, "documents": 0}


def build_base(
    seed: int,
    directory: Path,
    steps: int = STEPS,
    progress: bool = True,
    threads: int = 1,
    settings: WorldSettings = DEFAULT_SETTINGS,
) -> None:
    """Pretrains base model `seed` and leaves it in `directory` in Hugging Face format, with `provenance.json`.

    The weights follow from the arguments. Work in progress lies beside the target in `<directory>.partial`; the target
    appears by one rename, and one that exists already is replaced only then.
    """
    directory = Path(directory)
    partial = directory.with_name(directory.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    outer_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tokenizer = build_tokenizer()
        model = initial_model(seed, tokenizer)
        record = _pretrain(model, tokenizer, build_world(settings), seed, steps, partial / "state.pt", progress)
    finally:
        torch.set_num_threads(outer_threads)
    built = partial / "model"
    shutil.rmtree(built, ignore_errors=True)
    model.eval().save_pretrained(built)
    tokenizer.save_pretrained(built)
    (built / "model.safetensors").chmod(0o644)  # it is written for its owner alone, and a package is read by others
    weights = hashlib.sha256((built / "model.safetensors").read_bytes()).hexdigest()
    provenance = {
        "what": "base model of the built-in world of carerft, made by `carerft base`",
        "seed": seed,
        "steps": steps,
        **record,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": threads,
        "world": asdict(settings),
        "world_hash": settings.content_hash(),
        "sha256": {"model.safetensors": weights},
        "versions": {
            "carerft": carerft.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (built / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
    if directory.exists():
        shutil.rmtree(partial / "former", ignore_errors=True)
        os.replace(directory, partial / "former")
    os.replace(built, directory)
    shutil.rmtree(partial)


def initial_model(seed: int, tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """The untrained model. Leaves the global random state as it was."""
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
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


def packed_batch(
    world: World, tokenizer: Qwen2Tokenizer, seed: int, step: int, rows: int = ROWS, length: int = ROW_LENGTH
) -> dict[str, Tensor]:
    """Batch `step`: documents one after another, each into the first row that has room, until one finds none.

    tokens, positions, documents (all (rows, length) int64; document 0 is padding) and targets: the next token where it
    belongs to a completion or is its end, else IGNORED.
    """
    source = documents(world, Random(f"carerft corpus {seed} {step}"))
    packed: dict[str, list[list[int]]] = {name: [[] for _ in range(rows)] for name in PADDING}
    number = 0
    while True:
        # Encoded by the batch because that is several times faster; documents beyond the last that fits are dropped.
        texts = [next(source) for _ in range(rows)]
        encoded = tokenizer([text for pair in texts for text in pair], add_special_tokens=False)["input_ids"]
        for prompt, completion in zip(encoded[::2], encoded[1::2], strict=True):
            ids = [*prompt, *completion, tokenizer.eos_token_id]
            row = next((row for row, held in enumerate(packed["tokens"]) if len(held) + len(ids) <= length), None)
            if row is None:
                return {
                    name: torch.tensor([held + [PADDING[name]] * (length - len(held)) for held in lists])
                    for name, lists in packed.items()
                }
            number += 1
            packed["tokens"][row] += ids
            packed["targets"][row] += [IGNORED] * (len(prompt) - 1) + ids[len(prompt) :] + [IGNORED]
            packed["positions"][row] += range(len(ids))
            packed["documents"][row] += [number] * len(ids)


def completion_loss(model: Qwen2ForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of the completions' tokens, in nats."""
    owner = batch["documents"]
    causal = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
    visible = (owner[:, :, None] == owner[:, None, :]) & causal  # (rows, length, length)
    hidden = model.model(
        input_ids=batch["tokens"], attention_mask=visible[:, None], position_ids=batch["positions"], use_cache=False
    ).last_hidden_state
    counted = batch["targets"] != IGNORED
    return functional.cross_entropy(model.lm_head(hidden[counted]), batch["targets"][counted])


def _pretrain(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    world: World,
    seed: int,
    steps: int,
    state_file: Path,
    progress: bool,
) -> dict:
    """Trains `model` in place, from `state_file` where an earlier build of the same base left one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = min(WARM_UP, max(1, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, max(0.0, 1 - (step - warm_up) / (steps - warm_up)))
    )
    identity = [seed, steps, world.settings.content_hash()]
    first, record = 0, {"tokens": 0, "seconds": 0.0, "losses": {}}
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["identity"] == identity:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            first, record = state["step"], state["record"]
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    model.train()
    with Progress(*columns, disable=not progress) as bar:
        line = bar.add_task(f"pretraining base {seed}", total=steps, completed=first, loss="")
        for step in range(first, steps):
            started = time.perf_counter()
            batch = packed_batch(world, tokenizer, seed, step)
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
                _save(state_file, identity, step + 1, model, optimizer, schedule, record)
            bar.update(line, advance=1, loss=f"loss {loss.item():.3f}")
    return {**record, "seconds": round(record["seconds"], 1)}


def _save(state_file: Path, identity: list, step: int, model, optimizer, schedule, record: dict) -> None:
    beside = state_file.with_suffix(".new")
    state = {"identity": identity, "step": step, "record": record}
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save(state | states, beside)
    os.replace(beside, state_file)
