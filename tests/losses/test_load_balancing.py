"""The numbers of the papers and of public code, on the worked example."""

import pytest
import torch
from torch.autograd import gradcheck

from moe_ext.losses import load_balancing_loss
from tests.losses.worked_example import logits, topk_ids


def test_share_convention() -> None:
    # E / (K T) sum c_e P_e: Megatron-LM, MegaBlocks, DeepSeekMoE.
    assert load_balancing_loss(logits(), topk_ids()).item() == pytest.approx(1.247661, abs=1e-6)


def test_per_token_convention() -> None:
    # Hugging Face load_balancing_loss_func: K times as large.
    loss = load_balancing_loss(logits(), topk_ids(), convention="per_token")
    assert loss.item() == pytest.approx(2.495322, abs=1e-6)


def test_per_token_convention_is_that_of_transformers() -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(40, 8, generator=generator) for _ in range(3)]
    theirs = mixtral.load_balancing_loss_func(tuple(layers), num_experts=8, top_k=2)
    concatenated = torch.cat(layers)
    ours = load_balancing_loss(concatenated, concatenated.topk(2).indices, convention="per_token")
    torch.testing.assert_close(ours, theirs)


def test_first_choices_only() -> None:
    # GShard as coded in DeepSpeed and fairseq; with K = 1 also Switch Transformer.
    assert load_balancing_loss(logits(), topk_ids()[:, :1]).item() == pytest.approx(1.361517, abs=1e-6)


def test_gshard() -> None:
    # The paper's scale, on one group and on two local groups; the code's is E^2 times that.
    loss = load_balancing_loss(logits(), topk_ids(), convention="gshard", count="first")
    assert loss.item() == pytest.approx(0.085095, abs=1e-6)
    groups = load_balancing_loss(logits(), topk_ids(), convention="gshard", count="first", num_sequences=2)
    code = load_balancing_loss(logits(), topk_ids()[:, :1], num_sequences=2)
    assert groups.item() == pytest.approx(code.item() / 16)


def test_gradient_of_the_switch_transformer() -> None:
    z = logits().requires_grad_()
    load_balancing_loss(z, topk_ids(), count="first").backward()
    expected = torch.tensor([-0.006126, 0.024067, -0.010512, -0.007429], dtype=torch.float64)
    torch.testing.assert_close(z.grad[0], expected, atol=1e-6, rtol=0)


def test_a_token_counts_once_as_in_switch_transformers_of_transformers() -> None:
    switch = pytest.importorskip("transformers.models.switch_transformers.modeling_switch_transformers")
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 20, 8, generator=generator)
    # Twice the same expert in some rows.
    ids = torch.randint(8, (3, 20, 2), generator=generator)
    ours = load_balancing_loss(
        z.flatten(0, 1), ids.flatten(0, 1), convention="per_token", count="tokens", num_sequences=3
    )
    torch.testing.assert_close(ours, switch.load_balancing_loss_func(z.softmax(-1), ids))
    slots = load_balancing_loss(z.flatten(0, 1), ids.flatten(0, 1), convention="per_token", num_sequences=3)
    assert slots > ours


def test_counts_of_the_unbiased_scores() -> None:
    # Whatever experts were used, the counted ones are the best two of each token.
    used = (topk_ids() + 1) % 4
    loss = load_balancing_loss(logits(), used, score="sigmoid", count="unbiased")
    assert loss.item() == pytest.approx(1.095030, abs=1e-6)


def test_balance_by_load_with_a_different_number_of_experts_per_token() -> None:
    ids = torch.tensor([[0, 1], [2, -1], [3, -1], [0, -1], [1, 2], [3, -1]])
    assert load_balancing_loss(torch.zeros(6, 4), ids, convention="load").item() == pytest.approx(1.0)
    assert load_balancing_loss(torch.zeros(6, 4), ids).item() == pytest.approx(8 / 12)


def test_gradient_of_the_switch_loss() -> None:
    z = logits().requires_grad_()
    load_balancing_loss(z, topk_ids()).backward()
    # Row 0 of E times the gradient of F.P.
    expected = 4 * torch.tensor([0.005603, -0.001229, -0.002873, -0.001502], dtype=torch.float64)
    torch.testing.assert_close(z.grad[0], expected, atol=4e-6, rtol=0)


def test_per_sequence() -> None:
    # DeepSeek-V2 seq_aux: two sequences of three tokens, 1.092569 and 1.447154.
    loss = load_balancing_loss(logits(), topk_ids(), num_sequences=2)
    assert loss.item() == pytest.approx(1.269861, abs=1e-6)
    for rows, expected in ((slice(0, 3), 1.092569), (slice(3, 6), 1.447154)):
        one = load_balancing_loss(logits()[rows], topk_ids()[rows])
        assert one.item() == pytest.approx(expected, abs=1e-6)


def test_normalised_sigmoid() -> None:
    # DeepSeek-V3, one sequence.
    z = logits().requires_grad_()
    loss = load_balancing_loss(z, topk_ids(), score="sigmoid", num_sequences=1)
    assert loss.item() == pytest.approx(1.095030, abs=1e-6)
    loss.backward()
    expected = 4 * torch.tensor([0.000851, 0.000446, -0.002350, -0.002995], dtype=torch.float64)
    torch.testing.assert_close(z.grad[0], expected, atol=4e-6, rtol=0)


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (4, 2), (8, 3)])
def test_perfect_balance_is_one(score: str, num_experts: int, top_k: int) -> None:
    ids = torch.arange(num_experts * top_k).reshape(num_experts, top_k) % num_experts
    z = torch.zeros(num_experts, num_experts)
    assert load_balancing_loss(z, ids, score=score).item() == pytest.approx(1.0)
    assert load_balancing_loss(z, ids, score=score, convention="per_token").item() == pytest.approx(top_k)
    assert load_balancing_loss(z, ids, score=score, convention="load").item() == pytest.approx(1.0)
    gshard = load_balancing_loss(z, ids, score=score, convention="gshard", count="first")
    assert gshard.item() == pytest.approx(1 / num_experts**2)


def test_worst_case() -> None:
    # Everyone on the same K experts with probability 1/K each: E / K.
    z = torch.full((5, 8), -1e4)
    z[:, :2] = 0
    assert load_balancing_loss(z, torch.tensor([[0, 1]] * 5)).item() == pytest.approx(4.0)


def test_concatenated_layers_hide_imbalance() -> None:
    # Two layers that overload opposite experts: 1.8 each, 1.0 together.
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    ids = torch.tensor([[0], [1]])
    assert load_balancing_loss(p[:1].log(), ids[:1]).item() == pytest.approx(1.8)
    assert load_balancing_loss(p.log(), ids).item() == pytest.approx(1.0)


def test_sentinels_and_masked_tokens_leave_the_loss() -> None:
    z, ids = logits(), topk_ids()
    keep = torch.tensor([True, True, False, True, False, True])
    expected = load_balancing_loss(z[keep], ids[keep])
    assert load_balancing_loss(z, ids, token_mask=keep).item() == pytest.approx(expected.item())
    # Tokens without any expert are left out by themselves, and their logits may be anything.
    z[~keep] = float("nan")
    z.requires_grad_()
    loss = load_balancing_loss(z, ids.masked_fill(~keep[:, None], -1))
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert z.grad.isfinite().all()
    assert (z.grad[~keep] == 0).all()
    # A single sentinel slot is not counted; its token stays.
    ids[0, 1] = 4
    expected_counts = torch.tensor([5, 3, 2, 1], dtype=torch.float64)
    mean_p = logits().softmax(-1).mean(0)
    assert load_balancing_loss(logits(), ids).item() == pytest.approx((4 / 12 * expected_counts @ mean_p).item())


def test_empty_sequences_do_not_enter_the_mean() -> None:
    keep = torch.tensor([True] * 3 + [False] * 3)
    loss = load_balancing_loss(logits(), topk_ids(), num_sequences=2, token_mask=keep)
    assert loss.item() == pytest.approx(1.092569, abs=1e-6)
    assert load_balancing_loss(logits(), topk_ids(), token_mask=torch.zeros(6, dtype=torch.bool)).item() == 0
    assert load_balancing_loss(logits()[:0], topk_ids()[:0]).item() == 0


def test_float32_arithmetic_for_half_precision_logits() -> None:
    # The example's logits are exact in bfloat16, so only the arithmetic could differ.
    loss = load_balancing_loss(logits(torch.bfloat16), topk_ids())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1.247661, abs=1e-6)


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("num_sequences", [1, 2])
def test_gradcheck(score: str, num_sequences: int) -> None:
    ids = topk_ids()
    ids[1, 0] = -1
    mask = torch.tensor([True, True, True, False, True, True])

    def loss(z: torch.Tensor) -> torch.Tensor:
        return load_balancing_loss(z, ids, score=score, num_sequences=num_sequences, token_mask=mask)

    assert gradcheck(loss, logits().requires_grad_())


@pytest.mark.parametrize("count", ["first", "tokens", "unbiased"])
@pytest.mark.parametrize("convention", ["per_token", "load", "gshard"])
def test_gradcheck_of_other_counts(count: str, convention: str) -> None:
    # Without ties, so that no small change changes the best two.
    z = (logits() + 0.01 * torch.arange(24).reshape(6, 4).double().cos()).requires_grad_()
    assert gradcheck(lambda z: load_balancing_loss(z, topk_ids(), count=count, convention=convention), z)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"convention": "megatron"}, "convention must be"),
        ({"score": "none"}, "score must be"),
        ({"count": "all"}, "count must be"),
        ({"num_sequences": 5}, "do not make 5 sequences"),
        ({"token_mask": torch.ones(5, dtype=torch.bool)}, "token_mask must have 6 elements"),
    ],
)
def test_errors(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_balancing_loss(logits(), topk_ids(), **arguments)
    with pytest.raises(ValueError, match="topk_ids must be"):
        load_balancing_loss(logits(), topk_ids()[:3])
    with pytest.raises(TypeError, match="token_mask must be bool"):
        load_balancing_loss(logits(), topk_ids(), token_mask=torch.ones(6))
