import itertools

import pytest
import torch
from torch import Tensor

from moe_ext.reference import route
from tests.reference import brute_force
from tests.support.inputs import make_logits

# Ties on purpose in rows 2, 3 and 4.
CANONICAL = torch.tensor(
    [[2.0, 1, 0, -1], [1, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0], [2, 3, 1, 0]], dtype=torch.float64
)
CANONICAL_IDS = [[0, 1], [1, 3], [2, 0], [0, 2], [1, 0], [1, 0]]
NAN, INF = float("nan"), float("inf")


def close(actual: Tensor, expected: object, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(
        actual.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance, equal_nan=True
    )


# ---- worked examples


def test_softmax_top_2_of_the_canonical_logits() -> None:
    weights, ids = route(CANONICAL, 2)
    assert ids.tolist() == CANONICAL_IDS
    probabilities = [
        [0.643914, 0.236883], [0.643914, 0.236883], [0.682791, 0.152351],
        [0.757313, 0.102491], [0.610296, 0.224515], [0.643914, 0.236883],
    ]  # fmt: skip
    close(weights, probabilities)


@pytest.mark.parametrize("softmax_after", [False, True])
def test_mixtral_renormalised_weights(softmax_after: bool) -> None:
    weights, ids = route(CANONICAL, 2, renormalize=True, softmax_after=softmax_after)
    assert ids.tolist() == CANONICAL_IDS
    high, low = [0.731059, 0.268941], [[0.817574, 0.182426], [0.880797, 0.119203]]
    close(weights, [high, high, *low, high, high])


def test_deepseek_v2_scales_without_renormalising() -> None:
    weights, _ = route(CANONICAL[:1], 2, scale=16.0)
    close(weights, [[10.302628, 3.790125]])


@pytest.mark.parametrize(("group_top", "expected"), [(1, [0, 1]), (2, [2, 3])], ids=["maximum", "sum of two"])
def test_device_limited_groups(group_top: int, expected: list[int]) -> None:
    scores = torch.tensor([[0.9, 0.1, 0.6, 0.55, 0.2, 0.3, 0.05, 0.04]])
    _, ids = route(scores, 2, score="none", num_groups=4, topk_groups=1, group_top=group_top)
    assert ids.tolist() == [expected]


@pytest.mark.parametrize(("group_fill", "expected"), [("-inf", [0, 1]), ("0", [4, 5])])
def test_zero_fill_lets_rejected_groups_win_against_negative_values(group_fill: str, expected: list[int]) -> None:
    scores = torch.tensor([[0.3, 0.2, 0.1, 0.1, 0.45, 0.44, 0.43, 0.42]])
    bias = torch.tensor([-0.4] * 4 + [-0.6] * 4)
    weights, ids = route(
        scores, 2, score="none", bias=bias, num_groups=2, topk_groups=1, group_top=2, group_fill=group_fill
    )
    assert ids.tolist() == [expected]
    close(weights, scores[:, expected])  # without the bias


V3_LOGITS = torch.tensor([[1, 0.5, -1, 2, 0, 0.2, -0.5, 1.5]], dtype=torch.float64)
V3_BIAS = torch.tensor([0, 0.1, 0.3, -0.4, 0, 0, 0.2, -0.1])


def route_v3(logits: Tensor) -> tuple[Tensor, Tensor]:
    return route(
        logits, 3, score="sigmoid", bias=V3_BIAS, num_groups=4, topk_groups=2, group_top=2, renormalize=True, scale=2.5
    )


def test_deepseek_v3_gate() -> None:
    weights, ids = route_v3(V3_LOGITS)
    assert ids.tolist() == [[0, 1, 7]]
    close(weights, [[0.841810, 0.716758, 0.941432]])


# ---- gradients


def jacobian(weights_of: object, logits: Tensor) -> Tensor:
    """``[K, E]`` of a single token."""
    return torch.autograd.functional.jacobian(weights_of, logits)[0, :, 0]


def test_unnormalised_softmax_gives_every_logit_a_gradient() -> None:
    p = CANONICAL[0].softmax(0)
    expected = p[:2, None] * (torch.eye(4)[:2] - p)
    close(jacobian(lambda z: route(z, 2)[0], CANONICAL[:1]), expected, 1e-12)


def test_renormalised_weights_give_the_unchosen_no_gradient() -> None:
    actual = jacobian(lambda z: route(z, 2, renormalize=True)[0], CANONICAL[:1])
    close(actual[0], [0.196612, -0.196612, 0, 0])
    after = jacobian(lambda z: route(z, 2, softmax_after=True)[0], CANONICAL[:1])
    close(after, actual, 1e-12)
    assert (after[:, 2:] == 0).all()


def test_one_renormalised_expert_gets_no_gradient() -> None:
    close(jacobian(lambda z: route(z, 1, renormalize=True)[0], CANONICAL[:1]), torch.zeros(1, 4), 1e-15)


def test_deepseek_v3_weight_gradient() -> None:
    actual = jacobian(lambda z: route_v3(z)[0], V3_LOGITS)
    rows = [[0.150164, -0.091119, -0.057829], [-0.064909, 0.193022, -0.049239], [-0.085255, -0.101903, 0.107068]]
    close(actual[:, [0, 1, 7]], rows)
    close(actual.sum(0), torch.zeros(8), 1e-12)
    assert (actual[:, 2:7] == 0).all()


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus", "none", "softmax_after"])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("nonfinite", ["propagate", "sanitize", "error"])
def test_gradcheck(score: str, renormalize: bool, nonfinite: str) -> None:
    options = {"score": "softmax", "softmax_after": True} if score == "softmax_after" else {"score": score}
    logits = make_logits(4, 6, torch.float64).abs().requires_grad_()
    bias = torch.linspace(-0.1, 0.1, 6)

    def weights_of(z: Tensor) -> Tensor:
        return route(
            z, 3, bias=bias, num_groups=3, topk_groups=2, renormalize=renormalize, scale=1.5, nonfinite=nonfinite,
            **options,
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(weights_of, logits)


def test_bias_and_choice_are_not_differentiated() -> None:
    bias = torch.randn(4, requires_grad=True)
    weights, ids = route(CANONICAL.clone().requires_grad_(), 2, bias=bias)
    weights.sum().backward()
    assert bias.grad is None
    assert not ids.requires_grad


def test_sqrtsoftplus_has_no_gradient_where_it_underflows() -> None:
    # 256 is a square: the roots of some processors' vector libraries are not rounded to the nearest float.
    logits = torch.tensor([[-1e4, -INF, -200.0, 1.0, 256.0]], requires_grad=True)
    weights, _ = route(logits, 5, score="sqrtsoftplus")
    weights.sum().backward()
    close(weights.detach(), [[16, 1.3132616875**0.5, 0, 0, 0]], 1e-6)
    assert logits.grad is not None
    close(logits.grad, [[0, 0, 0, 0.7310586 / (2 * 1.3132616875**0.5), 1 / (2 * 16)]], 1e-6)


# ---- brute force

SCORES = [("softmax", False), ("softmax", True), ("sigmoid", False), ("sqrtsoftplus", False), ("none", False)]
GROUPS = [(1, 1, 1), (4, 2, 1), (4, 2, 2), (4, 4, 2), (2, 1, 3), (12, 5, 2)]


@pytest.mark.parametrize(("score", "softmax_after"), SCORES)
@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize("group_fill", ["-inf", "0"])
def test_every_combination_of_options(
    score: str, softmax_after: bool, groups: tuple[int, ...], group_fill: str
) -> None:
    num_groups, topk_groups, group_top = groups
    # Few distinct values, so that ties are common; the grid is exact in float32, too.
    logits = (make_logits(25, 12, torch.float64) * 4).round() / 4
    bias = torch.arange(12, dtype=torch.float64) % 3 / 4
    for with_bias, renormalize, top_k in itertools.product([False, True], [False, True], [1, 3, 5]):
        options = {
            "score": score,
            "softmax_after": softmax_after,
            "num_groups": num_groups,
            "topk_groups": topk_groups,
            "group_top": group_top,
            "group_fill": group_fill,
            "renormalize": renormalize,
            "eps": 0.1,  # off the grid, so that no sum becomes zero
            "scale": 2.5,
        }
        weights, ids = route(logits, top_k, bias=bias if with_bias else None, **options)  # type: ignore[arg-type]
        assert (weights.dtype, ids.dtype) == (torch.float64, torch.int32)
        for row, row_weights, row_ids in zip(logits.tolist(), weights, ids.tolist(), strict=True):
            expected, expected_ids = brute_force.route_row(
                row, top_k, bias=bias.tolist() if with_bias else None, **options  # type: ignore[arg-type]
            )  # fmt: skip
            if softmax_after or score == "none":  # exact values: ties are ties on both sides
                assert row_ids == expected_ids
            close(row_weights.sort().values, sorted(expected), 1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 7])
def test_softmax_topk_renormalise_equals_topk_softmax(top_k: int) -> None:
    logits = make_logits(100, 7, torch.float64)
    before = route(logits, top_k, renormalize=True, eps=0.0)
    after = route(logits, top_k, softmax_after=True)
    assert torch.equal(before[1], after[1])
    close(before[0], after[0], 1e-14)


def test_all_experts_are_the_dense_softmax() -> None:
    logits = make_logits(20, 5, torch.float64)
    weights, ids = route(logits, 5)
    close(torch.zeros_like(logits).scatter(1, ids.long(), weights), logits.softmax(-1), 1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_logits_are_routed_in_float32(dtype: torch.dtype) -> None:
    logits = make_logits(50, 16, dtype).requires_grad_()
    weights, ids = route(logits, 4)
    exact_weights, exact_ids = route(logits.detach().double(), 4)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, route(logits.float(), 4)[0])
    close(weights.detach(), exact_weights, 1e-6)
    assert dtype == torch.bfloat16 or torch.equal(ids, exact_ids)
    (gradient,) = torch.autograd.grad(weights.square().sum(), logits)
    assert gradient.dtype == dtype


def test_no_tokens() -> None:
    weights, ids = route(torch.empty(0, 8, requires_grad=True), 2, num_groups=4, topk_groups=2, nonfinite="error")
    assert weights.shape == ids.shape == (0, 2)
    weights.sum().backward()


# ---- non-finite logits

BAD_ROWS = torch.tensor([[1.0, NAN, 2.0], [0.0, INF, 1.0], [-INF, -INF, -INF], [1.0, -INF, 2.0], [NAN, -INF, NAN]])


@pytest.mark.parametrize("softmax_after", [False, True])
def test_propagate_poisons_whole_rows(softmax_after: bool) -> None:
    weights, ids = route(BAD_ROWS, 2, softmax_after=softmax_after)
    assert weights.isnan().all(1).tolist() == [True, True, True, False, True]
    assert ids[3].tolist() == [2, 0]
    for first, second in ids.tolist():
        assert first != second
        assert {first, second} <= {0, 1, 2}


def test_nan_ranks_above_infinity() -> None:
    _, ids = route(torch.tensor([[3.0, INF, NAN, -INF, NAN]]), 5, score="none")
    assert ids.tolist() == [[2, 4, 1, 0, 3]]


@pytest.mark.parametrize("score", ["softmax", "softmax_after", "sigmoid", "sqrtsoftplus"])
def test_sanitize(score: str) -> None:
    options = {"score": "softmax", "softmax_after": True} if score == "softmax_after" else {"score": score}
    logits = BAD_ROWS.clone().requires_grad_()
    weights, ids = route(logits, 2, renormalize=True, nonfinite="sanitize", **options)  # type: ignore[arg-type]
    assert weights.isfinite().all()
    # In row 1 the softmax of the others underflows to equal zeros, and the lower index goes first.
    second = 0 if score == "softmax" else 2
    assert ids.tolist() == [[2, 0], [1, second], [-1, -1], [2, 0], [-1, -1]]
    assert (weights[[2, 4]] == 0).all()
    if score.startswith("softmax"):
        close(weights[[0, 1, 3]].detach(), [[0.731059, 0.268941], [1, 0], [0.731059, 0.268941]])
    weights[:, 0].sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[[2, 4]] == 0).all()
    assert logits.grad[0, 1] == 0
    assert logits.grad[1, 1] == 0
    assert logits.grad[0, 0] != 0


def test_sanitize_replaces_infinity_by_the_largest_float32() -> None:
    weights, _ = route(torch.tensor([[INF, 1.0]], dtype=torch.float64), 1, score="none", nonfinite="sanitize")
    assert weights.item() == torch.finfo(torch.float32).max


def test_sanitize_leaves_finite_logits_alone() -> None:
    logits = make_logits(10, 6)
    assert all(map(torch.equal, route(logits, 3, nonfinite="sanitize"), route(logits, 3)))


@pytest.mark.parametrize("row", [[NAN, 0.0, 0.0], [0.0, INF, 0.0], [-INF, -INF, -INF]], ids=str)
def test_error_names_the_first_bad_row(row: list[float]) -> None:
    logits = torch.zeros(4, 3)
    logits[0] = torch.tensor([0.0, -INF, 0.0])  # masked experts are fine
    route(logits, 2, nonfinite="error")
    logits[2] = logits[3] = torch.tensor(row)
    with pytest.raises(ValueError, match="router_logits: row 2"):
        route(logits, 2, nonfinite="error")


# ---- arguments


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": 9}, "top_k"),
        ({"score": "tanh"}, "score"),
        ({"score": "sigmoid", "softmax_after": True}, "softmax_after"),
        ({"bias": torch.zeros(7)}, "bias"),
        ({"num_groups": 3}, "num_groups"),
        ({"num_groups": 4, "topk_groups": 5}, "topk_groups"),
        ({"num_groups": 4, "group_top": 0}, "group_top"),
        ({"group_fill": "nan"}, "group_fill"),
        ({"nonfinite": "ignore"}, "nonfinite"),
        ({"top_k": 3, "num_groups": 4, "topk_groups": 1}, "top_k"),
    ],
    ids=str,
)
def test_bad_arguments(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        route(torch.zeros(2, 8), **{"top_k": 2, **options})  # type: ignore[arg-type]
