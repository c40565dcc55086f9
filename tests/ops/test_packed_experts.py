"""The cache of weights laid out for inference: same results, made again when a weight changes, its memory as stated."""

import copy

import pytest
import torch

import moe_ext
from moe_ext.nn import Experts

T, H, INTER, E, K = 9, 48, 40, 5, 2


def _inputs(dtype: torch.dtype, transposed: bool) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(T, H, generator=generator).to(dtype)
    w_gate_up = (torch.randn(E, 2 * INTER, H, generator=generator) * H**-0.5).to(dtype)
    w_down = (torch.randn(E, H, INTER, generator=generator) * INTER**-0.5).to(dtype)
    if transposed:
        w_gate_up, w_down = w_gate_up.transpose(1, 2).contiguous(), w_down.transpose(1, 2).contiguous()
    weights = torch.rand(T, K, generator=generator)
    ids = torch.stack([torch.randperm(E, generator=generator)[:K] for _ in range(T)])
    return x, w_gate_up, w_down, weights, ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("interleaved", [False, True])
def test_transposed_weights_give_what_rows_give(dtype, interleaved):
    x, w_gate_up, w_down, weights, ids = _inputs(dtype, transposed=True)
    packed = moe_ext.PackedExperts(w_gate_up, w_down, transposed=True)
    options = {"interleaved": interleaved}
    with torch.no_grad():
        y = moe_ext.fused_experts(x, w_gate_up, w_down, weights, ids, transposed=True, packed=packed, **options)
        rows = (w_gate_up.transpose(1, 2).contiguous(), w_down.transpose(1, 2).contiguous())
        expected = moe_ext.fused_experts(x, *rows, weights, ids, **options)
    assert torch.equal(y, expected)
    assert packed.num_bytes == w_gate_up.nbytes + w_down.nbytes


def test_weights_that_lie_well_cost_nothing():
    x, w_gate_up, w_down, weights, ids = _inputs(torch.bfloat16, transposed=False)
    packed = moe_ext.PackedExperts(w_gate_up, w_down)
    with torch.no_grad():
        y = moe_ext.fused_experts(x, w_gate_up, w_down, weights, ids, packed=packed)
        assert torch.equal(y, moe_ext.fused_experts(x, w_gate_up, w_down, weights, ids))
    assert packed.num_bytes == 0
    assert packed.weights()[0].data_ptr() == w_gate_up.data_ptr()


@pytest.mark.parametrize("change", ["in place", "data", "refresh"])
def test_a_changed_weight_is_packed_again(change):
    x, w_gate_up, w_down, weights, ids = _inputs(torch.float32, transposed=True)
    if change == "refresh":
        with torch.inference_mode():
            w_gate_up, w_down = w_gate_up.clone(), w_down.clone()
    packed = moe_ext.PackedExperts(w_gate_up, w_down, transposed=True)

    def run(cache):
        with torch.no_grad():
            return moe_ext.fused_experts(x, w_gate_up, w_down, weights, ids, transposed=True, packed=cache)

    before = run(packed)
    first = packed.weights()[0]
    assert packed.weights()[0] is first, "unchanged weights are not copied twice"
    if change == "in place":
        w_down.mul_(2)
    elif change == "data":
        w_down.data = w_down * 2
    else:
        with torch.inference_mode():
            w_down.mul_(2)
        packed.refresh()
    assert torch.equal(run(packed), run(None))
    assert not torch.equal(run(packed), before)


def test_gradients_come_from_the_weights_themselves():
    x, w_gate_up, w_down, weights, ids = _inputs(torch.float32, transposed=True)
    packed = moe_ext.PackedExperts(w_gate_up.requires_grad_(), w_down, transposed=True)
    y = moe_ext.fused_experts(x, w_gate_up, w_down, weights, ids, transposed=True, packed=packed)
    y.sum().backward()
    assert packed.num_bytes == 0
    assert w_gate_up.grad is not None
    assert w_gate_up.grad.abs().sum() > 0


def test_errors():
    x, w_gate_up, w_down, weights, ids = _inputs(torch.float32, transposed=False)
    with pytest.raises(TypeError, match="packed must be a PackedExperts, got dict"):
        moe_ext.fused_experts(x, w_gate_up, w_down, weights, ids, packed={})
    packed = moe_ext.PackedExperts(w_gate_up, w_down)
    with pytest.raises(ValueError, match="other tensors"):
        moe_ext.fused_experts(x, w_gate_up.clone(), w_down, weights, ids, packed=packed)
    with pytest.raises(ValueError, match="as many experts, got 5 and 4"):
        moe_ext.PackedExperts(w_gate_up, w_down[:4])
    with pytest.raises(TypeError, match="transposed"):
        moe_ext.PackedExperts(w_gate_up, w_down, transposed=1)
    with pytest.raises(ValueError, match="w_down"):
        moe_ext.PackedExperts(w_gate_up, w_down[0])


def test_module():
    x, *_, weights, ids = _inputs(torch.float32, transposed=False)
    experts = Experts(H, INTER, E, transposed=True)
    with torch.no_grad():
        expected = experts(x, weights, ids)
        assert experts.cache_packed_weights() is experts
        assert torch.equal(experts(x, weights, ids), expected)
        assert torch.equal(copy.deepcopy(experts)(x, weights, ids), expected)
        experts.w_down = torch.nn.Parameter(experts.w_down * 2)
        assert torch.equal(experts(x, weights, ids), experts.cache_packed_weights(False)(x, weights, ids))
    assert list(experts.state_dict()) == ["w_gate_up", "w_down"]


def test_compiled():
    x, w_gate_up, w_down, weights, ids = _inputs(torch.float32, transposed=True)
    packed = moe_ext.PackedExperts(w_gate_up, w_down, transposed=True)

    def layer(x):
        return moe_ext.fused_experts(x, w_gate_up, w_down, weights, ids, transposed=True, packed=packed)

    with torch.no_grad():
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_nothing_is_kept_where_nothing_needs_a_gradient():
    x, w_gate_up, w_down, weights, ids = _inputs(torch.float32, transposed=False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: pytest.fail("something was saved"), lambda t: t):
        moe_ext.fused_experts(x, w_gate_up, w_down, weights, ids)


def test_copies_can_be_made_before_the_first_use():
    _, w_gate_up, w_down, *_ = _inputs(torch.float32, transposed=True)
    packed = moe_ext.PackedExperts(w_gate_up, w_down, transposed=True)
    assert packed.num_bytes == 0
    assert packed.prepare() is packed
    assert packed.num_bytes == w_gate_up.nbytes + w_down.nbytes
    with pytest.raises(TypeError, match="interleaved"):
        packed.prepare(interleaved=1)
