"""A fixed total for runs whose parameters are chosen after a look at earlier private outputs.

Plain composition adds up events that were fixed in advance. Where the noise, the batch size or the
number of iterations of a run depends on what an earlier run revealed, its events are random
themselves, and adding them up afterwards bounds nothing. A Renyi filter does: one order and one
total are fixed before anything runs, every run is spent from the total before it begins, and a run
that does not fit never begins. Everything inside then has at most the total as its Renyi divergence
at that order, however it was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dpads.accounting import events
from dpads.accounting.accountant import Relation, check_delta, check_relation, epsilon_of
from dpads.accounting.calibration import (
    LARGEST_NOISE_MULTIPLIER,
    SMALLEST_NOISE_MULTIPLIER,
    TOLERANCE,
    check_epsilon,
)
from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.events import EventTree
from dpads.accounting.mechanism import whole_number
from dpads.accounting.renyi import largest_divergences, rdp_at, rdp_curve
from dpads.errors import BudgetError, ConfigError

if TYPE_CHECKING:
    import numpy as np

# Sums of divergences are rounded up by more than their rounding error.
_ROUNDING = 1.0 + 2.0**-40
_SHRINK = 1.0 - 2.0**-36
_MOST_STEPS = 200


class RenyiFilter:
    """A total of Renyi divergence at one order, spent run by run.

    Args:
        order: The order, > 1, fixed before anything runs.
        rdp: The total, likewise.
        relation: The neighbouring relation of all runs; "replace_one" has no filter, since RDP
            ignores it.

    Raises:
        ConfigError: order or rdp is out of range, or the relation is replace_one.

    Guarantees:
        - What was spent never exceeds the total.
        - A refused run changes nothing.

    References:
        Feldman and Zrnic (2021), arXiv 2008.11193 v4, section 4: a Renyi filter of a fixed order and
        total keeps its total under any adaptive choice of mechanisms and their parameters. Lecuyer
        (2021), arXiv 2103.01379: the same for DP-SGD whose parameters adapt.

    Examples:
        >>> run = events.dp_sgd(1.0, 0.01, 500)
        >>> budget = RenyiFilter.for_budget(3.0, 1e-6, Relation.ADD_OR_REMOVE_ONE, [run, run])
        >>> budget.spend(run)
        >>> budget.admits(run), budget.admits(events.dp_sgd(0.5, 0.01, 500))
        (True, False)
    """

    def __init__(self, *, order: float, rdp: float, relation: Relation) -> None:
        self._order = _number("order", order, 1.0)
        self._rdp = _number("rdp", rdp, 0.0)
        self._relation = _relation(relation)
        self._costs: list[float] = []

    @classmethod
    def for_budget(
        cls, epsilon: float, delta: float, relation: Relation, planned: Sequence[EventTree]
    ) -> RenyiFilter:
        """The filter whose total converts to a budget.

        A filter has one order, so it has to be fixed before anything is known. Each order has the
        total that converts to (epsilon, delta) at it, and a cost of what is planned. The order is
        the one at which the planned events use the smallest share of the total: as many of them as
        possible fit. Other runs than the planned ones may be spent; the plan moves the order alone,
        never the guarantee.

        Args:
            epsilon: The budget, > 0.
            delta: The delta of the budget, in (0, 1).
            relation: The neighbouring relation of all runs.
            planned: About what is going to run, at about the noise that is expected.

        Returns:
            A filter whose `event` costs at most epsilon at delta.

        Raises:
            ConfigError: A number is out of range, nothing is planned, or a sampler needs another
                relation.
            InputError: An event is malformed.
            BudgetError: No order has a total that converts to the budget at which what is planned
                has a finite cost.

        References:
            Canonne, Kamath, Steinke (2020), arXiv 2004.00010 v4, Proposition 12, solved for the
            divergence.
        """
        target, delta = check_epsilon(epsilon), check_delta(delta)
        relation = _relation(relation)
        plan = events.composed(planned)
        to_dp_event(plan)
        if plan == events.NO_OP:
            raise ConfigError(
                "Expected at least one planned event for a Renyi filter, got none: the order is "
                "chosen for what is going to run."
            )
        check_relation(plan, relation)
        orders, totals, costs = _by_order(plan, target, delta, relation)
        share = costs / totals
        if not math.isfinite(float(share.min(initial=math.inf))):
            raise BudgetError(
                f"No Renyi filter keeps epsilon={target:g} at delta={delta:g} for what is planned: at "
                "every order the budget converts to nothing, or the planned runs have no finite "
                "Renyi divergence (truncated batches have none that is known). Raise epsilon, or "
                'use sampler = "poisson" with noise.'
            )
        best = int(share.argmin())
        order, total = float(orders[best]), float(totals[best])
        found = cls(order=order, rdp=total, relation=relation)
        while total > 0.0 and epsilon_of(found.event(), delta, relation).epsilon > target:
            total *= _SHRINK
            found = cls(order=order, rdp=total, relation=relation)
        return found

    @property
    def order(self) -> float:
        """The order."""
        return self._order

    @property
    def rdp(self) -> float:
        """The total, spent or not: what is guaranteed."""
        return self._rdp

    @property
    def relation(self) -> Relation:
        """The neighbouring relation of all runs."""
        return self._relation

    @property
    def spent(self) -> float:
        """What was spent, rounded up."""
        return math.fsum(self._costs) * _ROUNDING

    @property
    def left(self) -> float:
        """What is left, rounded down."""
        return max(0.0, self._rdp - self.spent)

    def cost_of(self, event: EventTree) -> float:
        """The Renyi divergence of an event at the filter's order; infinite where none is known.

        Raises:
            ConfigError: The sampler needs another relation.
            InputError: The event is malformed.
        """
        to_dp_event(event)
        check_relation(event, self._relation)
        return rdp_at(canonical_bytes(event), self._order, self._relation)

    def admits(self, event: EventTree, count: int = 1) -> bool:
        """Whether an event fits that often into what is left."""
        return self._total_with(self.cost_of(event), count) <= self._rdp

    def spend(self, event: EventTree) -> None:
        """Takes a run out of the total, before it begins.

        Raises:
            BudgetError: It does not fit; nothing was spent.
            ConfigError: The sampler needs another relation.
            InputError: The event is malformed.
        """
        cost = self.cost_of(event)
        if self._total_with(cost, 1) > self._rdp:
            raise BudgetError(
                f"Expected a run that fits into the filter's fixed total, got one of Renyi divergence "
                f"{cost:.6g} at order {self._order:g}, where {self.left:.6g} of {self._rdp:.6g} is "
                "left. Use more noise or fewer iterations (smallest_noise_multiplier_within finds the "
                "noise), or stop here: a total is never raised after a look at what it bought."
            )
        self._costs.append(cost)

    def event(self) -> EventTree:
        """The fixed total as an event, to be put on the ledger before anything runs."""
        return events.renyi_filter(order=self._order, rdp=self._rdp)

    def _total_with(self, cost: float, count: int) -> float:
        """What would be spent, rounded up."""
        return math.fsum([*self._costs, count * cost]) * _ROUNDING


def smallest_noise_multiplier_within(
    budget: RenyiFilter, event_of: Callable[[float], EventTree], count: int = 1
) -> float:
    """The smallest noise multiplier with which a number of runs fits into what is left.

    Args:
        budget: The filter; it is not changed.
        event_of: From a noise multiplier to one run's event.
        count: How many such runs have to fit, at least 1.

    Returns:
        A noise multiplier at which the runs cost what is left, or at most `TOLERANCE` of it less;
        `SMALLEST_NOISE_MULTIPLIER` where even that fits.

    Raises:
        BudgetError: No noise multiplier up to `LARGEST_NOISE_MULTIPLIER` fits.
        ConfigError: count is no whole number >= 1, or the sampler needs another relation.

    Guarantees:
        - `budget.admits(event_of(noise), count)` for the returned noise multiplier.
    """
    count = whole_number("count", count)
    if budget.admits(event_of(SMALLEST_NOISE_MULTIPLIER), count):
        return SMALLEST_NOISE_MULTIPLIER
    low, high = math.log(SMALLEST_NOISE_MULTIPLIER), 0.0
    most = math.log(LARGEST_NOISE_MULTIPLIER)
    while not budget.admits(event_of(math.exp(high)), count):
        if high >= most:
            raise BudgetError(
                f"Expected {count} such run(s) to fit into the {budget.left:.6g} of {budget.rdp:.6g} "
                f"that is left at order {budget.order:g}, but it would take a noise multiplier above "
                f"{LARGEST_NOISE_MULTIPLIER:g}. Plan fewer runs or fewer iterations, or stop here."
            )
        low, high = high, min(most, high + math.log(4.0))
    for _ in range(_MOST_STEPS):
        noise = math.exp(high)
        if count * budget.cost_of(event_of(noise)) >= budget.left * (1.0 - TOLERANCE):
            break
        middle = (low + high) / 2.0
        if budget.admits(event_of(math.exp(middle)), count):
            high = middle
        else:
            low = middle
    return math.exp(high)


def _by_order(
    plan: EventTree, epsilon: float, delta: float, relation: Relation
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Orders with the total that converts to the budget, and with what the plan costs there."""
    import numpy as np

    curve = rdp_curve(canonical_bytes(plan), relation)
    if curve is None:
        return np.array([]), np.array([]), np.array([])
    totals = largest_divergences(curve[0], epsilon, delta)
    usable = totals > 0.0
    return curve[0][usable], totals[usable], curve[1][usable]


def _relation(relation: Relation) -> Relation:
    """A relation that RDP does not ignore."""
    if Relation(relation) is Relation.REPLACE_ONE:
        raise ConfigError(
            "Expected relation add_or_remove_one or zero_out for a Renyi filter, got replace_one, "
            "which RDP ignores."
        )
    return Relation(relation)


def _number(name: str, value: object, above: float) -> float:
    """A finite number above another."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not above < value < math.inf
    ):
        raise ConfigError(
            f"Expected {name} of a Renyi filter to be a finite number > {above:g}, got {value!r}."
        )
    return float(value)
