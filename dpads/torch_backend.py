"""The torch backend: tables in NumPy memory under compiled kernels, a torch module as the tower."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpads.backend import Backend, Mechanics
from dpads.clipping import ClippedSum, Workspace, add_sums, clip_batch
from dpads.drawing import Piece
from dpads.kernels.workers import Task, followed_by, get_workers
from dpads.models.base import Model
from dpads.noise import NoiseMechanism
from dpads.optimizers import check_table_optimizer
from dpads.rounding import LOWEST_FLOOR, cancellation_floor
from dpads.tables import MECHANISMS, TableMechanism, TableUpdate
from dpads.tower_optimizer import TowerOptimizer


class TorchBackend(Backend):
    """Training in this process's memory.

    Args:
        model: with its initial parameters.
        mechanics: of the run.

    Raises:
        ConfigError: sums over a batch would round by more than the sensitivity's slack.
    """

    def __init__(self, model: Model, mechanics: Mechanics) -> None:
        self.model = model
        plan, settings, keys = mechanics.plan, mechanics.settings, mechanics.keys
        mechanism, stddev = plan.mechanism, mechanics.noise_stddev
        self._l2_clip_norm, self._floor = mechanism.l2_clip_norm, LOWEST_FLOOR
        if stddev > 0:
            units, rows = mechanism.expected_batch_size, plan.privacy.rows_per_unit
            self._floor = cancellation_floor(model.tower, units, rows)
        self._noise = NoiseMechanism(keys, noise_stddev=stddev, divisor=mechanics.divisor)
        self._tower = TowerOptimizer(
            model.tower,
            settings.tower_optimizer,
            iterations=mechanism.iterations,
            noise_scale=stddev / mechanics.divisor,
        )
        update = TableUpdate(
            check_table_optimizer(settings.table_optimizer),
            iterations=mechanism.iterations,
            noise_stddev=stddev,
            divisor=mechanics.divisor,
        )
        kind = MECHANISMS[settings.table_noise]
        self._tables: dict[str, TableMechanism] = {
            name: kind(name, array, update, keys) for name, array in model.arrays.items()
        }
        self._workspace = Workspace()

    def select(self, selected: Mapping[str, NDArray[np.bool_]]) -> None:
        """Table by table."""
        for name, rows in selected.items():
            self._tables[name].select(rows)

    def step(self, iteration: int, pieces: Iterator[Piece], meanwhile: Task) -> None:
        """One iteration; noise, updates and the next batch share the threads."""
        from dpads.kernels.torch_ops import single_threaded

        with single_threaded():
            total = self._clipped_sum(pieces)
            gradient, noise = self._noise.prepare(total, iteration)
            tasks = followed_by(noise, lambda: self._tower.apply(gradient))
            for name, tables in self._tables.items():
                tasks += tables.update(total.groups[name])
            get_workers().run([meanwhile, *tasks])
            for tables in self._tables.values():
                tables.advance()

    def _clipped_sum(self, pieces: Iterator[Piece]) -> ClippedSum:
        """The clipped sum of one batch; rows are brought up to date before they are read."""
        total: ClippedSum | None = None
        for number, piece in enumerate(pieces):
            for name, tables in self._tables.items():
                tables.bring_up_to_date(piece.reads[name].runs.rows)
            # A sum lives in its workspace, so that pieces of a batch need one each.
            part = clip_batch(
                self.model,
                piece.batch,
                piece.reads,
                self._l2_clip_norm,
                self._workspace if number == 0 else Workspace(),
                groups=piece.groups,
                floor=self._floor,
            )[0]
            total = part if total is None else add_sums(total, part)
        assert total is not None
        return total

    def flush(self, on_rows: Callable[[int], None]) -> None:
        """Table by table."""
        for tables in self._tables.values():
            tables.flush(on_rows)
            tables.hide_low_bits()

    def state(self) -> dict[str, NDArray[Any]]:
        """Parameters, histories and moments."""
        return self._kept(
            {name: tables.history for name, tables in self._tables.items()}, self._tower.state()
        )

    def restore(self, arrays: Mapping[str, NDArray[Any]], iteration: int) -> None:
        """Part by part."""
        moments = self._put_parameters(arrays)
        for name, tables in self._tables.items():
            tables.restore(arrays[f"history.{name}"], iteration)
        self._tower.restore(moments)
