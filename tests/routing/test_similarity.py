"""Logits smoothed over similar tokens, and logits from the distance to cluster centres."""

import pytest
import torch

from moe_ext.routing import ClusterLogits, LinearLogits, Router, TokenGraphSmoothing, TopK

T, H, E = 12, 8, 4


def smooth(logits: torch.Tensor, x: torch.Tensor, m: torch.Tensor, causal: bool) -> torch.Tensor:
    scores = x @ m @ x.T / x.shape[1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
    return scores.softmax(1) @ logits


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [None, 4])
def test_smoothing_against_its_formula(causal: bool, size: int | None) -> None:
    smoothing = TokenGraphSmoothing(H, tokens_per_sequence=size, causal=causal).double()
    torch.nn.init.normal_(smoothing.weight)
    logits, x = torch.randn(T, E, dtype=torch.float64), torch.randn(T, H, dtype=torch.float64)
    parts = zip(logits.split(size or T), x.split(size or T), strict=True)
    expected = torch.cat([smooth(z, part, smoothing.weight, causal) for z, part in parts])
    torch.testing.assert_close(smoothing(logits, x), expected)


def test_rows_of_the_graph_sum_to_one() -> None:
    smoothing = TokenGraphSmoothing(H)
    torch.testing.assert_close(smoothing(torch.ones(T, E), torch.randn(T, H)), torch.ones(T, E))


def test_causal_smoothing_does_not_look_ahead() -> None:
    smoothing = TokenGraphSmoothing(H, causal=True)
    logits, x = torch.randn(T, E), torch.randn(T, H)
    before = smoothing(logits, x)
    logits[8:], x[8:] = 100.0, 5.0
    torch.testing.assert_close(smoothing(logits, x)[:8], before[:8])


@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_heard_by_nobody(causal: bool) -> None:
    smoothing = TokenGraphSmoothing(H, tokens_per_sequence=6, causal=causal).double()
    torch.nn.init.normal_(smoothing.weight)
    logits, x = torch.randn(T, E, dtype=torch.float64), torch.randn(T, H, dtype=torch.float64)
    mask = torch.tensor([True, False, True, True, False, True] + 6 * [False])
    spoiled = x.masked_fill(~mask[:, None], float("nan")).requires_grad_()
    actual = smoothing(logits.masked_fill(~mask[:, None], float("nan")), spoiled, token_mask=mask)
    expected = smooth(logits[mask], x[mask], smoothing.weight, causal)
    torch.testing.assert_close(actual[mask], expected)
    grads = torch.autograd.grad(actual.square().sum(), [spoiled, smoothing.weight])
    assert all(grad.isfinite().all() for grad in grads)


def test_a_router_gives_it_the_mask() -> None:
    router = Router(LinearLogits(H, E), TopK(E, 2), noise=TokenGraphSmoothing(H))
    x, mask = torch.randn(T, H), torch.arange(T) < 8
    torch.testing.assert_close(router(x, token_mask=mask).router_logits[:8], router(x[:8]).router_logits)


def test_in_a_router() -> None:
    router = Router(LinearLogits(H, E), TopK(E, 2), noise=TokenGraphSmoothing(H)).eval()
    x = torch.randn(T, H).bfloat16()
    output = router(x)
    expected = smooth(router.logits(x), x.float(), router.noise.weight, False)
    torch.testing.assert_close(output.router_logits, expected)
    assert output.router_logits.dtype == torch.float32


def test_smoothing_gradcheck() -> None:
    smoothing = TokenGraphSmoothing(3, causal=True).double()
    logits = torch.randn(4, E, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(smoothing, (logits, x))


def test_cluster_logits_against_the_definition() -> None:
    clusters = ClusterLogits(H, E, temperature=2.0)
    x = torch.randn(T, H)
    logits = clusters(x)
    expected = -(x[:, None] - clusters.centres).square().sum(2) / 2
    torch.testing.assert_close(logits, expected)
    _, ids, _ = Router(clusters, TopK(E, 1))(x)
    assert torch.equal(ids.flatten().long(), torch.cdist(x, clusters.centres).argmin(1))


def test_cluster_gradcheck() -> None:
    clusters = ClusterLogits(3, E).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(clusters, x)


def test_no_tokens() -> None:
    assert TokenGraphSmoothing(H)(torch.zeros(0, E), torch.zeros(0, H)).shape == (0, E)
    assert ClusterLogits(H, E)(torch.zeros(0, H)).shape == (0, E)


def test_compiles_as_one_graph() -> None:
    logits, x = torch.randn(T, E), torch.randn(T, H)
    smoothing, clusters = TokenGraphSmoothing(H, tokens_per_sequence=4), ClusterLogits(H, E)
    compiled = torch.compile(smoothing, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, x), smoothing(logits, x))
    compiled = torch.compile(clusters, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), clusters(x))


def test_errors() -> None:
    with pytest.raises(ValueError, match="tokens_per_sequence = 5 must divide"):
        TokenGraphSmoothing(H, tokens_per_sequence=5)(torch.zeros(T, E), torch.zeros(T, H))
    with pytest.raises(ValueError, match="tokens_per_sequence must be at least 1"):
        TokenGraphSmoothing(H, tokens_per_sequence=0)
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        ClusterLogits(H, E, temperature=0.0)
