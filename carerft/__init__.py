"""CARE-RFT: reinforcement finetuning of language models with a skew reverse KL penalty (arXiv 2602.00085)."""

import logging

__version__ = "0.1.0"

# Where torchao is installed, transformers imports it, and it names each of its kernels that is for another machine.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
