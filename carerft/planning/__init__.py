"""What a sweep will need before it is run: memory, hours and money, by arithmetic and by what was measured.

`shapes`, `memory` and `seconds` are pure functions; `assumptions` reads conf/plan.yaml, `measured` and `rehearsal` say
what this machine has really done, `estimate` puts them together, and `carerft.commands.plan` prints it.
"""
