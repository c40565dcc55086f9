"""Kernel counters on the virtual GPU: `python -m bench virtual`.

No time is measured. Kernels of moe_ext and Triton kernels of the same job run on `emulator.Gpu`, each result is checked
against float64, and what they asked the chip for is counted: instructions, matrix products, memory sectors,
shared-memory wavefronts.

Read in this order: `shapes`, `work` (what a job must do at least), `counts` (what was counted), `moe_ext_layer` and
`triton_layer` (who does it), `runner`, `results` (the JSON), `report` and `plot` (what is made of it).
"""
