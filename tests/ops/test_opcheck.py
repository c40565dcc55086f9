"""torch.library's own examination of every raw op: schema, derivative, fake kernel, and all of it traced."""

import pytest
import torch
from torch.library import opcheck

from tests.ops.samples import IN_PLACE, NOT_DIFFERENTIABLE, ONCE_DIFFERENTIABLE, Sample, samples
from tests.support.backends import Backend

ALL_OPS = {
    "route", "route_backward", "route_with_statistics", "route_with_statistics_backward", "permute", "gather_rows",
    "gather_rows_backward", "grouped_gemm", "grouped_gemm_wgrad", "grouped_gemm_wgrad_", "segment_sum", "combine",
    "combine_backward", "fused_experts", "fused_experts_backward", "expert_choice", "auction", "sinkhorn",
    "slot_positions", "expert_histogram",
    "noise", "route_top_p", "soft_mix", "soft_mix_backward",
}  # fmt: skip
# Not on every backend, so their samples are in files of their own.
ON_CPUS_ALONE = {"fused_experts_int8", "quantize_int8", "tile_weights"}  # test_int8.py, test_tiled_weights.py


def test_every_registered_op_is_sampled() -> None:
    registered = {
        name.removeprefix("moe_ext::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("moe_ext::")
    }
    assert registered == ALL_OPS | ON_CPUS_ALONE
    assert {sample.op for sample in samples()} == ALL_OPS


@pytest.mark.parametrize("sample", samples(), ids=str)
def test_opcheck(backend: Backend, sample: Sample) -> None:
    opcheck(sample.overload, backend.put(sample.args))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_opcheck_other_dtypes(backend: Backend, dtype: torch.dtype) -> None:
    for sample in samples(dtype):
        opcheck(sample.overload, backend.put(sample.args), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    "sample", [s for s in samples() if s.op not in (*ONCE_DIFFERENTIABLE, *IN_PLACE, *NOT_DIFFERENTIABLE)], ids=str
)
def test_opcheck_with_gradients(backend: Backend, sample: Sample) -> None:
    opcheck(sample.overload, backend.put(sample.with_grad()))


@pytest.mark.parametrize("sample", samples(), ids=str)
def test_meta_tensors_give_the_same_shapes(backend: Backend, sample: Sample) -> None:
    def describe(result: object) -> list[tuple[object, ...]]:
        tensors = result if isinstance(result, tuple) else (result,)
        return [(tuple(t.shape), t.dtype, t.stride()) for t in tensors if isinstance(t, torch.Tensor)]

    on_meta = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in sample.args]
    assert describe(sample.overload(*on_meta)) == describe(sample.overload(*backend.put(sample.args)))
