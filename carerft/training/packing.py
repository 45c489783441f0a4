"""Many sequences as one row of tokens, without padding.

A row is made of segments that follow each other: a sequence, prompt and completion together, or, where a prompt is read
once for all of its completions, prompts and completions by themselves. A segment's tokens see those before them in it
and, a completion's, the whole of its prompt; nothing else (attention.py). Positions count from each prompt's
beginning, so that every token is read as it would be alone.
"""

import heapq
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from carerft.rollout import Rollouts

# How sequences lie in a microbatch: in a row ("separate", prompts with each completion; "shared", prompts once), or in
# rows of their own, padded.
Layout = Literal["shared", "separate", "padded"]


@dataclass(frozen=True)
class Packed:
    """A row of N tokens in K segments, on one device.

    tokens, positions: (N,) int64.
    starts: (K + 1,) int64 on the CPU, the place of each segment's first token; the last is N.
    prefixes: (K,) int64 on the CPU, the segment that each one's tokens see the whole of; -1: none.
    chosen_in: (C,) int64, the place of the token whose state chose each completion token, one sequence after another.
    """

    tokens: Tensor
    positions: Tensor
    starts: Tensor
    prefixes: Tensor
    chosen_in: Tensor

    @property
    def lengths(self) -> Tensor:
        """(K,) tokens of each segment."""
        return self.starts.diff()

    @cached_property
    def varlen(self) -> "Varlen":
        """For attention kernels that take segments of any length."""
        lengths, device = self.lengths, self.tokens.device
        seen = lengths + torch.where(self.prefixes >= 0, lengths[self.prefixes], 0)

        def ends(sizes: Tensor) -> Tensor:
            return torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).to(device, torch.int32)

        places = None
        if bool((self.prefixes >= 0).any()):
            parts = []
            for segment, prefix in enumerate(self.prefixes.tolist()):
                parts += [self._range(prefix)] if prefix >= 0 else []
                parts.append(self._range(segment))
            places = torch.cat(parts).to(device)
        return Varlen(ends(lengths), ends(seen), int(lengths.max()), int(seen.max()), places)

    @cached_property
    def grids(self) -> list["Grid"]:
        """For attention kernels that take rectangles: segments without a prefix, and segments with one, padded."""
        return [self._grid(kind) for kind in (self.prefixes < 0, self.prefixes >= 0) if bool(kind.any())]

    def _range(self, segment: int) -> Tensor:
        return torch.arange(int(self.starts[segment]), int(self.starts[segment + 1]))

    def _grid(self, kind: Tensor) -> "Grid":
        segments, device = kind.nonzero().squeeze(-1), self.tokens.device
        starts, lengths, prefixes = self.starts[segments], self.lengths[segments], self.prefixes[segments]
        queries, inside = _padded(starts, lengths)
        width = queries.shape[1]
        even = bool((lengths == lengths[0]).all()) and bool((segments.diff() == 1).all())
        span = slice(int(starts[0]), int(starts[0]) + queries.numel()) if even else None
        keys, mask = queries, None
        if int(prefixes[0]) >= 0:
            prefix, visible = _padded(self.starts[prefixes], self.lengths[prefixes])
            keys = torch.cat([prefix, queries], dim=1)
            before = torch.ones(width, width, dtype=torch.bool).tril()
            mask = torch.cat([visible[:, None].expand(-1, width, -1), before.expand(len(segments), -1, -1)], dim=-1)
            mask = mask[:, None].to(device)
        real = inside.flatten().nonzero().squeeze(-1)
        return Grid(queries.to(device), keys.to(device), mask, real.to(device), span)


@dataclass(frozen=True)
class Varlen:
    """starts of segments among queries and keys, (K + 1,) int32; the longest of each; the place of each key, or None
    where a segment's keys are its queries' tokens."""

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int
    places: Tensor | None


@dataclass(frozen=True)
class Grid:
    """k segments as a rectangle; what is padding is some token or other.

    queries: (k, T) places; keys: (k, T_keys) places; mask: (k, 1, T, T_keys) bool, None: causal.
    real: (n,) which of the k * T queries are tokens of the segments, in their order in the row.
    span: the place of the queries in the row where they are neighbours without padding; else None.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None
    real: Tensor
    span: slice | None


def _padded(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(k,), (k,) -> the places of each segment's tokens (k, T), and which of them are its own (k, T) bool."""
    steps = torch.arange(int(lengths.max()))
    inside = steps[None, :] < lengths[:, None]
    return torch.where(inside, starts[:, None] + steps, 0), inside


@dataclass
class _Row:
    """Segments as they are added."""

    pieces: list[Tensor] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    prefixes: list[int] = field(default_factory=list)

    def add(self, tokens: Tensor, position: int = 0, prefix: int = -1) -> int:
        """Add a segment. position: of its first token. Returns that token's place in the row."""
        self.pieces.append(tokens)
        self.positions.append(torch.arange(position, position + len(tokens)))
        self.prefixes.append(prefix)
        self.starts.append(self.starts[-1] + len(tokens))
        return self.starts[-2]


def pack(rollouts: Rollouts, index: Tensor, layout: Layout, device: torch.device) -> Packed:
    """The sequences `index` (b,) as a row. The last token of each is not read: its state chooses nothing.

    layout: "separate" or "shared"; then prompts come before completions.
    """
    owners = (index // rollouts.group_size).tolist()
    prompts = {owner: rollouts.prompt_tokens[owner, : rollouts.prompt_lengths[owner]] for owner in owners}
    row, chosen_in = _Row(), []
    if layout == "shared":
        ends = {owner: row.add(prompt) + len(prompt) - 1 for owner, prompt in prompts.items()}
        segments = {owner: number for number, owner in enumerate(prompts)}
    for i, owner in zip(index.tolist(), owners, strict=True):
        prompt, n = prompts[owner], int(rollouts.lengths[i])
        read = rollouts.tokens[i, : n - 1]
        if layout == "separate":
            last = row.add(torch.cat([prompt, read])) + len(prompt) - 1
            chosen_in.append(torch.arange(last, last + n))
            continue
        chosen_in.append(torch.tensor([ends[owner]]))  # a prompt's last state chooses the first token
        if n > 1:
            begin = row.add(read, len(prompt), segments[owner])
            chosen_in.append(torch.arange(begin, begin + n - 1))
    tokens, positions, places = (torch.cat(parts).to(device) for parts in (row.pieces, row.positions, chosen_in))
    return Packed(tokens, positions, torch.tensor(row.starts), torch.tensor(row.prefixes), places)


def microbatches(rollouts: Rollouts, token_budget: int, layout: Layout, processes: int = 1) -> list[Tensor]:
    """A batch cut into microbatches: the sequences of each, ascending; none where there are too few to share out.

    Each holds at most `token_budget` tokens as they are read (a shared prompt once for its completions there; padding
    too, as if every sequence were as long as the longest), or a single sequence. Their number is a multiple of
    `processes`, and they are ordered by size, so that each `processes` neighbours are about equal. The longest part
    goes first, to where there is least so far.
    """
    parts = _parts(rollouts, token_budget, layout, processes)
    total = sum(size for size, _ in parts)
    count = processes * max(1, -(-total // (token_budget * processes)))
    while True:
        loads: list[tuple[int, int]] = [(0, number) for number in range(count)]
        held: list[list[int]] = [[] for _ in loads]
        alone = [0] * count
        for size, members in sorted(parts, key=lambda part: -part[0]):
            load, number = heapq.heappop(loads)
            heapq.heappush(loads, (load + size, number))
            held[number] += members
            alone[number] += 1
        if all(load <= token_budget or alone[number] < 2 for load, number in loads):
            return [torch.tensor(sorted(held[number]), dtype=torch.int64) for _, number in sorted(loads, reverse=True)]
        count += processes


def _parts(rollouts: Rollouts, token_budget: int, layout: Layout, processes: int) -> list[tuple[int, list[int]]]:
    """What is not cut further: the tokens of each part, and its sequences. With shared prompts, as many neighbouring
    completions of a prompt as fit the budget, and a process's even share of the batch."""
    prompts = rollouts.prompt_lengths.repeat_interleave(rollouts.group_size)
    sizes, lengths = (prompts + rollouts.lengths).tolist(), rollouts.lengths.tolist()
    if layout != "shared":
        return [(max(sizes) if layout == "padded" else size, [i]) for i, size in enumerate(sizes)]
    most = min(token_budget, -(-(sum(lengths) + int(rollouts.prompt_lengths.sum())) // processes))
    parts: list[tuple[int, list[int]]] = []
    for i, (size, n) in enumerate(zip(sizes, lengths, strict=True)):
        if i % rollouts.group_size and parts[-1][0] + n <= most:
            parts[-1] = (parts[-1][0] + n, [*parts[-1][1], i])
        else:
            parts.append((size, [i]))
    return parts
