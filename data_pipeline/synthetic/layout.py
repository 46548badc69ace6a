"""Arrangements of helices, antiparallel sheets and loops along a synthetic chain, and their ideal torsions."""

from dataclasses import dataclass

import numpy as np

HELIX, STRAND, TURN, LOOP = range(4)
"""Kinds of residue: TURN is one of the two residues between neighbouring strands of a sheet."""

HELIX_TORSION = (-57.0, -47.0)
STRAND_TORSION = (-124.0, 126.0)
"""Degrees; with the turn below, found by a random search for a four-stranded sheet with every hydrogen bond formed."""
TURN_TORSIONS = ((46.0, -120.0), (-102.0, 33.0))
"""Type II' turn, which joins two strands of even length in register."""
TURN_FLANKS = ((-14.0, 6.0), (-8.0, 3.0))
"""Added to the torsions of the residues just before and after a turn."""


@dataclass(frozen=True)
class Unit:
    """One helix (`num_strands` 0) or one sheet of `num_strands` strands of `length` residues."""

    num_strands: int
    length: int

    @property
    def num_residues(self) -> int:
        return self.length if not self.num_strands else self.num_strands * (self.length + 2) - 2

    @property
    def kinds(self) -> np.ndarray:
        """int64 [num_residues]."""
        if not self.num_strands:
            return np.full(self.length, HELIX)
        return np.array(([STRAND] * self.length + [TURN] * 2) * self.num_strands)[:-2]

    @property
    def torsions(self) -> np.ndarray:
        """float64 [num_residues, 2]: phi and psi in degrees."""
        kinds = self.kinds
        torsions = np.where((kinds == HELIX)[:, None], HELIX_TORSION, STRAND_TORSION)
        for first in np.flatnonzero(kinds == TURN)[::2]:
            torsions[first : first + 2] = TURN_TORSIONS
            torsions[first - 1] += TURN_FLANKS[0]
            torsions[first + 2] += TURN_FLANKS[1]
        return torsions


@dataclass(frozen=True)
class Layout:
    """Units along the chain and the loops around them: `loops[i]` residues stand before unit i, the last after all."""

    units: tuple[Unit, ...]
    loops: tuple[int, ...]

    @property
    def num_residues(self) -> int:
        return sum(unit.num_residues for unit in self.units) + sum(self.loops)

    @property
    def kinds(self) -> np.ndarray:
        """int64 [num_residues]."""
        parts = [
            part
            for loop, unit in zip(self.loops, self.units, strict=False)
            for part in (np.full(loop, LOOP), unit.kinds)
        ]
        return np.concatenate([*parts, np.full(self.loops[-1], LOOP)])


def draw_layout(num_residues: int, rng: np.random.Generator) -> Layout:
    """A random arrangement of units and loops with exactly `num_residues` residues."""
    units: list[Unit] = []
    helix_share = rng.uniform(0.15, 0.85)
    room = num_residues - 6
    while room >= 14 or not units:
        sheet = rng.random() > helix_share and room >= 16
        unit = (
            Unit(int(rng.integers(2, 5)), 2 * int(rng.integers(2, 5))) if sheet else Unit(0, int(rng.integers(9, 21)))
        )
        if unit.num_residues > room:
            unit = Unit(2, 4) if sheet else Unit(0, max(8, min(room, 12)))
        units.append(unit)
        room -= unit.num_residues + 5
    return fit_layout(Layout(tuple(units), (3, *[4] * (len(units) - 1), 3)), num_residues, rng)


def vary_layout(layout: Layout, num_residues: int, rng: np.random.Generator) -> Layout:
    """The same units with helices a little longer or shorter and other loops."""
    units = tuple(
        unit if unit.num_strands else Unit(0, int(max(8, unit.length + rng.integers(-2, 3)))) for unit in layout.units
    )
    loops = tuple(int(max(2, loop + rng.integers(-1, 2))) for loop in layout.loops)
    return fit_layout(Layout(units, loops), num_residues, rng)


def fit_layout(layout: Layout, num_residues: int, rng: np.random.Generator) -> Layout:
    """Lengthen or shorten loops (2-8 residues), tails (1-6) and helices (8-24) to exactly `num_residues`."""
    units, loops = list(layout.units), list(layout.loops)
    missing = num_residues - layout.num_residues
    for _ in range(100 * (abs(missing) + 1)):
        if not missing:
            break
        step = 1 if missing > 0 else -1
        place = int(rng.integers(len(units) + len(loops)))
        if place < len(loops):
            inner = 0 < place < len(loops) - 1
            allowed = (2, 8) if inner else (1, 6)
            if allowed[0] <= loops[place] + step <= allowed[1]:
                loops[place] += step
                missing -= step
        elif not units[place - len(loops)].num_strands and 8 <= units[place - len(loops)].length + step <= 24:
            units[place - len(loops)] = Unit(0, units[place - len(loops)].length + step)
            missing -= step
    loops[-1] = max(1, loops[-1] + missing)
    return Layout(tuple(units), tuple(loops))
