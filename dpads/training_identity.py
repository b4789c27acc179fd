"""The identity of a run: everything that changes its numbers. Run keys are bound to it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dpads
from dpads.kernels.workers import available_cores
from dpads.models.base import Description
from dpads.plan import Plan
from dpads.store import ExampleStore
from dpads.training_settings import Performance, TrainingSettings

SUMS = 6  # raised whenever the order or precision of sums changes
# What tells BLAS and numba which kernels to run.
ENVIRONMENT = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
)
# Likewise XLA.
XLA_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def run_identity(
    store: ExampleStore,
    description: Description,
    plan: Plan,
    settings: TrainingSettings,
    performance: Performance,
    start: str | None = None,
) -> dict[str, Any]:
    """Everything that changes the numbers of a run: run keys are bound to it.

    Args:
        store: the training rows.
        description: the model.
        plan: the mechanism.
        settings: of the training.
        performance: threads and memory.
        start: digest of the parameters that training starts from; None where init_seed makes them.
    """
    import torch

    return {
        "plan": json.loads(plan.to_json()),
        "settings": settings.to_dict(),
        "model": description.to_dict(),
        "schema": store.schema.fingerprint(),
        "store": store.fingerprint,
        "start": start,
        "threads": performance.threads or available_cores(),
        "physical_batch_size": performance.physical_batch_size,
        "processor": processor(),
        "jax": jax_facts() if settings.backend == "jax" else None,
        "torch": hashlib.sha256(torch.__config__.show().encode()).hexdigest(),
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "sums": SUMS,
        "versions": {
            name: version(name) for name in ("llvmlite", "numba", "numpy", "scipy", "torch")
        }
        | {"dpads": dpads.__version__},
    }


def jax_facts() -> dict[str, Any]:
    """What decides which programs JAX compiles, and so the last bits of sums."""
    from dpads.jax_devices import compiler_facts

    return {
        "versions": {name: version(name) for name in ("jax", "jaxlib", "optax")},
        **compiler_facts(),
        "flags": {name: os.environ.get(name) for name in XLA_ENVIRONMENT},
    }


def processor() -> str:
    """What decides which matrix kernels run, and so the last bits of the tower's sums."""
    facts = Path("/proc/cpuinfo")
    if not facts.is_file():
        return platform.processor() or platform.machine()
    lines = facts.read_text(encoding="utf-8").splitlines()
    kinds = {line for line in lines if line.split("\t")[0] in ("model name", "flags", "Features")}
    return hashlib.sha256("\n".join(sorted(kinds)).encode()).hexdigest()


def differences(saved: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """What changed of a run's identity, in words."""
    words = []
    for name in sorted({*saved, *identity}):
        before, now = saved.get(name), identity.get(name)
        if before == now:
            continue
        if name != "jax" or not isinstance(before, dict) or not isinstance(now, dict):
            words.append(name)
        elif len(before["devices"]) != len(now["devices"]):
            words.append(
                f"the number of JAX's devices ({len(before['devices'])} then, {len(now['devices'])} now)"
            )
        else:
            words += [f"jax {key}" for key in sorted(before) if before[key] != now.get(key)]
    return words


def digest_of(identity: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a run's identity."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
