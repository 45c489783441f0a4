"""Many sequences packed into one row of tokens, without padding.

A row consists of segments. In the layout "separate" a segment is a prompt with one completion. In "shared" prompts and
completions are segments of their own, and each prompt is read once for all of its completions. A token attends to the
earlier tokens of its segment and, in a completion, to its whole prompt; to nothing else (attention.py). Positions
count from the beginning of the prompt, so every token is read as it would be in a sequence by itself.
"""

import heapq
import itertools
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from carerft.rollout import Rollouts

# How a microbatch is laid out: one row, with prompts before each completion ("separate") or once ("shared"), or one
# padded row for each sequence.
Layout = Literal["shared", "separate", "padded"]


@dataclass(frozen=True)
class Packed:
    """A row of N tokens in K segments, on one device, with C completion tokens to predict.

    tokens, positions: (N,) int64.
    starts: (K + 1,) int64 on the CPU, the index of each segment's first token; the last is N.
    prefixes: (K,) int64 on the CPU, the segment that a segment's tokens attend to beside their own; -1: none.
    predictors: (C,) int64, the index of the token whose hidden state predicts each completion token, one sequence after
        another.
    """

    tokens: Tensor
    positions: Tensor
    starts: Tensor
    prefixes: Tensor
    predictors: Tensor

    @property
    def lengths(self) -> Tensor:
        """(K,) the number of tokens of each segment."""
        return self.starts.diff()

    @cached_property
    def varlen(self) -> "Varlen":
        """The segments, for attention kernels that take segments of any length."""
        lengths, device = self.lengths, self.tokens.device
        key_lengths = lengths + torch.where(self.prefixes >= 0, lengths[self.prefixes], 0)

        def starts(sizes: Tensor) -> Tensor:
            return torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).to(device, torch.int32)

        key_index = None
        if bool((self.prefixes >= 0).any()):
            read = [s for pair in zip(self.prefixes.tolist(), itertools.count()) for s in pair if s >= 0]
            bounds = self.starts.tolist()
            key_index = torch.cat([torch.arange(bounds[s], bounds[s + 1]) for s in read]).to(device)
        return Varlen(starts(lengths), starts(key_lengths), int(lengths.max()), int(key_lengths.max()), key_index)

    @cached_property
    def grids(self) -> list["Grid"]:
        """The segments, for attention kernels that take rectangles: those without a prefix, and those with one."""
        return [self._grid(kind) for kind in (self.prefixes < 0, self.prefixes >= 0) if bool(kind.any())]

    def _grid(self, kind: Tensor) -> "Grid":
        segments, device = kind.nonzero().squeeze(-1), self.tokens.device
        prefixes = self.prefixes[segments]
        queries, valid = _padded(self.starts[segments], self.lengths[segments])
        prefix = visible = None
        if int(prefixes[0]) >= 0:
            prefix, visible = (x.to(device) for x in _padded(self.starts[prefixes], self.lengths[prefixes]))
        return Grid(queries.to(device), prefix, visible, valid.flatten().nonzero().squeeze(-1).to(device))


@dataclass(frozen=True)
class Varlen:
    """Arguments of a kernel for segments of any length.

    query_starts, key_starts: (K + 1,) int32, where each segment starts among the queries and among the keys.
    longest_query, longest_key: the lengths of the longest segments.
    key_index: (N_keys,) int64, the token of each key; None if keys and queries are the same tokens.
    """

    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int
    key_index: Tensor | None


@dataclass(frozen=True)
class Grid:
    """k segments as a padded rectangle; padding holds the index of an arbitrary token.

    queries: (k, T) int64, the segments' tokens. prefix: (k, T_prefix) int64, the tokens that a segment attends to
    beside its own; None: none. visible: (k, T_prefix) bool, which of these are no padding; None without a prefix.
    valid: (n,) int64, which of the k * T queries are no padding, in their order in the row.
    """

    queries: Tensor
    prefix: Tensor | None
    visible: Tensor | None
    valid: Tensor

    @cached_property
    def mask(self) -> Tensor | None:
        """(k, 1, T, T_prefix + T) bool, what each query attends to of the prefix and its segment; None: causal."""
        if self.visible is None:
            return None
        k, width = self.queries.shape
        causal = torch.ones(width, width, dtype=torch.bool).tril().to(self.visible.device)
        return torch.cat([self.visible[:, None].expand(-1, width, -1), causal.expand(k, -1, -1)], dim=-1)[:, None]


def _padded(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Segments (k,), (k,) -> the indices of their tokens (k, T), and which of these are no padding (k, T) bool."""
    steps = torch.arange(int(lengths.max()))
    valid = steps[None, :] < lengths[:, None]
    return torch.where(valid, starts[:, None] + steps, 0), valid


def pack(rollouts: Rollouts, index: Tensor, layout: Layout, device: torch.device) -> Packed:
    """The sequences `index` (b,) as a row. The last token of each is left out: its state predicts nothing.

    layout: "separate" or "shared"; in the latter, prompts come before completions.
    """
    pieces: list[Tensor] = []
    positions: list[Tensor] = []
    starts, prefixes = [0], []
    predictors: list[Tensor] = []

    def add(tokens: Tensor, position: int = 0, prefix: int = -1) -> int:
        """Add a segment whose first token has this position. Returns that token's index in the row."""
        pieces.append(tokens)
        positions.append(torch.arange(position, position + len(tokens)))
        prefixes.append(prefix)
        starts.append(starts[-1] + len(tokens))
        return starts[-2]

    owners = (index // rollouts.group_size).tolist()
    prompts = {owner: rollouts.prompt_tokens[owner, : rollouts.prompt_lengths[owner]] for owner in owners}
    ends: dict[int, int] = {}
    if layout == "shared":
        ends = {owner: add(prompt) + len(prompt) - 1 for owner, prompt in prompts.items()}
    segments = {owner: number for number, owner in enumerate(prompts)}
    for i, owner in zip(index.tolist(), owners, strict=True):
        prompt, n = prompts[owner], int(rollouts.lengths[i])
        read = rollouts.tokens[i, : n - 1]
        if layout == "separate":
            end = add(torch.cat([prompt, read])) + len(prompt) - 1
            predictors.append(torch.arange(end, end + n))
            continue
        predictors.append(torch.tensor([ends[owner]]))  # the prompt's last state predicts the first token
        if n > 1:
            start = add(read, len(prompt), segments[owner])
            predictors.append(torch.arange(start, start + n - 1))
    return Packed(
        tokens=torch.cat(pieces).to(device),
        positions=torch.cat(positions).to(device),
        starts=torch.tensor(starts),
        prefixes=torch.tensor(prefixes),
        predictors=torch.cat(predictors).to(device),
    )


def microbatches(rollouts: Rollouts, token_budget: int, layout: Layout, processes: int = 1) -> list[Tensor]:
    """A batch cut into microbatches: the indices of the sequences of each, ascending; some are empty if there are
    fewer sequences than processes.

    Each holds a single sequence or at most `token_budget` tokens, counted as they are read: a shared prompt once, a
    padded sequence as long as the batch's longest. Their number is a multiple of `processes`, and they are sorted by
    size, so that `processes` neighbours are about equal. Parts are assigned greedily, the longest first, to the
    smallest microbatch, of which there are as few as the budget allows.
    """
    parts = sorted(_parts(rollouts, token_budget, layout, processes), key=lambda part: -part[0])
    sizes = [size for size, _ in parts]
    alone = sum(2 * size > token_budget for size in sizes)  # no two of these fit into one microbatch
    least = processes * -(-max(-(-sum(sizes) // token_budget), alone, 1) // processes)
    most = max(least, processes * -(-len(parts) // processes))  # room for each part alone
    counts = range(least, most + 1, processes)
    # With one microbatch more, the smallest is never larger, whatever part comes next: if one number of microbatches
    # is enough, all greater ones are (tests/test_packing.py).
    count = counts[bisect_left(counts, True, key=lambda count: len(_greedy(sizes, count, token_budget)) == len(sizes))]
    assignment = _greedy(sizes, count, token_budget)
    loads, members = [0] * count, [list[int]() for _ in range(count)]
    for number, (size, sequences) in zip(assignment, parts, strict=True):
        loads[number] += size
        members[number] += sequences
    largest_first = sorted(range(count), key=lambda number: (loads[number], number), reverse=True)
    return [torch.tensor(sorted(members[number]), dtype=torch.int64) for number in largest_first]


def _greedy(sizes: list[int], count: int, token_budget: int) -> list[int]:
    """The microbatch, one of `count`, of each part, up to the first part that exceeds the budget with those before."""
    loads, assignment = [(0, number) for number in range(count)], []
    for size in sizes:
        load, number = loads[0]
        if load and load + size > token_budget:
            break
        heapq.heapreplace(loads, (load + size, number))
        assignment.append(number)
    return assignment


def _parts(rollouts: Rollouts, token_budget: int, layout: Layout, processes: int) -> list[tuple[int, list[int]]]:
    """Sequences that stay together: the tokens of each part, and its sequences. With shared prompts, a part is as many
    neighbouring completions of a prompt as fit the budget and a process's even share of the batch."""
    prompts = rollouts.prompt_lengths.repeat_interleave(rollouts.group_size)
    sizes, lengths = (prompts + rollouts.lengths).tolist(), rollouts.lengths.tolist()
    if layout == "padded":
        sizes = [max(sizes)] * len(sizes)
    if layout != "shared":
        return [(size, [i]) for i, size in enumerate(sizes)]
    most = min(token_budget, -(-(sum(lengths) + int(rollouts.prompt_lengths.sum())) // processes))
    parts: list[tuple[int, list[int]]] = []
    for i, (size, n) in enumerate(zip(sizes, lengths, strict=True)):
        if i % rollouts.group_size and parts[-1][0] + n <= most:
            parts[-1] = (parts[-1][0] + n, [*parts[-1][1], i])
        else:
            parts.append((size, [i]))
    return parts
