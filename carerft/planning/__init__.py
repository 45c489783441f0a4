"""What a run needs before it is started: the memory of each device, hours, and cost.

`shapes`, `memory` and `seconds` are arithmetic, which finished runs correct. `assumptions` reads conf/plan.yaml, `job`
the settings of a run; `search` finds settings that fit into memory.
"""
