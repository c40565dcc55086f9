"""Ops by themselves: routers (forward, and with backward), permute, gather_rows, combine, and what stands around the
router, against plain PyTorch and Hugging Face's routers, and against the bytes that they cannot avoid moving.

`work`: tensors, bytes and what is right of the layer's parts; `contenders`: who computes them; `assignments` and
`places`: both of the ops around the router; `table`: all of them; `command`: `python -m bench parts`.
"""
