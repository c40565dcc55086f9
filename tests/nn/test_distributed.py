"""The layer under PyTorch's own data parallelism."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from moe_ext.nn import MoE, update_expert_biases

fsdp = pytest.importorskip("torch.distributed.fsdp")


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_fully_shard() -> None:
    layer = MoE(12, 8, 4, 2, num_shared_experts=1, load_balancing_coef=0.1, aux_loss_free=True)
    sharded = copy.deepcopy(layer)
    fsdp.fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    x = torch.randn(10, 12)
    torch.testing.assert_close(sharded(x), layer(x))
    sharded(x).square().sum().backward()
    layer(x).square().sum().backward()
    for a, b in zip(sharded.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(a.grad.full_tensor(), b.grad)
    sharded.update_expert_bias()
    layer.update_expert_bias()
    assert torch.equal(sharded.router.expert_bias, layer.router.expert_bias)


def _update_on_rank(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    layer = MoE(4, 3, 4, 2, aux_loss_free=True)
    # Together the load is [3, 3, 2, 4]; each rank alone would step differently.
    layer.expert_counts.copy_(torch.tensor([[3, 1, 1, 1], [0, 2, 1, 3]][rank]))
    layer.update_expert_bias()
    assert layer.router.expert_bias.tolist() == pytest.approx([0.0, 0.0, 1e-3, -1e-3]), rank
    dist.destroy_process_group()


def _accumulate_on_rank(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(MoE(4, 3, 4, 2, aux_loss_free=True) for _ in range(2)))
    batches = torch.randn(2, 3, 7, 4)  # of both ranks
    alone = copy.deepcopy(model)
    for batch in batches.reshape(6, 7, 4):
        alone(batch)
    for layer in alone:
        layer.apply_expert_counts(1e-3, "rms")

    parallel = torch.nn.parallel.DistributedDataParallel(model)
    for batch in batches[rank]:
        parallel(batch).sum().backward()
    update_expert_biases(parallel, mode="rms")
    for layer, expected in zip(model, alone, strict=True):
        assert torch.equal(layer.router.expert_bias, expected.router.expert_bias), rank
        assert (layer.expert_counts == 0).all()
    # Were its reducer the last to hold the group, gloo's threads would be joined by who holds the GIL they wait for.
    del parallel
    dist.destroy_process_group()


@pytest.mark.slow
def test_accumulation_under_data_parallelism(tmp_path: Path) -> None:
    """Buffers are broadcast from rank 0 before every forward pass; what is counted must not be."""
    mp.spawn(_accumulate_on_rank, (str(tmp_path / "store"),), nprocs=2)


def test_a_model_without_biases() -> None:
    with pytest.raises(ValueError, match="no MoE layer"):
        update_expert_biases(MoE(4, 3, 4, 2))


@pytest.mark.slow
def test_bias_update_sums_over_ranks(tmp_path: Path) -> None:
    mp.spawn(_update_on_rank, (str(tmp_path / "store"),), nprocs=2)
