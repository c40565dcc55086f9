"""Benchmarks on the CPU: `python -m bench run` times whole MoE layers; `table` and `plot` show what it wrote.

Read in this order: `shapes` (what is computed, FLOPs and bytes), `problem` (tensors and the float64 truth),
`contender` (what one is), `contenders` and `serving` (who computes it), `check` (who is right), `timing` and `memory`
(how long, and how much of it), `limits` and `machine` (what the machine could do, and what it is), `runner` (one cell
after the other), `restart` and `mallocs` (in what environment), `results` (the JSON), `report`, `plot` and `roofline`
(what is made of it).

`bench.limits` measures the machine by itself, `bench.parts` a layer's parts, `bench.scaling` how time grows with the
work. `python -m bench virtual` counts instead of timing: see `bench.virtual`.
"""
