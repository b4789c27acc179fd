"""What JAX found on this machine, and when its work is done."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import jax

# JAX has no types for these.
_live_arrays: Any = jax.live_arrays
_block_until_ready: Any = jax.block_until_ready
_config: Any = jax.config


@dataclass(frozen=True)
class DeviceKind:
    """Devices of one kind.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        kind: what the maker calls it.
        number: how many there are.
    """

    platform: str
    kind: str
    number: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def found_devices() -> list[DeviceKind]:
    """The devices that training with backend = "jax" uses: all that JAX found."""
    found = Counter((device.platform, device.device_kind) for device in jax.devices())
    return [DeviceKind(platform, kind, number) for (platform, kind), number in found.items()]


def compiler_facts() -> dict[str, Any]:
    """What decides which programs JAX makes of a function, beside versions and the environment."""
    devices = jax.devices()
    return {
        "devices": [
            f"process {device.process_index}: {device.platform} {device.device_kind}"
            for device in devices
        ],
        "platform": devices[0].client.platform_version,
        "matmul_precision": _config.jax_default_matmul_precision,
    }


def wait() -> None:
    """Waits until devices have done all that they were asked for: calls return before."""
    _block_until_ready(_live_arrays())
