"""The layer's parts by themselves: routers (forward, and with backward), permute, gather_rows and combine, against
plain PyTorch and Hugging Face's routers, and against the bytes that they cannot avoid moving.

`work`: tensors, bytes and what is right; `contenders`: who computes it; `command`: `python -m bench parts`.
"""
