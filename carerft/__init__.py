"""CARE-RFT: reinforcement finetuning of language models with a skew reverse KL penalty (arXiv 2602.00085)."""

import logging

__version__ = "0.1.0"

# Where torchao is installed, transformers imports it, and it names each of its kernels that is for another machine. At
# its end, torch logs what its cache of compiled code holds.
for _name in ("torchao", "torch.utils._pytree", "torch._subclasses.fake_tensor"):
    logging.getLogger(_name).setLevel(logging.ERROR)
