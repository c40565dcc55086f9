"""What the machine can do: arithmetic of each unit in registers, memory bandwidth by working set, fresh pages.

`kernels.cpp` does it, `library` compiles that file when it is first needed, `measure` runs all of it for `python -m
bench limits`, `floor` what `python -m bench run` needs to say how near to the limit a row is.
"""
