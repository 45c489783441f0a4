"""Grading of answers to mathematics problems. Every answer is treated as hostile input.

`mathematics` extracts the answer from a text and decides what strings and exact numbers can decide; `guards` refuses
answers that would be dangerous or slow to evaluate; `pool` runs math-verify on the remaining ones in processes with
limits on time and memory (`worker` is their program); `grader` calls these in order.

A verdict is correct, wrong, or none: the grader could not tell, and says why. None is never counted as 0.
"""
