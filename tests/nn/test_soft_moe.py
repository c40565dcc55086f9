"""SoftMoE: against the formulas of the paper, its symmetries, padding, noise and replay."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moe_ext.nn import SoftMoE

B, M, H, I, E, P = 2, 7, 6, 5, 3, 2  # noqa: E741 - the letters of the documentation


def layer(**options: object) -> SoftMoE:
    return SoftMoE(H, I, E, P, **options)


def plain(moe: SoftMoE, x: Tensor) -> Tensor:
    """Equations 1 to 3, and the normalisation of section 2.3."""
    phi = moe.logits.weight.T
    if moe.logits.scale is not None:
        norm = x.square().sum(-1, keepdim=True).add(1e-6).sqrt(), phi.square().sum(0, keepdim=True).add(1e-6).sqrt()
        logits = moe.logits.scale * ((x / norm[0]) @ (phi / norm[1]))
    else:
        logits = x @ phi
    slots = logits.softmax(1).mT @ x
    outputs = []
    for slot in range(E * P):
        expert = slot // P
        gate, up = (slots[:, slot] @ moe.experts.w_gate_up[expert].T).chunk(2, dim=-1)
        outputs.append((F.silu(gate) * up) @ moe.experts.w_down[expert].T)
    return logits.softmax(2) @ torch.stack(outputs, dim=1)


@pytest.mark.parametrize("normalize", [False, True])
def test_against_plain_torch(normalize: bool) -> None:
    moe = layer(normalize=normalize).double()
    x = torch.randn(B, M, H, dtype=torch.float64, requires_grad=True)
    leaves = (x, *moe.parameters())
    actual, expected = moe(x), plain(moe, x)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(actual)
    grads = torch.autograd.grad(actual, leaves, upstream), torch.autograd.grad(expected, leaves, upstream)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_gradcheck() -> None:
    moe = layer().double()
    x = torch.randn(1, 4, H, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False, True]])
    assert torch.autograd.gradcheck(lambda x: moe(x, mask), (x,))


def test_the_order_of_tokens_only_moves_outputs() -> None:
    moe, x, order = layer().double(), torch.randn(B, M, H, dtype=torch.float64), torch.randperm(M)
    torch.testing.assert_close(moe(x[:, order]), moe(x)[:, order])


def test_the_order_of_an_experts_slots_changes_nothing() -> None:
    moe, x = layer().double(), torch.randn(B, M, H, dtype=torch.float64)
    other = copy.deepcopy(moe)
    with torch.no_grad():
        other.logits.weight[2:4] = moe.logits.weight[[3, 2]]
    torch.testing.assert_close(other(x), moe(x))
    with torch.no_grad():
        other.logits.weight[1:3] = moe.logits.weight[[2, 1]]
    assert not torch.allclose(other(x), moe(x))


def test_padding_is_as_if_it_were_not_there() -> None:
    moe, x = layer().double(), torch.randn(B, M, H, dtype=torch.float64)
    mask = torch.ones(B, M, dtype=torch.bool)
    mask[1, 4:] = False
    y = moe(x, mask)
    torch.testing.assert_close(y[:1], moe(x[:1]))
    torch.testing.assert_close(y[1:, :4], moe(x[1:, :4]))
    assert not y[1, 4:].any()


def test_one_sequence_without_a_batch() -> None:
    moe, x = layer(), torch.randn(M, H)
    mask = torch.arange(M) < 5
    assert torch.equal(moe(x), moe(x.unsqueeze(0))[0])
    assert torch.equal(moe(x, mask), moe(x.unsqueeze(0), mask.unsqueeze(0))[0])


def test_noise_only_while_training() -> None:
    moe, x = layer(noise_std=1.0), torch.randn(B, M, H)
    assert not torch.equal(moe(x), moe(x))
    moe.eval()
    assert torch.equal(moe(x), moe(x))
    noisy = layer(noise_std=0.5)
    with torch.no_grad():
        noisy.logits.weight.zero_()
    difference = noisy.logits(torch.randn(8, 500, H)).detach()
    assert abs(float(difference.std()) - 0.5) < 0.01


def test_checkpointing_meets_the_same_noise() -> None:
    moe = layer(noise_std=1.0)
    x = torch.randn(B, M, H, requires_grad=True)
    grads = []
    for run in (moe, lambda x: checkpoint(moe, x, use_reentrant=False)):
        torch.manual_seed(3)
        grads.append(torch.autograd.grad(run(x).square().sum(), (x, *moe.parameters())))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_compiled() -> None:
    moe, x = layer(), torch.randn(B, M, H)
    mask = torch.rand(B, M) > 0.2
    torch.testing.assert_close(torch.compile(moe, fullgraph=True)(x, mask), moe(x, mask))


def test_compiled_with_noise() -> None:
    moe = layer(noise_std=0.1)
    assert torch.compile(moe, fullgraph=True)(torch.randn(B, M, H)).isfinite().all()


def test_bfloat16_keeps_float32_logits() -> None:
    moe = layer().to(torch.bfloat16)
    assert moe.logits.weight.dtype == torch.float32
    assert moe.experts.w_down.dtype == torch.bfloat16
    x = torch.randn(B, M, H, dtype=torch.bfloat16)
    assert moe.logits(x).dtype == torch.float32
    assert moe(x).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert layer()(x.float()).dtype == torch.bfloat16


def test_no_sequences() -> None:
    moe = layer()
    y = moe(torch.zeros(0, M, H, requires_grad=True))
    assert y.shape == (0, M, H)
    y.sum().backward()


def test_it_learns() -> None:
    moe = layer(noise_std=0.1)
    x, target = torch.randn(4, M, H), torch.randn(4, M, H)
    optimizer = torch.optim.Adam(moe.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (moe(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert moe.logits.scale is not None
    assert float(moe.logits.scale.detach()) != 1.0


def test_options_reach_the_experts() -> None:
    moe = layer(activation="gelu", bias=True, dtype=torch.float64)
    assert moe.experts.activation == "gelu"
    assert moe.experts.b_down is not None
    assert moe.experts.w_down.dtype == torch.float64
    assert moe(torch.randn(1, 3, H, dtype=torch.float64)).dtype == torch.float64


def test_default_number_of_slots() -> None:
    assert SoftMoE.default_slots_per_expert(196, 16) == 12
    assert SoftMoE.default_slots_per_expert(196, 16, capacity_factor=2.0) == 24
    assert SoftMoE.default_slots_per_expert(4, 128) == 1


def test_state_moves_by_name() -> None:
    assert set(layer().state_dict()) == {"logits.weight", "logits.scale", "experts.w_gate_up", "experts.w_down"}
    assert "logits.scale" not in layer(normalize=False).state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"slots_per_expert": 0}, "slots_per_expert must be at least 1, got 0"), ({"noise_std": -1.0}, "noise_std must")],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"SoftMoE: {message}"):
        SoftMoE(H, I, E, **arguments)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"token_mask must be \[batch, num_tokens\]"):
        layer()(torch.randn(B, M, H), torch.ones(B, M + 1, dtype=torch.bool))
