"""Grading of answers to mathematics problems, where every answer is taken to be hostile.

`mathematics` finds the answer in a text and decides what strings and exact numbers can decide; `guards` refuses what
would be dangerous or slow to evaluate; `pool` keeps the processes in which what is left meets math-verify, under limits
on time and memory (`worker` is what runs there); `grader` puts these in order.

A verdict is correct, wrong, or none: the grader could not tell, and says why. None is never a quiet 0.
"""
