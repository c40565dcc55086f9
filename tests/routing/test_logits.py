"""Logits: worked examples, gradients, float32 whatever surrounds them."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from moe_ext.routing import CosineLogits, LinearLogits, TaskEmbeddingLogits, TaskLogits

T, H, E, TASKS = 12, 10, 6, 3
TASK_IDS = torch.tensor([0, 2, 1, 1, 0, 2, 2, 0, 1, 0, 0, 2])

MODULES = {
    "linear": lambda: LinearLogits(H, E, bias=True),
    "cosine": lambda: CosineLogits(H, E, 4),
    "cosine_released": lambda: CosineLogits(H, E, 4, normalize_input=False, temperature=None),
    "cosine_fixed": lambda: CosineLogits(H, E, temperature=0.5, learn_temperature=False),
    "task": lambda: TaskLogits(H, E, TASKS),
    "task_embedding": lambda: TaskEmbeddingLogits(5, E, TASKS),
    "task_and_token": lambda: TaskEmbeddingLogits(5, E, TASKS, hidden_size=H),
}
modules = pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)


def call(module: nn.Module, x: Tensor) -> Tensor:
    return module(x, task_ids=TASK_IDS) if hasattr(module, "side_inputs") else module(x)


def example_of_cosines(**options: object) -> CosineLogits:
    module = CosineLogits(2, 2, 2, **options).double()
    with torch.no_grad():
        module.projection.copy_(torch.eye(2))
        module.expert_embeddings.copy_(torch.tensor([[1, 0], [1, 1]]))
    return module


def test_cosines_of_the_worked_example() -> None:
    module = example_of_cosines(temperature=0.3)
    x = torch.tensor([[3, 4]], dtype=torch.float64)
    expected = torch.tensor([[0.6, 0.989949]], dtype=torch.float64)
    torch.testing.assert_close(module.cosine(x), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        module(x).softmax(1), torch.tensor([[0.214193, 0.785807]], dtype=torch.float64), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        module(x).sigmoid(), torch.tensor([[0.880797, 0.964423]], dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_cosines_do_not_see_lengths_and_stay_within_one() -> None:
    module = CosineLogits(H, E, 4)
    x = torch.randn(T, H)
    cosine = module.cosine(x)
    assert cosine.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(module.cosine(x * 3.7), cosine)
    module.expert_embeddings.data *= torch.rand(E, 1) + 1
    torch.testing.assert_close(module.cosine(x), cosine)


def test_either_normalisation_can_be_left_out() -> None:
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    no_input = example_of_cosines(normalize_input=False, temperature=None)(x)
    torch.testing.assert_close(no_input, torch.tensor([[3.0, 7 / math.sqrt(2)]], dtype=torch.float64))
    no_expert = example_of_cosines(normalize_expert=False, temperature=None)(x)
    torch.testing.assert_close(no_expert, torch.tensor([[0.6, 1.4]], dtype=torch.float64))


def test_a_zero_vector_has_zero_logits_and_finite_gradients() -> None:
    module = CosineLogits(H, E, 4)
    x = torch.zeros(2, H, requires_grad=True)
    z = module(x)
    assert (z == 0).all()
    z.sum().backward()
    assert x.grad.isfinite().all()


def test_temperature_is_learned_above_its_floor() -> None:
    module = CosineLogits(H, E, 4, temperature=0.3, min_temperature=0.1)
    x = torch.randn(T, H)
    module(x).square().sum().backward()
    assert module.temperature.grad != 0
    module.temperature.data.fill_(1e-9)
    module.zero_grad()
    z = module(x)
    torch.testing.assert_close(z, module.cosine(x) / 0.1)
    z.sum().backward()
    assert module.temperature.grad == 0
    assert "temperature" not in dict(CosineLogits(H, E, learn_temperature=False).named_parameters())
    assert CosineLogits(H, E, temperature=None).temperature is None


def test_every_task_has_a_gate_of_its_own() -> None:
    module = TaskLogits(H, E, TASKS).double()
    x = torch.randn(T, H, dtype=torch.float64)
    expected = torch.einsum("th,teh->te", x, module.weight[TASK_IDS])
    torch.testing.assert_close(module(x, task_ids=TASK_IDS), expected)
    torch.testing.assert_close(module(x, task_ids=TASK_IDS.int()), expected)
    unknown = module(x, task_ids=torch.where(TASK_IDS == 1, -1, TASK_IDS))
    assert (unknown[TASK_IDS == 1] == 0).all()


def test_a_task_absent_from_the_batch_has_a_gradient_of_exact_zeros() -> None:
    for module in (TaskLogits(H, E, TASKS), TaskEmbeddingLogits(5, E, TASKS)):
        module(torch.randn(T, H), task_ids=TASK_IDS % 2).square().sum().backward()
        grad = module.weight.grad if isinstance(module, TaskLogits) else module.embedding.grad
        assert (grad[2] == 0).all()
        assert (grad[:2] != 0).any()


def test_an_embedding_gives_all_tokens_of_a_task_the_same_logits() -> None:
    module = TaskEmbeddingLogits(5, E, TASKS)
    z = module(torch.randn(T, H), task_ids=TASK_IDS)
    torch.testing.assert_close(z, (module.embedding @ module.weight.T)[TASK_IDS])
    assert torch.equal(z[0], z[4])
    unknown = module(torch.randn(T, H), task_ids=torch.full((T,), TASKS))
    assert (unknown == 0).all()


def test_token_and_embedding_together() -> None:
    module = TaskEmbeddingLogits(5, E, TASKS, hidden_size=H).double()
    x = torch.randn(T, H, dtype=torch.float64)
    expected = torch.cat([x, module.embedding[TASK_IDS]], dim=1) @ module.weight.T
    torch.testing.assert_close(module(x, task_ids=TASK_IDS), expected)


@modules
def test_gradcheck(build) -> None:
    module = build().double()
    x = torch.randn(T, H, dtype=torch.float64, requires_grad=True)
    parameters = list(module.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: call(module, x), (x, *parameters))


@modules
def test_stays_in_float32(build) -> None:
    module = build()
    x = torch.randn(T, H)
    expected = call(module, x)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(module, x), expected)
    before = copy.deepcopy(module.state_dict())
    module.to(torch.bfloat16)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert call(module, x.bfloat16()).dtype == torch.float32
    assert torch.equal(call(module, x.bfloat16()), call(module, x.bfloat16().float()))
    assert call(module.double(), x.double()).dtype == torch.float64


@modules
def test_compiles_as_one_graph(build) -> None:
    module = build()
    x = torch.randn(T, H)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        call(compiled, x) if not hasattr(module, "side_inputs") else compiled(x, task_ids=TASK_IDS), call(module, x)
    )


def test_bfloat16_input_chooses_as_float64_would() -> None:
    # With 256 experts bfloat16 logits tie.
    for module in (LinearLogits(64, 256), CosineLogits(64, 256, 128)):
        x = torch.randn(512, 64).bfloat16()
        truth = copy.deepcopy(module).double()(x.double())
        assert torch.equal(module(x).argmax(1), truth.argmax(1))
        assert not torch.equal(truth.bfloat16().argmax(1), truth.argmax(1))


def test_initialisation() -> None:
    assert (LinearLogits(H, E, init_std=0.0).weight == 0).all()
    weight = LinearLogits(1000, 100, init_std=0.01, truncate=True).weight
    assert weight.abs().max() <= 0.02
    assert 0.008 < weight.std() < 0.01
    embeddings = CosineLogits(H, 4, 8).expert_embeddings
    torch.testing.assert_close(embeddings @ embeddings.T, 0.32**2 * torch.eye(4), atol=1e-6, rtol=1e-5)
    assert (TaskLogits(H, E, TASKS, init_std=0.0).weight == 0).all()


def test_errors_and_repr() -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        CosineLogits(H, E, temperature=0.0)
    for module in (TaskLogits(H, E, TASKS), TaskEmbeddingLogits(5, E, TASKS)):
        with pytest.raises(ValueError, match="task_ids is needed"):
            module(torch.randn(T, H))
        with pytest.raises(ValueError, match=r"task_ids must be \[T\] = \(12,\)"):
            module(torch.randn(T, H), task_ids=TASK_IDS[1:])
        assert "num_tasks=3" in repr(module)
    assert "routing_dim=4" in repr(CosineLogits(H, E, 4))
