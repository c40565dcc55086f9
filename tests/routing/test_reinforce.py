"""Sampled experts and the policy loss (RL-R, arXiv:2202.01169)."""

import pytest
import torch

from moe_ext.routing import SampledSelection, reinforce_loss

T, E = 12, 5


def test_samples_from_the_softmax_while_training() -> None:
    logits = torch.randn(E)
    selection = SampledSelection(E)
    weights, ids = selection(logits.expand(40_000, E))
    frequencies = ids.flatten().bincount(minlength=E) / 40_000
    torch.testing.assert_close(frequencies, logits.softmax(0), atol=0.012, rtol=0)
    assert torch.equal(weights, torch.ones(40_000, 1))
    assert not weights.requires_grad
    assert (selection.eval()(logits.expand(9, E)).topk_ids == logits.argmax()).all()


def test_same_seed_same_sample() -> None:
    logits, seed = torch.randn(T, E), torch.tensor([3])
    assert torch.equal(*(SampledSelection(E)(logits, seed=seed).topk_ids for _ in range(2)))


def test_loss_by_hand() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]]).log()
    ids = torch.tensor([[0], [2]], dtype=torch.int32)
    reward = torch.tensor([2.0, -1.0])
    log_p = torch.tensor([0.7, 0.25]).log()
    expected = -((2 - 0.5) * log_p[0] + (-1 - 0.5) * log_p[1]) / 2
    torch.testing.assert_close(reinforce_loss(logits, ids, reward, baseline=0.5), expected)
    entropy = -(logits.exp() * logits).sum(1).mean()
    both = reinforce_loss(logits, ids, reward, baseline=torch.full((2,), 0.5), entropy_coef=0.1)
    torch.testing.assert_close(both, expected - 0.1 * entropy)


def test_gradients() -> None:
    logits = torch.randn(T, E, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(E, (T, 1))
    reward = torch.randn(T, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: reinforce_loss(z, ids, reward.detach(), entropy_coef=0.1), logits)
    reinforce_loss(logits, ids, reward, baseline=reward * 2).backward()
    assert reward.grad is None


def test_is_the_gradient_of_the_expected_reward() -> None:
    """Averaged over samples, the loss has the gradient of -sum_e p_e reward_e."""
    logits = torch.randn(E, dtype=torch.float64, requires_grad=True)
    rewards = torch.randn(E, dtype=torch.float64)
    (exact,) = torch.autograd.grad(-(logits.softmax(0) * rewards).sum(), logits)
    many = logits.expand(100_000, E)
    ids = SampledSelection(E)(many).topk_ids
    loss = reinforce_loss(many, ids, rewards[ids[:, 0].long()], baseline=float(rewards.mean()))
    (estimate,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(estimate, exact, atol=0.01, rtol=0)


def test_left_out_tokens_and_masked_experts() -> None:
    logits = torch.randn(4, E)
    logits[2] = float("nan")
    logits[0, 1] = float("-inf")
    logits.requires_grad_()
    ids = torch.tensor([[0], [1], [2], [-1]], dtype=torch.int32)
    reward = torch.ones(4)
    mask = torch.tensor([True, True, False, True])
    loss = reinforce_loss(logits, ids, reward, entropy_coef=0.1, token_mask=mask)
    torch.testing.assert_close(loss, reinforce_loss(logits[:2], ids[:2], reward[:2], entropy_coef=0.1))
    loss.backward()
    assert logits.grad.isfinite().all()
    assert torch.equal(logits.grad[2:], torch.zeros(2, E))


def test_compiles_as_one_graph() -> None:
    logits, seed = torch.randn(T, E), torch.tensor([3])
    selection = SampledSelection(E)
    _, ids = torch.compile(selection, fullgraph=True, backend="aot_eager")(logits, seed=seed)
    assert torch.equal(ids, selection(logits, seed=seed).topk_ids)
    loss = torch.compile(reinforce_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        loss(logits, ids, torch.ones(T), entropy_coef=0.1), reinforce_loss(logits, ids, torch.ones(T), entropy_coef=0.1)
    )


def test_errors() -> None:
    logits, ids = torch.zeros(T, E), torch.zeros(T, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"topk_ids must be \[12, 1\]"):
        reinforce_loss(logits, ids.expand(T, 2), torch.zeros(T))
    with pytest.raises(ValueError, match=r"reward must be \[12\]"):
        reinforce_loss(logits, ids, torch.zeros(T, 1))
