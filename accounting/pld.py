"""Privacy loss distributions of events: epsilon at a delta, and delta at an epsilon.

The Fourier transforms that compose leave an error in delta, in either direction (see
`precision`). Epsilon is read at a delta that is smaller by a bound of it, and the bound is added to
a delta that is read. Where that costs more than a little the composition is done in extended
precision.
"""

from __future__ import annotations

import math
from functools import lru_cache
from json import loads
from typing import TYPE_CHECKING, Any

from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.events import PLAIN_GAUSSIANS, counted_leaves
from dpads.accounting.grid import delta_grid_interval, grid_interval, rough_grid_interval
from dpads.accounting.precision import compose, composition_error
from dpads.accounting.relation import Relation, neighboring_relation

if TYPE_CHECKING:
    import numpy as np

# The share of delta that float64's composition error may cost before more bits are spent.
_TOLERATED_ERROR = 3e-3
_ROUGHLY_TOLERATED_ERROR = 3e-2
# Where delta is asked for, the grid is chosen as for epsilon at this delta.
_DELTA_OF_THE_GRID = 1e-6
# Beyond, the grid's rounding makes PLD looser than RDP, and transforms take minutes.
_MOST_ITERATIONS = 10**8


def supports(event_bytes: bytes, relation: Relation) -> bool:
    """Whether PLD knows an event under a relation."""
    from dp_accounting.pld import PLDAccountant

    probe = PLDAccountant(neighboring_relation(relation))
    return bool(probe.supports(to_dp_event(loads(event_bytes))))


def refuse(event_bytes: bytes, relation: Relation) -> None:
    """Raises dp-accounting's `UnsupportedEventError`, with its reason."""
    from dp_accounting.pld import PLDAccountant

    PLDAccountant(neighboring_relation(relation)).compose(to_dp_event(loads(event_bytes)))


def pld_epsilon_of(event_bytes: bytes, delta: float, relation: Relation, *, rough: bool) -> float:
    """PLD's epsilon of an event that PLD knows.

    Infinite where delta is below the numerical error, and beyond 10^8 iterations.
    """
    iterations = _transformed(event_bytes)
    float64_error = composition_error(iterations, extended=False)
    tolerated = _ROUGHLY_TOLERATED_ERROR if rough else _TOLERATED_ERROR
    extended = float64_error > tolerated * delta
    usable_delta = delta - composition_error(iterations, extended=extended)
    if usable_delta <= 0.0 or iterations > _MOST_ITERATIONS:
        return math.inf
    interval_of = rough_grid_interval if rough else grid_interval
    interval = interval_of(event_bytes, delta, relation)
    distribution = _distribution(event_bytes, relation, interval, extended)
    return float(distribution.get_epsilon_for_delta(usable_delta))


def pld_deltas_of(
    event_bytes: bytes, epsilons: np.ndarray[Any, Any], relation: Relation
) -> np.ndarray[Any, Any]:
    """PLD's deltas of an event that PLD knows, numerical error added.

    Args:
        event_bytes: Canonical JSON of the event.
        epsilons: float64[m], each >= 0, in any order.
        relation: The neighbouring relation.

    Returns:
        float64[m], each in [0, 1].
    """
    import numpy as np

    iterations = _transformed(event_bytes)
    if iterations > _MOST_ITERATIONS:
        return np.ones(epsilons.shape)
    interval = delta_grid_interval(event_bytes, _DELTA_OF_THE_GRID, relation)
    distribution = _distribution(event_bytes, relation, interval, True)
    pmfs = [distribution._pmf_remove]
    if not distribution._symmetric:
        pmfs.append(distribution._pmf_add)
    error = composition_error(iterations, extended=True)
    deltas = np.max([_deltas_of_pmf(pmf.to_dense_pmf(), epsilons) for pmf in pmfs], axis=0)
    # Rounding to float64 is to nearest: one step more is above.
    return np.asarray(np.minimum(np.nextafter(np.maximum(deltas, 0.0) + error, 2.0), 1.0))


def _deltas_of_pmf(pmf: Any, epsilons: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Hockey-stick divergences of one direction: the mass above epsilon, less what may be there.

    delta(epsilon) = sum over losses l > epsilon of p(l) * (1 - exp(epsilon - l)), with the sums of
    p(l) and of p(l) * exp(-l) taken once, from the largest loss down.
    """
    import numpy as np

    probs = np.asarray(pmf._probs, dtype=np.longdouble)
    first = min(max(0, -int(pmf._lower_loss)), probs.size)  # the first loss that is not negative
    grid = np.arange(int(pmf._lower_loss) + first, int(pmf._lower_loss) + probs.size)
    losses = grid * np.longdouble(pmf._discretization)
    upper = np.append(np.cumsum(probs[first:][::-1])[::-1], 0.0)
    lower = np.append(np.cumsum((probs[first:] * np.exp(-losses))[::-1])[::-1], 0.0)
    above = np.searchsorted(losses, epsilons, side="right")
    # Past the last loss both sums are zero, and exp(epsilon) is not needed.
    reached = np.minimum(epsilons, float(losses[-1]) if losses.size else 0.0)
    deltas = pmf._infinity_mass + upper[above] - np.exp(np.longdouble(reached)) * lower[above]
    return np.asarray(deltas, dtype=np.float64)


def _transformed(event_bytes: bytes) -> int:
    """How many mechanisms are composed by transforms; plain Gaussians are in closed form."""
    leaves = counted_leaves(loads(event_bytes))
    return sum(1 if leaf["kind"] in PLAIN_GAUSSIANS else count for leaf, count in leaves)


@lru_cache(maxsize=8)
def _distribution(event_bytes: bytes, relation: Relation, interval: float, extended: bool) -> Any:
    """An event's privacy loss distribution; a few are kept, so that a profile is cheap."""
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        return compose(
            loads(event_bytes), neighboring_relation(relation), interval, extended=extended
        )
