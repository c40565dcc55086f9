from itertools import permutations

import pytest
import torch

from tests.support.assignment import best_assignment


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 3), (5, 5), (3, 6), (2, 4)])
def test_best_assignment_is_that_of_brute_force(rows: int, columns: int) -> None:
    for _ in range(10):
        values = torch.randn(rows, columns, dtype=torch.float64)
        found = best_assignment(values)
        assert found.unique().numel() == rows
        best = max(float(values[range(rows), list(p)].sum()) for p in permutations(range(columns), rows))
        assert float(values.gather(1, found[:, None]).sum()) == pytest.approx(best)
