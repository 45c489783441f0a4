"""Evaluation: k samples of each question of each benchmark, graded, written down, and summed up."""

QUESTIONS_AT_ONCE = {"transformers": 64, "vllm": 1024}
"""Questions whose samples are drawn together, and lost together if the evaluation is interrupted. vLLM replaces a
sequence that has ended by the next one: only the last ones of so many questions leave it idle."""
