"""Experiments: the paper's tables, figures and ablations, and its reviewers' questions, as folders of `experiments/`.

`folders` finds them; `cells` says which runs one consists of and where they stand; `sharing` lets two experiments have
a run in common; `workers` runs what is left of one.
"""
