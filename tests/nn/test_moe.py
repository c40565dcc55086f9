"""What the layer computes, in float64 against a loop over tokens, and how it behaves as a module."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_ext.nn import Experts, MoE, SharedExpert
from tests.nn import plain

H, INTERMEDIATE, E, K = 12, 8, 8, 3

MODELS = {
    "mixtral": {"renormalize": True, "eps": 0.0},
    "qwen2_moe": {"shared_intermediate_size": 20, "shared_expert_gate": True},
    "deepseek_v2": {"num_groups": 4, "topk_groups": 3, "scale": 16.0, "num_shared_experts": 2},
    "deepseek_v3": {
        "score": "sigmoid",
        "num_groups": 4,
        "topk_groups": 2,
        "group_top": 2,
        "renormalize": True,
        "scale": 2.5,
        "num_shared_experts": 1,
        "aux_loss_free": True,
    },
    "gpt_oss": {"softmax_after": True, "activation": "clamped_swiglu", "limit": 0.5, "bias": True, "router_bias": True},
    "nemotron_h": {"score": "sigmoid", "activation": "relu2", "num_shared_experts": 1},
    "llama4": {"score": "sigmoid", "apply_weights": "input", "num_shared_experts": 1},
    "geglu_tanh": {"activation": "geglu_tanh", "bias": True, "num_shared_experts": 1},
}
models = pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)


def build(**options: object) -> MoE:
    layer = MoE(H, INTERMEDIATE, E, K, **options).double()
    with torch.no_grad():
        # Biases start as zero, which would hide them.
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            if tensor.is_floating_point() and "w_gate" not in name:
                tensor.normal_(std=0.5)
    return layer


@models
@pytest.mark.parametrize("shape", [(10, H), (2, 3, H), (1, H), (0, H), (2, 0, H)], ids=str)
def test_against_a_loop(options: dict[str, object], shape: tuple[int, ...]) -> None:
    layer = build(**options)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = {"x": x, **dict(layer.named_parameters())}
    y, expected = layer(x), plain.moe(layer, x)
    assert y.shape == x.shape
    torch.testing.assert_close(y, expected)
    cotangent = torch.randn_like(y)
    grads = torch.autograd.grad(y, list(inputs.values()), cotangent, allow_unused=True, materialize_grads=True)
    truths = torch.autograd.grad(expected, list(inputs.values()), cotangent, allow_unused=True, materialize_grads=True)
    for name, grad, truth in zip(inputs, grads, truths, strict=True):
        torch.testing.assert_close(grad, truth, msg=lambda text, name=name: f"gradient of {name}: {text}")


def test_output_may_be_modified_in_place() -> None:
    layer = build(load_balancing_coef=1.0)
    x = torch.randn(2, 3, H, dtype=torch.float64)
    (expected,) = torch.autograd.grad((layer(x) + x).square().sum(), layer.router.weight)
    y = layer(x)
    y += x
    (grad,) = torch.autograd.grad(y.square().sum(), layer.router.weight)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (4, 4), (5, 1)])
def test_extreme_expert_counts(num_experts: int, top_k: int) -> None:
    layer = MoE(H, INTERMEDIATE, num_experts, top_k).double()
    x = torch.randn(7, H, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain.moe(layer, x))


@pytest.mark.parametrize("options", [{"save": "none"}, {"workspace_limit": 32768}, {"deterministic": True}], ids=str)
def test_ways_to_compute_do_not_change_the_result(options: dict[str, object]) -> None:
    # Wide enough for the limit to matter: all rows at once would take 60 * 160 * 8 bytes.
    torch.manual_seed(1)
    expected = MoE(160, INTERMEDIATE, E, K).double()
    torch.manual_seed(1)
    layer = MoE(160, INTERMEDIATE, E, K, **options).double()
    x = torch.randn(20, 160, dtype=torch.float64)
    torch.testing.assert_close(layer(x), expected(x))
    layer(x).square().sum().backward()
    expected(x).square().sum().backward()
    for a, b in zip(layer.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_shared_experts_are_one_wide_one() -> None:
    num_shared = 3
    layer = MoE(H, INTERMEDIATE, E, K, num_shared_experts=num_shared).double()
    wide = layer.shared_expert
    assert wide.w_down.shape == (H, num_shared * INTERMEDIATE)
    gate, up = wide.w_gate_up.chunk(2)
    x = torch.randn(6, H, dtype=torch.float64)
    y = 0
    for i in range(num_shared):
        mine = slice(i * INTERMEDIATE, (i + 1) * INTERMEDIATE)
        y = y + F.linear(F.silu(x @ gate[mine].T) * (x @ up[mine].T), wide.w_down[:, mine])
    torch.testing.assert_close(wide(x), y)


def test_fine_grained_experts_are_slices_of_a_dense_one() -> None:
    # All slices active with weight 1 give the dense network back.
    slices = 4
    dense = SharedExpert(H, slices * INTERMEDIATE).double()
    experts = Experts(H, INTERMEDIATE, slices).double()
    with torch.no_grad():
        gate, up = (half.view(slices, INTERMEDIATE, H) for half in dense.w_gate_up.chunk(2))
        experts.w_gate_up.copy_(torch.cat((gate, up), dim=1))
        experts.w_down.copy_(dense.w_down.view(H, slices, INTERMEDIATE).transpose(0, 1))
    x = torch.randn(6, H, dtype=torch.float64)
    ids = torch.arange(slices).expand(6, slices)
    torch.testing.assert_close(experts(x, torch.ones(6, slices, dtype=torch.float64), ids), dense(x))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_layouts_of_the_experts(transposed: bool, interleaved: bool) -> None:
    plain_layout = Experts(H, INTERMEDIATE, E, bias=True).double()
    nn.init.normal_(plain_layout.b_gate_up)
    other = Experts(H, INTERMEDIATE, E, bias=True, transposed=transposed, interleaved=interleaved).double()
    rows = torch.arange(2 * INTERMEDIATE)
    if interleaved:
        rows = rows.view(2, INTERMEDIATE).T.flatten()
    state = {
        "w_gate_up": plain_layout.w_gate_up[:, rows],
        "w_down": plain_layout.w_down,
        "b_gate_up": plain_layout.b_gate_up[:, rows],
        "b_down": plain_layout.b_down,
    }
    if transposed:
        state = {name: value.mT if name.startswith("w") else value for name, value in state.items()}
    other.load_state_dict(state)
    x, weights = torch.randn(9, H, dtype=torch.float64), torch.rand(9, K, dtype=torch.float64)
    ids = torch.randint(E, (9, K))
    torch.testing.assert_close(other(x, weights, ids), plain_layout(x, weights, ids))


def test_masked_tokens() -> None:
    layer = build(num_shared_experts=1, aux_loss_free=True, load_balancing_coef=1.0, z_loss_coef=1.0)
    x = torch.randn(3, 5, H, dtype=torch.float64)
    mask = torch.rand(3, 5) > 0.4
    out = layer(x, token_mask=mask, return_losses=True, return_metrics=True)
    assert int(layer.expert_counts.sum()) == int(out.metrics.counts.sum()) == K * int(mask.sum())
    torch.testing.assert_close(out.y[mask], layer(x)[mask])
    torch.testing.assert_close(out.y[~mask], layer.shared_expert(x[~mask]))
    expected = layer(x[mask], return_losses=True).losses
    for name in expected._fields:
        torch.testing.assert_close(getattr(out.losses, name), getattr(expected, name))


def test_sanitized_tokens_harm_nobody() -> None:
    layer = build(nonfinite="sanitize", load_balancing_coef=1.0, z_loss_coef=1.0)
    x = torch.randn(6, H, dtype=torch.float64)
    expected = layer(x[:5], return_losses=True)
    x[5] = float("nan")
    actual = layer(x, return_losses=True)
    torch.testing.assert_close(actual.y[:5], expected.y)
    assert (actual.y[5] == 0).all()
    torch.testing.assert_close(actual.losses.total, expected.losses.total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    layer = MoE(64, 48, E, 2, num_shared_experts=1, dtype=dtype)
    assert layer.router.weight.dtype == torch.float32
    assert {p.dtype for name, p in layer.named_parameters() if "router" not in name} == {dtype}
    x = torch.randn(50, 64, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.dtype == dtype
    truth = copy.deepcopy(layer).double()(x.double())
    assert (y - truth).norm() / truth.norm() < 2 * torch.finfo(dtype).eps
    y.sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == parameter.dtype, name


def test_autocast() -> None:
    layer = MoE(64, 48, E, 2, num_shared_experts=1)
    x = torch.randn(50, 64)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert 1e-4 < (y - expected).norm() / expected.norm() < 1e-2
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


COMPILED = {
    "input": {"load_balancing_coef": 0.1, "z_loss_coef": 0.1, "load_balancing_scope": "sequence"},
    "deepseek_v3": {**MODELS["deepseek_v3"], "load_balancing_coef": 0.1},
    "gpt_oss": MODELS["gpt_oss"],
}


@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED)
def test_compiles_as_one_graph(options: dict[str, object]) -> None:
    layer = MoE(H, INTERMEDIATE, E, K, **options)
    x = torch.randn(2, 9, H, requires_grad=True)
    layer(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, layer(x))
    y.square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])
    if layer.expert_counts is not None:
        assert int(layer.expert_counts.sum()) == 3 * 18 * K
    # Other losses, the metrics and other sizes in one graph as well.
    out = compiled(torch.randn(3, 5, H), return_losses=True, return_metrics=True)
    assert int(out.metrics.counts.sum()) == 15 * K
    torch.compiler.reset()


def test_state_dict_round_trip() -> None:
    layer = build(**MODELS["deepseek_v3"], bias=True)
    names = set(layer.state_dict())
    assert names == {
        "router.weight",
        "router.expert_bias",
        "experts.w_gate_up",
        "experts.w_down",
        "experts.b_gate_up",
        "experts.b_down",
        "shared_expert.w_gate_up",
        "shared_expert.w_down",
        "shared_expert.b_gate_up",
        "shared_expert.b_down",
    }
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = build(**MODELS["deepseek_v3"], bias=True)
    other.load_state_dict(torch.load(buffer))
    x = torch.randn(9, H, dtype=torch.float64)
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(clone) -> None:
    layer = build(**MODELS["deepseek_v3"])
    x = torch.randn(9, H, dtype=torch.float64)
    other = clone(layer)
    assert torch.equal(other(x), layer(x))
    other.experts.w_down.data.zero_()
    assert not torch.equal(other(x), layer(x))


def test_meta_device() -> None:
    layer = MoE(H, INTERMEDIATE, E, K, **MODELS["deepseek_v3"], device="meta")
    assert all(t.is_meta for t in (*layer.parameters(), *layer.buffers()))
    x = torch.randn(9, H)
    assert layer(x.to("meta")).shape == x.shape
    layer = layer.to_empty(device="cpu")
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.data.fill_(99)
    layer.reset_parameters()
    assert (layer.router.expert_bias == 0).all()
    assert (layer.expert_counts == 0).all()
    assert layer(x).abs().max() < 5


def test_initialisation() -> None:
    layer = MoE(256, 64, E, K, num_shared_experts=1, bias=True)
    for weight, fan_in in (
        (layer.router.weight, 256),
        (layer.experts.w_gate_up, 256),
        (layer.experts.w_down, 64),
        (layer.shared_expert.w_gate_up, 256),
        (layer.shared_expert.w_down, 64),
    ):
        bound = fan_in**-0.5
        assert 0.95 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert (layer.experts.b_gate_up == 0).all()
    assert (layer.experts.b_down == 0).all()
    layer = MoE(256, 64, E, K, init_std=0.02)
    for weight in (layer.router.weight, layer.experts.w_gate_up, layer.experts.w_down):
        assert weight.std().item() == pytest.approx(0.02, rel=0.07)


def test_repr() -> None:
    text = repr(MoE(H, INTERMEDIATE, E, K, **MODELS["deepseek_v3"], load_balancing_coef=1e-4))
    for part in (
        "score='sigmoid'",
        "aux_loss_free=True",
        "load_balancing_coef=0.0001",
        "num_experts=8",
        "shared_expert",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "softplus"}, "activation must be one of"),
        ({"load_balancing_scope": "batch"}, "load_balancing_scope"),
        ({"load_balancing_counts": "all"}, "load_balancing_counts"),
        ({"shared_expert_gate": True}, "shared_expert_gate"),
    ],
)
def test_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoE(H, INTERMEDIATE, E, K, **options)


def test_interleaving_needs_a_gate() -> None:
    with pytest.raises(ValueError, match="interleaved"):
        Experts(H, INTERMEDIATE, E, activation="relu2", interleaved=True)


def test_parts_can_be_replaced() -> None:
    class RoundRobin(nn.Module):
        score, nonfinite = "softmax", "propagate"

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            ids = torch.arange(x.shape[0])[:, None] % E
            return torch.ones(x.shape[0], 1, dtype=x.dtype), ids, F.one_hot(ids[:, 0], E).to(x.dtype)

    layer = MoE(H, INTERMEDIATE, E, 1).double()
    layer.router = RoundRobin()
    x = torch.randn(E, H, dtype=torch.float64)
    gate, up = torch.einsum("egh,eh->eg", layer.experts.w_gate_up, x).chunk(2, dim=1)
    expected = torch.einsum("ehi,ei->eh", layer.experts.w_down, F.silu(gate) * up)
    torch.testing.assert_close(layer(x), expected)
    assert layer(x, return_metrics=True).metrics.max_violation == 0
