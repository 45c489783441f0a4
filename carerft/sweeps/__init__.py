"""Experiments: tables, figures and ablations, those of the paper and others, as folders of `experiments/`.

`folders` lists them. `cells` composes the runs of one, each with its directory and status. `workers` runs those that
are not done, and `sharing` lets experiments have a finished run in common.
"""
