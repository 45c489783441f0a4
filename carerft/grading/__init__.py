"""Grading of answers to mathematics problems. Every answer is treated as hostile input.

`notation` brings the ways of writing mathematics to one; `mathematics` extracts the answer from a text and decides what
spelling and exact numbers can decide; `guards` refuses answers that would be dangerous or slow to evaluate; `pool`
gives the remaining ones to processes with limits on time and memory (`worker` is their program), which compare them by
`algebra`; `grader` calls these in order.

A verdict is correct, wrong, or none: the gold answer cannot be read or the grader failed, and it says why. None is
never counted as 0.
"""
