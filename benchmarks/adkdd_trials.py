"""The eight settings that each side of the AdKDD benchmark tries, at every budget.

Without clipping one example's gradient is (p - y) in 20 places: its norm is below sqrt(20) = 4.47.
A clip norm below that clips the clicks first, so that the model predicts too few of them; one above
it only adds noise. Both sides therefore try 3.5 and 4.

A run may take about fifteen seconds on two cores. For Opacus these are 10 epochs, in batches of any
size; 2048 is what suits it best. dpads takes 60 epochs in batches of 8192 in a fifth of that time.
With noise the sum of the learning rates over the iterations decides, and both sides try the same
sums: about 300 to 600 at epsilon 1, 500 to 1,200 at 3, 800 to 1,600 at 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from adkdd_setting import Optimizer, Schedule, Setting

CLIP_NORMS: Final = (3.5, 4.0)

_DPADS_RATES: Final[Mapping[float, tuple[float, ...]]] = {
    1.0: (0.7, 0.9, 1.1, 1.4),
    3.0: (1.5, 2.0, 2.5, 3.0),
    8.0: (2.5, 3.0, 3.5, 4.0),
}
DPADS_PRIVATE: Final = {
    epsilon: tuple(
        Setting(
            learning_rate=rate, schedule="constant", l2_clip_norm=clip, batch_size=8192, epochs=60
        )
        for clip in CLIP_NORMS
        for rate in rates
    )
    for epsilon, rates in _DPADS_RATES.items()
}

_ADAM: Final[tuple[Optimizer, float]] = ("adam", 0.01)
_OPACUS_RATES: Final[Mapping[float, tuple[tuple[Optimizer, float], ...]]] = {
    1.0: (("sgd", 1.0), ("sgd", 1.5), ("sgd", 2.0), _ADAM),
    3.0: (("sgd", 2.0), ("sgd", 3.0), ("sgd", 4.0), _ADAM),
    8.0: (("sgd", 3.0), ("sgd", 4.0), ("sgd", 5.0), _ADAM),
}
OPACUS_PRIVATE: Final = {
    epsilon: tuple(
        Setting(
            optimizer=optimizer,
            learning_rate=rate,
            schedule="constant",
            l2_clip_norm=clip,
            batch_size=2048,
            epochs=10,
        )
        for clip in CLIP_NORMS
        for optimizer, rate in rates
    )
    for epsilon, rates in _OPACUS_RATES.items()
}

# Without privacy neither side needs Opacus, and PyTorch is fast enough for every epoch it wants.
DPADS_FREE: Final = tuple(
    Setting(learning_rate=rate, weight_decay=decay, batch_size=1024, epochs=epochs)
    for rate in (4.0, 8.0)
    for decay in (0.0, 1e-4)
    for epochs in (40, 60)
)
_PYTORCH_RATES: Final[tuple[tuple[Optimizer, float, Schedule, int], ...]] = (
    ("sgd", 4.0, "linear", 40),
    ("sgd", 8.0, "linear", 40),
    ("sgd", 16.0, "linear", 40),
    ("sgd", 2.0, "constant", 40),
    ("sgd", 4.0, "constant", 40),
    ("adam", 0.002, "constant", 10),
    ("adam", 0.005, "constant", 10),
    ("adam", 0.005, "linear", 10),
)
PYTORCH_FREE: Final = tuple(
    Setting(
        optimizer=optimizer,
        learning_rate=rate,
        schedule=schedule,
        batch_size=1024,
        epochs=epochs,
    )
    for optimizer, rate, schedule, epochs in _PYTORCH_RATES
)
