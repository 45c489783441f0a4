"""Evaluation: k samples of each question of each benchmark, graded, written down, and summed up."""

QUESTIONS_AT_ONCE = 64
"""Questions whose samples are drawn together."""
