"""A plain MoE layer in Triton, the yardstick of `python -m bench virtual`.

It computes as the field's Triton layers do: rows sorted by expert on the host and padded to whole tiles, one grouped
GEMM kernel for every product over rows, the activation in a kernel of its own, a sum over k at the end; in backward
gathered copies, GEMMs over the tokens of each expert for the weights, and nothing fused into an epilogue but the
routing weight. Only `kernels` and `compile` import triton, so that everything else can be read and tested without it.
"""
