"""Benchmarks of a whole MoE layer on the CPU: `python -m bench run`, then `table` and `plot` on what it wrote.

Read in this order: `shapes` (what is computed, FLOPs and bytes), `problem` (tensors and the float64 truth),
`contenders` (who computes it), `check` (who is right), `timing` and `machine` (how long, and what the machine could
do), `runner` (one cell after the other), `results` (the JSON), `report` and `plot` (what is made of it).

`python -m bench virtual` counts instead of timing: see `bench.virtual`.
"""
