"""How many candidates are trained: a draw from the law that is accounted, with randomness of the system.

The law is Poisson's or a truncated negative binomial's, its parameter found from the mean to fifty
digits. The draw inverts the distribution with 256 bits, so that its error is far below any delta.

References:
    Papernot and Steinke (2022), arXiv 2110.03620 v2, Definition 1 (truncated negative binomial) and
    Section 3.4 (Poisson).
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Final

from dpads.errors import ConfigError

DIGITS: Final = 60
BITS: Final = 256
_BISECTIONS: Final = 200


def draw_number(shape: float | str, mean: float) -> int:
    """How many runs there are, drawn once.

    Args:
        shape: "poisson", or the shape of a truncated negative binomial: 0 is the logarithmic law, 1 the
            geometric.
        mean: of the number of runs, at least 1.

    Returns:
        The number; 0 is possible under Poisson alone.
    """
    with localcontext() as context:
        context.prec = DIGITS
        rest = Decimal(secrets.randbits(BITS)) / Decimal(2) ** BITS
        for number, probability in enumerate(probabilities(shape, mean)):
            rest -= probability
            if rest < 0 or (probability < Decimal(10) ** -50 and number > mean):
                return number
    raise AssertionError("a law has no end")


def probabilities(shape: float | str, mean: float) -> Iterator[Decimal]:
    """The chance of 0, 1, 2, ... runs, to fifty digits.

    Args:
        shape: as `draw_number`.
        mean: as `draw_number`.

    Raises:
        ConfigError: a law is not known.
    """
    wanted = Decimal(mean)
    if shape == "poisson":
        chance = (-wanted).exp()
        for number in itertools.count(1):
            yield chance
            chance = chance * wanted / number
    if isinstance(shape, str):
        raise ConfigError(f'Expected the law "poisson" or a shape, got "{shape}".')
    eta, gamma = Decimal(shape), _gamma(Decimal(shape), wanted)
    yield Decimal(0)
    step = 1 - gamma
    # P[k] is proportional to step^k (eta)(eta + 1)...(eta + k - 1) / k!, without its first factor eta.
    chance = step / -gamma.ln() if eta == 0 else step * eta / (gamma ** (-eta) - 1)
    for number in itertools.count(1):
        yield chance
        chance = chance * step * (number + eta) / (number + 1)


@lru_cache(maxsize=8)
def _gamma(eta: Decimal, mean: Decimal) -> Decimal:
    """The parameter at which a truncated negative binomial has this mean, by bisection."""
    if mean == 1:
        return Decimal(1) - Decimal(10) ** -(DIGITS // 2)
    with localcontext() as context:
        context.prec = DIGITS
        low, high = Decimal(0), Decimal(1)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if _mean(eta, middle) > mean:
                low = middle
            else:
                high = middle
        return (low + high) / 2


def _mean(eta: Decimal, gamma: Decimal) -> Decimal:
    """The mean of a truncated negative binomial, falling in gamma."""
    if eta == 0:
        return (1 / gamma - 1) / -gamma.ln()
    return eta * (1 - gamma) / (gamma * (1 - gamma**eta))
