"""CARE-RFT: reinforcement finetuning of language models with a skew reverse KL penalty (arXiv 2602.00085)."""

__version__ = "0.1.0"
