"""Two levels of routing."""

import pytest
import torch
from torch import nn

from moe_ext.routing import HierarchicalRouter, LinearLogits, Router, TopK
from moe_ext.routing.published import hierarchical

T, H, GROUPS, SIZE = 16, 12, 4, 6


class Given(nn.Module):
    def __init__(self, router_logits: list[list[float]]) -> None:
        super().__init__()
        self.router_logits = torch.tensor(router_logits, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.router_logits


def test_worked_example() -> None:
    primary = Router(Given([[0.75, 0.25]]), TopK(2, 2))
    primary.logits.router_logits = primary.logits.router_logits.log()
    secondary = Router(Given([[0.6, 0.4, 0.1, 0.9]]), TopK(2, 2))
    secondary.logits.router_logits = secondary.logits.router_logits.log()
    weights, ids, logits = HierarchicalRouter(primary, secondary, num_groups=2)(torch.zeros(1, 1))
    joint = torch.tensor([[0.45, 0.30, 0.025, 0.225]], dtype=torch.float64)
    assert ids.tolist() == [[0, 1, 3, 2]]
    torch.testing.assert_close(weights, joint.gather(1, ids.long()), atol=1e-6, rtol=0)
    torch.testing.assert_close(logits.softmax(1), joint, atol=1e-6, rtol=0)


def linear(top_groups: int, top_k: int) -> HierarchicalRouter:
    return HierarchicalRouter(
        Router(LinearLogits(H, GROUPS), TopK(GROUPS, top_groups)),
        Router(LinearLogits(H, GROUPS * SIZE), TopK(SIZE, top_k)),
        num_groups=GROUPS,
    )


def test_against_loops() -> None:
    router, x = linear(2, 3).double(), torch.randn(T, H, dtype=torch.float64)
    with torch.no_grad():
        weights, ids, _ = router(x)
        p = router.primary.logits(x).softmax(1)
        q = router.secondary.logits(x).reshape(T, GROUPS, SIZE).softmax(2)
    for t in range(T):
        expected = {}
        for i in p[t].topk(2).indices.tolist():
            for j in q[t, i].topk(3).indices.tolist():
                expected[i * SIZE + j] = float(p[t, i] * q[t, i, j])
        assert set(ids[t].tolist()) == set(expected)
        assert weights[t].tolist() == pytest.approx([expected[e] for e in ids[t].tolist()])
        assert weights[t].tolist() == sorted(weights[t].tolist(), reverse=True)


def test_all_of_everything_is_the_joint_softmax() -> None:
    router, x = linear(GROUPS, SIZE), torch.randn(T, H)
    weights, ids, logits = router(x)
    torch.testing.assert_close(torch.zeros(T, GROUPS * SIZE).scatter(1, ids.long(), weights), logits.softmax(1))
    torch.testing.assert_close(weights.sum(1), torch.ones(T))


def test_one_group_is_the_flat_router() -> None:
    flat = Router(LinearLogits(H, SIZE), TopK(SIZE, 3))
    router = HierarchicalRouter(Router(LinearLogits(H, 1), TopK(1, 1)), flat, num_groups=1)
    x = torch.randn(T, H)
    weights, ids, logits = router(x)
    expected = flat(x)
    assert torch.equal(ids, expected.topk_ids)
    torch.testing.assert_close(weights, expected.topk_weights)
    torch.testing.assert_close(logits.softmax(1), expected.router_logits.softmax(1))


def test_equal_weights_come_in_the_order_of_experts() -> None:
    router = linear(3, 2)
    for level in (router.primary, router.secondary):
        nn.init.zeros_(level.logits.weight)
    assert router(torch.randn(1, H)).topk_ids.tolist() == [[0, 1, 6, 7, 12, 13]]


def test_masked_tokens_have_no_experts() -> None:
    mask = torch.arange(T) % 3 != 0
    weights, ids, _ = linear(2, 3)(torch.randn(T, H), token_mask=mask)
    assert (ids[~mask] == -1).all()
    assert (weights[~mask] == 0).all()
    assert (ids[mask] >= 0).all()


def test_gradcheck() -> None:
    router = linear(2, 3).double()
    x = torch.randn(4, H, dtype=torch.float64, requires_grad=True)
    parameters = list(router.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: router(x).topk_weights, (x, *parameters))


def test_float32_under_autocast_and_one_graph() -> None:
    router, x = hierarchical(H, GROUPS, SIZE), torch.randn(T, H)
    for level in (router.primary, router.secondary):
        nn.init.normal_(level.logits.weight)
    torch.manual_seed(0)
    expected = router(x)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        actual = router(x)
    torch.manual_seed(0)
    compiled = torch.compile(router, fullgraph=True, backend="aot_eager")(x)
    for a, b, c in zip(actual, expected, compiled, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, b)


def test_errors() -> None:
    with pytest.raises(ValueError, match="num_groups must be at least 1"):
        HierarchicalRouter(linear(1, 1).primary, linear(1, 1).secondary, num_groups=0)
    router = HierarchicalRouter(linear(1, 1).primary, linear(1, 1).secondary, num_groups=3)
    with pytest.raises(ValueError, match="num_groups = 3 must be the number of primary logits, got 4"):
        router(torch.randn(T, H))


def test_side_inputs_that_are_no_rows_pass_as_they_are() -> None:
    router = hierarchical(8, 4, 2).eval()
    x = torch.randn(6, 8)
    for a, b in zip(router(x, num_sequences=2), router(x), strict=True):
        assert torch.equal(a, b)
