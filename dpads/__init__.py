"""Click, conversion and conversion-count models under differential privacy.

Every public name is here; each loads on first use, so that `import dpads` stays light (torch, jax,
opacus, numba and polars cost seconds and load when something needs them).

Examples:
    >>> import dpads
    >>> schema = dpads.FeatureSchema(task="ctr", label="click", categorical=["C1"], buckets=1000)
    >>> schema.table_rows
    {'C1': 1000}
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dpads.accounting as accounting
    import dpads.errors as errors
    import dpads.models as models
    import dpads.synthetic as synthetic
    from dpads.accounting.ledger import Ledger
    from dpads.accounting.statement import GuaranteeStatement
    from dpads.batch import SparseBatch
    from dpads.clipping import ClippedGradients, clipped_gradients
    from dpads.errors import (
        BudgetError,
        CheckpointError,
        ConfigError,
        DataError,
        DpadsError,
        InputError,
        MissingDependencyError,
        RunError,
        SchemaError,
        StoreError,
        VerificationError,
    )
    from dpads.estimators import DPClassifier, DPCountRegressor
    from dpads.optimizers import Adam, AdamBC, Sgd
    from dpads.plan import DpSgdConfig, Plan, PrivacySpec, calibrate
    from dpads.plan_rows import plan_table
    from dpads.preparing import prepare
    from dpads.private_selection import tune
    from dpads.private_sums_config import PriorConfig, RecalibrationConfig, SelectionConfig
    from dpads.recipes import recipe
    from dpads.run import Run
    from dpads.run_training import train
    from dpads.schema import Bag, FeatureSchema, Numeric
    from dpads.selecting import select
    from dpads.store import ExampleStore
    from dpads.sweeping import Sweep, sweep
    from dpads.training import Performance
    from dpads.verifying import verify

__version__ = "0.1.0"

__all__ = [
    "Adam",
    "AdamBC",
    "Bag",
    "BudgetError",
    "CheckpointError",
    "ClippedGradients",
    "ConfigError",
    "DPClassifier",
    "DPCountRegressor",
    "DataError",
    "DpSgdConfig",
    "DpadsError",
    "ExampleStore",
    "FeatureSchema",
    "GuaranteeStatement",
    "InputError",
    "Ledger",
    "MissingDependencyError",
    "Numeric",
    "Performance",
    "Plan",
    "PriorConfig",
    "PrivacySpec",
    "RecalibrationConfig",
    "Run",
    "RunError",
    "SchemaError",
    "SelectionConfig",
    "Sgd",
    "SparseBatch",
    "StoreError",
    "Sweep",
    "VerificationError",
    "__version__",
    "accounting",
    "calibrate",
    "clipped_gradients",
    "errors",
    "models",
    "plan_table",
    "prepare",
    "recipe",
    "select",
    "sweep",
    "synthetic",
    "train",
    "tune",
    "verify",
]

_SUBMODULES = frozenset({"accounting", "errors", "models", "synthetic"})

_MODULE_OF = {
    "Adam": "optimizers",
    "AdamBC": "optimizers",
    "Bag": "schema",
    "BudgetError": "errors",
    "CheckpointError": "errors",
    "ClippedGradients": "clipping",
    "ConfigError": "errors",
    "DPClassifier": "estimators",
    "DPCountRegressor": "estimators",
    "DataError": "errors",
    "DpSgdConfig": "plan",
    "DpadsError": "errors",
    "ExampleStore": "store",
    "FeatureSchema": "schema",
    "GuaranteeStatement": "accounting.statement",
    "InputError": "errors",
    "Ledger": "accounting.ledger",
    "MissingDependencyError": "errors",
    "Numeric": "schema",
    "Performance": "training",
    "Plan": "plan",
    "PriorConfig": "private_sums_config",
    "PrivacySpec": "plan",
    "RecalibrationConfig": "private_sums_config",
    "Run": "run",
    "RunError": "errors",
    "SchemaError": "errors",
    "SelectionConfig": "private_sums_config",
    "Sgd": "optimizers",
    "SparseBatch": "batch",
    "StoreError": "errors",
    "Sweep": "sweeping",
    "VerificationError": "errors",
    "calibrate": "plan",
    "clipped_gradients": "clipping",
    "plan_table": "plan_rows",
    "prepare": "preparing",
    "recipe": "recipes",
    "select": "selecting",
    "sweep": "sweeping",
    "train": "run_training",
    "tune": "private_selection",
    "verify": "verifying",
}


def __getattr__(name: str) -> Any:
    """Loads a public name on first use (PEP 562)."""
    if name in _SUBMODULES:
        return importlib.import_module(f"dpads.{name}")
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"dpads.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'dpads' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
