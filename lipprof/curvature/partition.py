"""Units of a decision: parts of the parameters that get one answer each and switch together.

A unit is a tensor, a module (the tensors it owns itself, not those of its children) or a chunk: a
constant number of consecutive entries of the flat vector θ, whatever tensors they lie in; the last
chunk is shorter.  In ``named_parameters()`` order all three cut θ into consecutive parts, so their
sizes are all that a sum over units needs.

Names: the tensor; the module, ``(root)`` for the outermost; for a chunk where it begins and ends,
as ``wte.weight[4096:8192]`` or ``ln.bias[3:] to head.weight[:77]``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lipprof.curvature.parameters import ParameterView, plain_name
from lipprof.errors import ConfigError

Units = Literal["tensor", "module"] | int

MAX_CHUNKS = 10_000
"""Sums over units, names in the run file and AMOS's slices all cost something per chunk."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Entries ``start`` to ``stop`` of a tensor of ``numel`` entries, in its row-major order."""

    tensor: str
    start: int
    stop: int
    numel: int

    @property
    def whole(self) -> bool:
        """Whether these are all of the tensor's entries."""
        return self.start == 0 and self.stop == self.numel

    @property
    def name(self) -> str:
        """The tensor's name, with the range where it is not the whole."""
        if self.whole:
            return self.tensor
        start, stop = self.start or "", "" if self.stop == self.numel else self.stop
        return f"{self.tensor}[{start}:{stop}]"


@dataclass(frozen=True, slots=True)
class Partition:
    """All entries of some tensors, sorted into U units.

    Attributes:
        units: what a unit is: ``"tensor"``, ``"module"``, or the entries of a chunk.
        names: of the units.
        pieces: of each unit.
    """

    units: Units
    names: tuple[str, ...]
    pieces: tuple[tuple[Piece, ...], ...]

    @classmethod
    def of(cls, named_parameters: Iterable[tuple[str, Tensor]], units: Units) -> "Partition":
        """Sort tensors into units.

        Args:
            named_parameters: in flat order; those that require no gradient are left out.
            units: ``"tensor"``, ``"module"``, or the entries of a chunk.

        Returns:
            The partition.

        Raises:
            ConfigError: no such units, or too many chunks.
        """
        check_units(units)
        whole = [
            Piece(plain_name(name), 0, tensor.numel(), tensor.numel())
            for name, tensor in named_parameters
            if tensor.requires_grad
        ]
        if units == "tensor":
            parts = {piece.tensor: [piece] for piece in whole}
        elif units == "module":
            parts = {}
            for piece in whole:
                parts.setdefault(module_of(piece.tensor), []).append(piece)
        else:
            parts = _chunks(whole, units)
        return cls(units, tuple(parts), tuple(map(tuple, parts.values())))

    @classmethod
    def of_view(cls, view: ParameterView, units: Units) -> "Partition":
        """Sort the parameters of a view into units that are consecutive parts of its θ.

        Args:
            view: the parameters.
            units: see ``of``.

        Returns:
            The partition.

        Raises:
            ConfigError: no such units, too many chunks, or the tensors of a module are apart.
        """
        partition = cls.of(zip(view.names, view.parameters, strict=True), units)
        order = [piece.tensor for unit in partition.pieces for piece in unit]
        if units == "module" and tuple(order) != view.names:
            raise ConfigError(
                "The tensors of a module do not follow each other in named_parameters(). Use "
                "units='tensor'."
            )
        return partition

    @property
    def numel(self) -> tuple[int, ...]:
        """Entries of each unit."""
        return tuple(sum(p.stop - p.start for p in unit) for unit in self.pieces)

    @property
    def kind(self) -> str:
        """One word for a unit: tensor, module or chunk."""
        return self.units if isinstance(self.units, str) else "chunk"


def check_units(units: object) -> None:
    """Refuse what is no kind of unit.

    Raises:
        ConfigError: as said.
    """
    chunk = isinstance(units, int) and not isinstance(units, bool) and units >= 1
    if not chunk and units not in {"tensor", "module"}:
        raise ConfigError(
            f"Got {units=}: expected 'tensor', 'module', or the number of entries of a chunk. For "
            "Hessian eigenspaces use FOSI or ELMO with rule=."
        )


def module_of(name: str) -> str:
    """The module that owns a parameter; ``(root)`` for the outermost."""
    return name.rpartition(".")[0] or "(root)"


def _chunks(whole: list[Piece], size: int) -> dict[str, list[Piece]]:
    total = sum(piece.numel for piece in whole)
    if total > size * MAX_CHUNKS:
        raise ConfigError(
            f"Chunks of {size} entries would be {-(-total // size):,}, more than {MAX_CHUNKS:,}. "
            f"Use units={-(-total // MAX_CHUNKS)} or more."
        )
    chunks: list[list[Piece]] = []
    room = 0
    for piece in whole:
        start = 0
        while start < piece.numel:
            if room == 0:
                chunks.append([])
                room = size
            stop = min(piece.numel, start + room)
            chunks[-1].append(Piece(piece.tensor, start, stop, piece.numel))
            room -= stop - start
            start = stop
    ends = [(chunk[0].name, chunk[-1].name) for chunk in chunks]
    names = [first if first == last else f"{first} to {last}" for first, last in ends]
    return dict(zip(names, chunks, strict=True))
