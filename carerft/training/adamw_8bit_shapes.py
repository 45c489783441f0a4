"""Which weights' Adam moments are stored in 8 bits. Does not import torch, because `carerft plan` only counts."""

import math
from collections.abc import Sequence

BLOCK = 128  # divides the widths of Qwen2.5 (896 among them); torchao's default, 256, does not
SMALLEST = 4096  # smaller tensors keep float32 moments, as in torchao and bitsandbytes


def is_blocked(shape: Sequence[int]) -> bool:
    """Whether this weight's Adam moments are stored in 8 bits: only if every row is a whole number of blocks. The rows
    of a vector are single numbers."""
    return math.prod(shape[1:]) % BLOCK == 0 and math.prod(shape) >= SMALLEST
