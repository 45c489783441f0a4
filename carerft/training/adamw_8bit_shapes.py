"""Which weights have their optimizer's state in 8 bits. No import of torch: `carerft plan` only counts."""

import math
from collections.abc import Sequence

BLOCK = 128  # divides the widths of Qwen2.5, 896 among them, which 256, torchao's default, doesn't
SMALLEST = 4096  # smaller tensors keep theirs in float32, as torchao's and bitsandbytes' own rule has it


def is_blocked(shape: Sequence[int]) -> bool:
    """Whether a weight of this shape has: its rows are whole blocks. Each row of a vector is a single number."""
    return math.prod(shape[1:]) % BLOCK == 0 and math.prod(shape) >= SMALLEST
