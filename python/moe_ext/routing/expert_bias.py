"""Load balancing without an auxiliary loss: a bias per expert that only takes part in the selection."""

from typing import Literal

import torch
from torch import Tensor

UpdateMode = Literal["sign", "rms", "proportional"]


@torch.no_grad()
def update_expert_bias(expert_bias: Tensor, counts: Tensor, rate: float = 1e-3, mode: UpdateMode = "sign") -> Tensor:
    """Raise the selection bias of underused experts and lower that of overused ones, in place.

    With the load c_e and err_e = mean(c) - c_e:

    * `"sign"`: `b_e += rate * sign(err_e)` (Wang et al., arXiv:2408.15664, algorithm 1; DeepSeek-V3, rate 1e-3).
    * `"rms"`: `b_e += rate * err_e / sqrt(mean(err^2))`, so the size of the step adapts to who is off by how much
      while its norm stays fixed (Su Jianlin, "MoE tour" part 3).
    * `"proportional"`: `b_e += rate * err_e`, the ablation of arXiv:2408.15664; `rate` then depends on the batch size.

    Call it once per optimizer step, after the step and with the counts of the whole global batch (summed over
    accumulation steps and data-parallel ranks): a bias that already knows the batch would leak it into the routing.
    Balanced counts leave the bias as it is.

    Args:
        expert_bias: [E] float32, changed in place. counts: [E], any integer or float dtype.
        rate: step size. mode: see above.

    Returns:
        `expert_bias`.

    Raises:
        ValueError: unknown mode, or shapes that differ.
    """
    if counts.shape != expert_bias.shape:
        raise ValueError(
            f"update_expert_bias: counts must have the shape of expert_bias, {tuple(expert_bias.shape)}, "
            f"got {tuple(counts.shape)}"
        )
    # float64: counts of a global batch can exceed 2^24, where float32 would round a small imbalance away.
    load = counts.to(torch.float64)
    error = load.mean() - load
    if mode == "sign":
        step = error.sign()
    elif mode == "rms":
        step = error / error.square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    elif mode == "proportional":
        step = error
    else:
        raise ValueError(f"update_expert_bias: mode must be sign, rms or proportional, got {mode!r}")
    return expert_bias.add_((rate * step).to(expert_bias.dtype))
