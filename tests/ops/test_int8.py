"""fused_experts_int8: bits of the reference where it has no elementary function, the same bits on
every kernel, and how far all of it is from the layer that was quantised."""

import ctypes
import mmap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import moe_ext
from moe_ext import _C, Int8Experts, reference
from moe_ext.reference import ACTIVATIONS, GATED_ACTIVATIONS
from tests.support.backends import pinned
from tests.support.cases import CASES, Case, Shape, balanced, one_expert, sentinels, skewed
from tests.support.inputs import ExpertInputs, make_inputs, strided_variants
from tests.support.tolerance import assert_same_bits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Made of products, sums and comparisons alone: these have the same bits in any implementation.
PLAIN_ACTIVATIONS = ("reglu", "relu", "relu2")
# Kernels by name: the instruction set to pin, and whether with its instructions for int8.
KERNELS = {
    "portable": ("portable", True),
    "avx2": ("avx2", True),
    "avx512": ("avx512", False),
    "avx512vnni": ("avx512", True),
    "amx": ("amx", True),
}
# Of blocks, panels and steps of all kernels: one less, that, and one more.
BLOCKS = (
    Case("k_blocks", Shape(50, 1089, 31, 2, 1), balanced),
    Case("whole_blocks", Shape(70, 1024, 512, 2, 1), balanced),
    Case("one_step_more", Shape(33, 576, 320, 1, 1), one_expert),
    Case("streamed", Shape(32, 512, 128, 4, 2), balanced),
    Case("few_rows", Shape(3, 704, 160, 4, 2), balanced),
    Case("many_rows", Shape(600, 64, 64, 2, 1), skewed),
)


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs on these kernels."""
    name: str = request.param
    isa, allowed = KERNELS[name]
    if isa not in _C.cpu_isas_available():
        pytest.skip(f"this machine or build has no {isa}")
    with pinned(isa):
        _C.allow_int8_instructions(allowed)
        try:
            if _C.int8_kernels() != name:
                pytest.skip(f"this machine has no {name}")
            yield name
        finally:
            _C.allow_int8_instructions(True)


def quantised(inputs: ExpertInputs, transposed: bool = False) -> dict[str, Any]:
    """The arguments of fused_experts_int8."""
    arguments: dict[str, Any] = inputs.tensors()
    weights = arguments.pop("w_gate_up"), arguments.pop("w_down")
    return {**arguments, "experts": moe_ext.quantize_experts(*weights, transposed=transposed)}


def check_bits(arguments: dict[str, Any], **options: Any) -> Tensor:
    y = moe_ext.fused_experts_int8(**arguments, **options)
    assert_same_bits(y, reference.fused_experts_int8(**arguments, **options), "y")
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CASES, *BLOCKS], ids=str)
def test_cases(kernels: str, case: Case, dtype: torch.dtype) -> None:
    check_bits(quantised(make_inputs(case, dtype, activation="reglu")), activation="reglu")


@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", PLAIN_ACTIVATIONS)
def test_options(kernels: str, activation: str, bias: bool, interleaved: bool, apply_weights: str) -> None:
    for shape in (Shape(43, 37, 29, 5, 3), Shape(20, 128, 64, 4, 2)):
        case = Case("options", shape, sentinels)
        inputs = make_inputs(case, torch.bfloat16, activation=activation, bias=bias, interleaved=interleaved)
        check_bits(quantised(inputs), activation=activation, interleaved=interleaved, apply_weights=apply_weights)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(kernels: str, activation: str) -> None:
    """An activation that is off by its last bit may round to the next int8: one step of a value in one row."""
    case = Case("activations", Shape(64, 96, 80, 4, 2), balanced)
    arguments = quantised(make_inputs(case, activation=activation, bias=True))
    y = moe_ext.fused_experts_int8(**arguments, activation=activation, limit=1.0)
    expected = reference.fused_experts_int8(**arguments, activation=activation, limit=1.0)
    assert relative_error(y, expected) < 1e-3
    assert (y != expected).any(dim=1).float().mean() < 0.5 or torch.allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_same_bits_on_all_kernels(activation: str, dtype: torch.dtype) -> None:
    case = Case("odd", Shape(37, 131, 75, 5, 2), sentinels)
    arguments = quantised(make_inputs(case, dtype, activation=activation, bias=True))
    first: Tensor | None = None
    try:
        for isa, allowed in KERNELS.values():
            if isa in _C.cpu_isas_available():
                with pinned(isa):
                    _C.allow_int8_instructions(allowed)
                    y = moe_ext.fused_experts_int8(**arguments, activation=activation)
                first = y if first is None else first
                assert_same_bits(y, first, f"{isa}, int8 instructions {allowed}")
    finally:
        _C.allow_int8_instructions(True)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Case, dict[str, Any], torch.dtype, int]:
    num_experts = draw(st.integers(1, 6))
    num_tokens = draw(st.one_of(st.integers(0, 5), st.integers(0, 80)))
    sizes = st.one_of(st.integers(1, 70), st.sampled_from([64, 128, 192, 512, 513, 576]))
    shape = Shape(num_tokens, draw(sizes), draw(sizes), num_experts, draw(st.integers(1, 4)))
    low, high = sorted((draw(st.integers(-2, num_experts)), draw(st.integers(-2, num_experts))))

    def routing(shape: Shape, generator: torch.Generator) -> Tensor:
        return torch.randint(low, high + 1, (shape.num_tokens, shape.top_k), generator=generator)

    options = {
        "activation": draw(st.sampled_from(PLAIN_ACTIVATIONS)),
        "interleaved": draw(st.booleans()),
        "apply_weights": draw(st.sampled_from(["output", "input"])),
    }
    case = Case(f"{shape} {low}..{high}", shape, routing)
    return case, options, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99))


@settings(max_examples=60)
@given(problem=problems(), bias=st.booleans(), transposed=st.booleans(), magnitude=st.sampled_from([1e-30, 1.0, 1e3]))
def test_properties(
    kernels: str, problem: tuple[Case, dict[str, Any], torch.dtype, int], bias: bool, transposed: bool, magnitude: float
) -> None:
    case, options, dtype, seed = problem
    inputs = make_inputs(
        case, dtype, activation=options["activation"], bias=bias, interleaved=options["interleaved"],
        transposed=transposed, seed=seed,
    )  # fmt: skip
    arguments = quantised(inputs.with_tensors(x=inputs.x * magnitude), transposed)
    y = check_bits(arguments, **options)
    # What belongs to a token depends on no other.
    some = torch.arange(case.shape.num_tokens).flip(0)[::2]
    per_token = {name: arguments[name][some] for name in ("x", "topk_weights", "topk_ids")}
    assert_same_bits(moe_ext.fused_experts_int8(**arguments | per_token, **options), y[some], "tokens picked out")


@pytest.mark.parametrize(("hidden_size", "intermediate_size"), [(0, 4), (8, 0), (0, 0)])
def test_nothing_to_multiply(kernels: str, hidden_size: int, intermediate_size: int) -> None:
    gate_up, down = torch.randn(3, 2 * intermediate_size, hidden_size), torch.randn(3, hidden_size, intermediate_size)
    arguments = {
        "x": torch.randn(5, hidden_size),
        "experts": moe_ext.quantize_experts(gate_up, down),
        "topk_weights": torch.rand(5, 2),
        "topk_ids": torch.randint(3, (5, 2)),
        "b_gate_up": torch.randn(3, 2 * intermediate_size),
        "b_down": torch.randn(3, hidden_size),
    }
    check_bits(arguments, activation="reglu")


def test_threads_change_nothing(kernels: str) -> None:
    for routing in (skewed, one_expert):
        case = Case("threads", Shape(90, 128, 256, 8, 2), routing)
        arguments = quantised(make_inputs(case, torch.bfloat16))
        results = []
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            results.append(moe_ext.fused_experts_int8(**arguments))
        for result in results[1:]:
            assert_same_bits(result, results[0], "threads")


def test_strides(kernels: str) -> None:
    inputs = make_inputs(Case("strides", Shape(21, 70, 40, 3, 2), balanced), torch.bfloat16, bias=True)
    arguments = quantised(inputs)
    expected = moe_ext.fused_experts_int8(**arguments)
    for name in ("x", "topk_weights", "topk_ids", "b_gate_up", "b_down"):
        for variant, tensor in strided_variants(arguments[name]):
            y = moe_ext.fused_experts_int8(**arguments | {name: tensor})
            assert_same_bits(y, expected, f"{name} {variant}")
    experts: Int8Experts = arguments["experts"]
    for field, tensor in experts._asdict().items():
        for variant, strided in strided_variants(tensor):
            if strided.stride(-1) == 1 or field.endswith("scale"):
                y = moe_ext.fused_experts_int8(**arguments | {"experts": experts._replace(**{field: strided})})
                assert_same_bits(y, expected, f"{field} {variant}")


def before_a_forbidden_page(tensor: Tensor, keep: list[Any]) -> Tensor:
    """A copy that ends where the process may not read on."""
    size, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
    whole = -(-size // page) * page
    area = mmap.mmap(-1, whole + page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(base + whole), ctypes.c_size_t(page), 0) == 0
    keep.append(area)
    view = torch.frombuffer(area, dtype=tensor.dtype, count=tensor.numel(), offset=whole - size)
    return view.view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("shape", [(9, 70, 33, 2, 2), (40, 129, 65, 1, 1), (1, 64, 48, 1, 1), (40, 64, 40, 1, 1)])
def test_nothing_past_the_end_is_read(kernels: str, shape: tuple[int, ...]) -> None:
    inputs = make_inputs(Case("end", Shape(*shape), balanced), activation="reglu", bias=True)
    arguments = quantised(inputs)
    expected = moe_ext.fused_experts_int8(**arguments, activation="reglu")
    keep: list[Any] = []
    arguments["experts"] = Int8Experts(*(before_a_forbidden_page(t, keep) for t in arguments["experts"]))
    for name in ("x", "topk_weights", "topk_ids", "b_gate_up", "b_down"):
        arguments[name] = before_a_forbidden_page(arguments[name], keep)
    assert_same_bits(moe_ext.fused_experts_int8(**arguments, activation="reglu"), expected, "y")


def test_the_largest_values(kernels: str) -> None:
    """Sums at the ends of int32, and the one int8 that quantising never gives."""
    k = 1 << 17
    w_down = torch.zeros(1, k, 2, dtype=torch.int8)
    w_down[0, :3] = torch.tensor([[127, 0], [0, -128], [-128, 127]], dtype=torch.int8)
    experts = Int8Experts(
        w_gate_up=torch.tensor([[127], [-128]], dtype=torch.int8).expand(2, k).contiguous()[None],
        w_gate_up_scale=torch.full((1, 2), 2.0**-10),
        w_down=w_down,
        w_down_scale=torch.ones(1, k),
    )
    x = torch.ones(1, k)
    weights, ids = torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32)
    for sign in (1, -1):
        arguments = {"x": sign * x, "experts": experts, "topk_weights": weights, "topk_ids": ids}
        check_bits(arguments, activation="relu")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("shape", [(64, 512, 256, 4, 2), (32, 1024, 768, 2, 2)])
def test_accuracy(shape: tuple[int, ...]) -> None:
    """Against the layer that was quantised, in float64. Two roundings to int8 in each of two products."""
    inputs = make_inputs(Case("accuracy", Shape(*shape), balanced))
    truth = reference.fused_experts(**{name: t.double() if t.is_floating_point() else t
                                       for name, t in inputs.tensors().items()})  # fmt: skip
    assert relative_error(moe_ext.fused_experts_int8(**quantised(inputs)), truth) < 0.03


def test_values_that_are_not_finite(kernels: str) -> None:
    inputs = make_inputs(Case("values", Shape(6, 40, 24, 3, 2), balanced))
    arguments = quantised(inputs)
    clean = moe_ext.fused_experts_int8(**arguments)
    for value in (torch.nan, torch.inf, -torch.inf):
        x = inputs.x.clone()
        x[2, 39] = value
        y = moe_ext.fused_experts_int8(**arguments | {"x": x})
        assert y[2].isnan().all()
        y[2] = clean[2]
        assert_same_bits(y, clean, "other tokens")


def test_zero_and_tiny_rows(kernels: str) -> None:
    inputs = make_inputs(Case("zeros", Shape(8, 40, 24, 3, 2), balanced), activation="reglu", bias=True)
    inputs.x[1] = 0
    inputs.x[2] *= 1e-38
    inputs.x[3] = 2.0**-149
    inputs.x[4] *= 1e30
    inputs.w_gate_up[:, 5] = 0
    inputs.w_gate_up[:, 6] *= 1e-40
    check_bits(quantised(inputs), activation="reglu")


# What lies above the kernels


W_GATE_UP, W_DOWN = torch.randn(3, 8, 6), torch.randn(3, 6, 4)


def valid() -> dict[str, Any]:
    return {
        "x": torch.randn(5, 6),
        "experts": moe_ext.quantize_experts(W_GATE_UP, W_DOWN),
        "topk_weights": torch.rand(5, 2),
        "topk_ids": torch.randint(3, (5, 2)),
    }


EXPERTS = moe_ext.quantize_experts(W_GATE_UP, W_DOWN)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.randn(5, 6).double()}, TypeError, r"x must be float32 or bfloat16 or float16, got torch.float64"),
        ({"x": torch.randn(6)}, ValueError, r"x must be \[num_tokens, hidden_size\]"),
        ({"x": torch.randn(5, 7)}, ValueError, r"experts.w_gate_up must be .* = \(3, 8, 7\), got shape \(3, 8, 6\)"),
        ({"experts": tuple(EXPERTS)}, TypeError, r"experts must be a moe_ext.Int8Experts, got tuple"),
        ({"experts": EXPERTS._replace(w_down=W_DOWN)}, TypeError, r"experts.w_down must be int8, got torch.float32"),
        (
            {"experts": EXPERTS._replace(w_gate_up_scale=EXPERTS.w_gate_up_scale[:, 1:])},
            ValueError,
            r"experts.w_gate_up_scale must be .* = \(3, 8\), got shape \(3, 7\)",
        ),
        (
            {"experts": EXPERTS._replace(w_down_scale=EXPERTS.w_down_scale.bfloat16())},
            TypeError,
            r"experts.w_down_scale must be float32, got torch.bfloat16",
        ),
        (
            {"experts": EXPERTS._replace(w_down=EXPERTS.w_down.mT.contiguous().mT)},
            ValueError,
            r"experts.w_down must be contiguous along its last dimension",
        ),
        ({"activation": "relu"}, ValueError, r"experts.w_gate_up must be .* = \(3, 4, 6\)"),
        ({"activation": "tanh"}, ValueError, r"activation must be one of"),
        ({"apply_weights": "both"}, ValueError, r"apply_weights must be one of"),
        ({"interleaved": 1}, TypeError, r"interleaved must be a bool"),
        ({"limit": 0.0}, ValueError, r"limit must be greater than 0"),
        ({"alpha": torch.inf}, ValueError, r"alpha must be finite"),
        ({"b_down": torch.zeros(3, 5)}, ValueError, r"b_down must be .* = \(3, 6\)"),
        ({"b_gate_up": torch.zeros(3, 8).bfloat16()}, TypeError, r"b_gate_up must be torch.float32 like x"),
        ({"topk_ids": torch.zeros(5, 2)}, TypeError, r"topk_ids must be int32 or int64"),
        ({"topk_ids": torch.zeros(4, 2).int()}, ValueError, r"topk_ids must be .* = \(5, 2\)"),
        ({"topk_weights": torch.zeros(5, 3)}, ValueError, r"topk_weights must be .* = \(5, 2\)"),
    ],
)
def test_wrong_argument(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"moe_ext.fused_experts_int8: {message}"):
        moe_ext.fused_experts_int8(**valid() | changes)


def test_sums_that_int32_may_not_hold_are_refused() -> None:
    experts = Int8Experts(
        torch.empty(1, 2, 1 << 18, dtype=torch.int8, device="meta"), torch.empty(1, 2, device="meta"),
        torch.empty(1, 1 << 18, 1, dtype=torch.int8, device="meta"), torch.empty(1, 1 << 18, device="meta"),
    )  # fmt: skip
    routing = {"topk_weights": torch.empty(1, 1), "topk_ids": torch.empty(1, 1, dtype=torch.int32)}
    on_meta = {name: tensor.to("meta") for name, tensor in routing.items()}
    with pytest.raises(ValueError, match="hidden_size must be at most 131072, got 262144"):
        moe_ext.fused_experts_int8(torch.empty(1, 1 << 18, device="meta"), experts, **on_meta)


def raw_arguments(
    activation: str = "swiglu", bias: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Any, ...]:
    inputs = make_inputs(Case("raw", Shape(6, 8, 4, 5, 2), sentinels), dtype, activation=activation, bias=bias)
    experts = moe_ext.quantize_experts(inputs.w_gate_up, inputs.w_down)
    return (
        inputs.x, *experts, inputs.topk_weights, inputs.topk_ids, inputs.b_gate_up, inputs.b_down, activation, 1.702,
        7.0, activation in GATED_ACTIVATIONS and bias, "input" if bias else "output",
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_opcheck(activation: str, bias: bool, dtype: torch.dtype) -> None:
    opcheck(torch.ops.moe_ext.fused_experts_int8.default, raw_arguments(activation, bias, dtype))
    opcheck(torch.ops.moe_ext.quantize_int8.default, (W_GATE_UP.to(dtype),))


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda x: x.double(), "x must be Float, BFloat16 or Half, got Double"),
        (1, lambda w: w.float(), "w_gate_up must be Char, got Float"),
        (1, lambda w: w[:, 1:], "w_gate_up must have G = 8 in dimension 1"),
        (1, lambda w: w.mT.contiguous().mT, "w_gate_up must be contiguous along its last dimension"),
        (2, lambda s: s[:2], "w_gate_up_scale must have E = 5 in dimension 0"),
        (4, lambda s: s.double(), "w_down_scale must be Float"),
        (6, lambda ids: ids[1:], "topk_ids must have T = 6"),
        (9, lambda name: "swish", "activation must be one of"),
    ],
)
def test_the_raw_op_checks_too(position: int, change: Any, message: str) -> None:
    arguments = list(raw_arguments())
    arguments[position] = change(arguments[position])
    with pytest.raises(RuntimeError, match=f"moe_ext::fused_experts_int8: {message}"):
        torch.ops.moe_ext.fused_experts_int8(*arguments)


def test_a_gradient_is_refused_when_it_is_asked_for() -> None:
    arguments = valid()
    expected = moe_ext.fused_experts_int8(**arguments)
    for name in ("x", "topk_weights"):
        leaf = arguments[name].clone().requires_grad_()
        y = moe_ext.fused_experts_int8(**arguments | {name: leaf})
        assert_same_bits(y.detach(), expected, name)
        with pytest.raises(NotImplementedError, match="fused_experts_int8 has no derivative"):
            y.sum().backward()
    with pytest.raises(NotImplementedError, match="fused_experts_int8 has no derivative"):
        torch.func.grad(lambda x: moe_ext.fused_experts_int8(**arguments | {"x": x}).sum())(arguments["x"])
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(
            lambda x: moe_ext.fused_experts_int8(**arguments | {"x": x}), (arguments["x"],), (torch.ones(5, 6),)
        )


def test_only_the_cpu() -> None:
    class Elsewhere(torch.Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda", 0)

    x = torch.randn(5, 6).as_subclass(Elsewhere)
    with pytest.raises(NotImplementedError, match="only tensors on the CPU are supported, got x on cuda:0"):
        moe_ext.fused_experts_int8(**valid() | {"x": x})
    weights = W_GATE_UP.as_subclass(Elsewhere), W_DOWN.as_subclass(Elsewhere)
    with pytest.raises(NotImplementedError, match="only tensors on the CPU are supported, got w_gate_up on cuda:0"):
        moe_ext.quantize_experts(*weights)


def test_autocast_lowers_the_data_alone() -> None:
    arguments = valid() | {"b_down": torch.randn(3, 6)}
    with torch.autocast("cpu", torch.bfloat16):
        y = moe_ext.fused_experts_int8(**arguments)
    lowered = {name: arguments[name].bfloat16() for name in ("x", "b_down")}
    assert_same_bits(y, moe_ext.fused_experts_int8(**arguments | lowered), "y")


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile(compiler: str) -> None:
    torch._dynamo.reset()

    def layer(x: Tensor, experts: Int8Experts, logits: Tensor) -> Tensor:
        routing = moe_ext.route(logits, 2, renormalize=True)
        return moe_ext.fused_experts_int8(x, experts, *routing)

    compiled = torch.compile(layer, fullgraph=True, backend=compiler, dynamic=True)
    for position, num_tokens in enumerate((9, 4, 33)):
        x, logits = torch.randn(num_tokens, 6), torch.randn(num_tokens, 3)
        with torch._dynamo.config.patch(error_on_recompile=position > 0):
            assert_same_bits(compiled(x, EXPERTS, logits), layer(x, EXPERTS, logits), "y")


def test_export_and_state_dict() -> None:
    class Layer(torch.nn.Module):
        def __init__(self, experts: Int8Experts) -> None:
            super().__init__()
            for name, tensor in experts._asdict().items():
                self.register_buffer(name, tensor)

        def forward(self, x: Tensor, logits: Tensor) -> Tensor:
            experts = Int8Experts(*(self.get_buffer(name) for name in Int8Experts._fields))
            return moe_ext.fused_experts_int8(x, experts, *moe_ext.route(logits, 2))

    layer, other = Layer(EXPERTS), Layer(Int8Experts(*map(torch.zeros_like, EXPERTS)))
    other.load_state_dict(layer.state_dict())
    x, logits = torch.randn(4, 6), torch.randn(4, 3)
    assert_same_bits(other(x, logits), layer(x, logits), "loaded")
    tokens = torch.export.Dim("num_tokens")
    program = torch.export.export(layer, (x, logits), dynamic_shapes={"x": {0: tokens}, "logits": {0: tokens}})
    x, logits = torch.randn(7, 6), torch.randn(7, 3)
    assert_same_bits(program.module()(x, logits), layer(x, logits), "exported")


def test_which_kernels() -> None:
    for isa in _C.cpu_isas_available():
        with pinned(isa):
            try:
                _C.allow_int8_instructions(False)
                assert _C.int8_kernels() == ("avx512" if isa in ("avx512", "avx512bf16", "amx") else isa)
            finally:
                _C.allow_int8_instructions(True)
