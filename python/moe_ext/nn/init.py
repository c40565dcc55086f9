"""How expert weights start out."""

import math

from torch import Tensor, nn


def init_weight(weight: Tensor, fan_in: int, std: float | None) -> None:
    """Fill a weight in place, whatever its layout: N(0, std), or for None U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    The second is what `nn.Linear` does, so an MoE layer starts at the scale of the dense layer it replaces. torch's
    own `kaiming_uniform_` can't be used: it would take a stack of experts [E, N, C] for a convolution and multiply
    fan_in by one of its axes.
    """
    if std is None:
        bound = 1 / math.sqrt(fan_in)
        nn.init.uniform_(weight, -bound, bound)
    else:
        nn.init.normal_(weight, std=std)
