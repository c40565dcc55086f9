"""What the virtual GPU counted: of a launch, and summed over the launches of a job."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import emulator

SECTOR_BYTES: Final = 32


@dataclass(frozen=True)
class Counts:
    """Sums over launches. `moves` and `polls` are among `warp_instructions`. `sectors`: 32-byte pieces that the
    instructions asked global memory for; `sectors_ideal`: the bytes they asked for, over 32; `distinct`: different
    sectors that a launch read, and those it wrote."""

    launches: int = 0
    warp_instructions: int = 0
    moves: int = 0
    polls: int = 0
    matrix_macs: int = 0
    sectors: int = 0
    sectors_ideal: int = 0
    distinct_read: int = 0
    distinct_written: int = 0
    wavefronts: int = 0
    wavefronts_ideal: int = 0
    barriers: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def instructions(self) -> int:
        """Warp instructions without moves between registers, most of which ptxas removes, and without the loops that
        ask a barrier again and again: how often they ask is chance on the virtual GPU, where nothing takes time."""
        return self.warp_instructions - self.moves - self.polls

    @property
    def distinct_bytes(self) -> int:
        """Bytes of the distinct sectors, read and written."""
        return SECTOR_BYTES * (self.distinct_read + self.distinct_written)

    @property
    def flops(self) -> int:
        """Issued to the matrix units; a multiply-add counts twice."""
        return 2 * self.matrix_macs

    def floor_seconds(self, chip: ChipRates) -> float:
        """Of one launch: the larger of distinct bytes over memory bandwidth and issued FLOPs over peak."""
        return max(self.distinct_bytes / chip.bytes_per_second, self.flops / chip.bf16_flops)


@dataclass(frozen=True)
class ChipRates:
    """The two rates of a chip's public data sheet that a floor needs: memory bytes and dense bf16 FLOPs a second."""

    name: str
    bytes_per_second: float
    bf16_flops: float

    @classmethod
    def of(cls, name: str) -> ChipRates:
        """From the emulator's table of data sheets."""
        import emulator

        chip = emulator.chip(name)
        return cls(chip.name, chip.dram_bytes_per_second, chip.bf16_flops)


def _polls(launch: emulator.Launch) -> int:
    """Instructions in the loops around `mbarrier.try_wait` and `test_wait`: from there to the branch back."""
    polls, in_loop = 0, False
    for instruction in launch.instructions():
        in_loop = in_loop or instruction.opcode.startswith(("mbarrier.try_wait", "mbarrier.test_wait"))
        polls += instruction.counters.warp_instructions if in_loop else 0
        in_loop = in_loop and not instruction.opcode.startswith("bra")
    return polls


@dataclass(frozen=True)
class LaunchCounts:
    """One launch."""

    kernel: str
    grid: tuple[int, int, int]
    block: int
    shared_bytes: int
    counts: Counts

    @classmethod
    def of(cls, launch: emulator.Launch) -> LaunchCounts:
        """Of the record of a launch."""
        c = launch.counters
        return cls(
            kernel=launch.kernel,
            grid=launch.grid,
            block=launch.block[0] * launch.block[1] * launch.block[2],
            shared_bytes=launch.static_shared_bytes + launch.dynamic_shared_bytes,
            counts=Counts(
                launches=1,
                warp_instructions=c.warp_instructions,
                moves=c.instructions_by_class.get("move", 0),
                polls=_polls(launch),
                matrix_macs=c.matrix_macs,
                sectors=c.global_sectors,
                sectors_ideal=c.global_sectors_ideal,
                distinct_read=c.distinct_sectors_read,
                distinct_written=c.distinct_sectors_written,
                wavefronts=c.shared_wavefronts,
                wavefronts_ideal=c.shared_wavefronts_ideal,
                barriers=c.barriers,
            ),
        )


@dataclass
class JobCounts:
    """The launches that did one job."""

    launches: list[LaunchCounts] = field(default_factory=list)

    @property
    def total(self) -> Counts:
        """Their sum."""
        return sum((launch.counts for launch in self.launches), Counts())

    def floor_seconds(self, chip: ChipRates) -> float:
        """One launch after another, each at its floor."""
        return sum(launch.counts.floor_seconds(chip) for launch in self.launches)

    @classmethod
    def joined(cls, jobs: Iterable[JobCounts]) -> JobCounts:
        """All their launches."""
        return cls([launch for job in jobs for launch in job.launches])

    @classmethod
    def from_dict(cls, launches: list[dict[str, Any]]) -> JobCounts:
        """What `to_dict` gave."""
        return cls(
            [
                LaunchCounts(**{**entry, "grid": tuple(entry["grid"]), "counts": Counts(**entry["counts"])})
                for entry in launches
            ]
        )

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain values."""
        return [asdict(launch) for launch in self.launches]
