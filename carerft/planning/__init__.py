"""What a run needs before it is started: the memory of each device, hours, and cost.

`shapes`, `memory` and `seconds` are pure arithmetic. `assumptions` reads conf/plan.yaml, `job` the settings of a run,
`measured` the finished runs that correct the arithmetic; `search` finds settings that fit into memory.
"""
