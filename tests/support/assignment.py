"""The best assignment, by the method that needs no trust in epsilons: for tests of approximate ones."""

import torch
from torch import Tensor


def best_assignment(values: Tensor) -> Tensor:
    """``[rows, columns]`` float64, at least as many columns as rows -> the column of each row, each taken once at most,
    with the largest sum. Shortest augmenting paths (Jonker and Volgenant 1987), cubic."""
    rows, columns = values.shape
    cost = -values
    row_price, column_price = cost.new_zeros(rows + 1), cost.new_zeros(columns + 1)
    # Row of each column, 0 for none; the last is where a search begins.
    row_of = [0] * (columns + 1)
    for row in range(1, rows + 1):
        row_of[columns] = row
        column = columns
        distance = cost.new_full((columns,), float("inf"))
        came_from = torch.full((columns,), columns)
        done = torch.zeros(columns + 1, dtype=torch.bool)
        while row_of[column] != 0:
            done[column] = True
            current = row_of[column]
            reduced = cost[current - 1] - row_price[current] - column_price[:-1]
            shorter = (reduced < distance) & ~done[:-1]
            distance = torch.where(shorter, reduced, distance)
            came_from = torch.where(shorter, column, came_from)
            column = int(distance.masked_fill(done[:-1], float("inf")).argmin())
            step = distance[column].clone()
            row_price[torch.tensor(row_of)[done]] += step
            column_price[done] -= step
            distance = torch.where(done[:-1], distance, distance - step)
        while column != columns:
            before = int(came_from[column])
            row_of[column] = row_of[before]
            column = before
    result = torch.empty(rows, dtype=torch.int64)
    for column, row in enumerate(row_of[:-1]):
        if row:
            result[row - 1] = column
    return result
