"""Every error that dpads raises on purpose.

    DpadsError
    ├── InputError (ValueError)      wrong use or bad input: the caller can mend it      exit code 2
    │   ├── ConfigError              a key or value of a configuration
    │   ├── SchemaError              a feature schema that contradicts itself
    │   ├── DataError                a log whose columns or values are not what the schema says
    │   ├── StoreError               an example store that is damaged, or of another schema
    │   └── BudgetError              a privacy budget that the request cannot be met with
    └── RunError (RuntimeError)      the request was fine, carrying it out failed       exit code 1
        ├── CheckpointError          a checkpoint that cannot be resumed
        ├── VerificationError        a claim that does not hold when recomputed
        ├── MissingDependencyError   an optional package is needed and absent
        └── ProcessLostError         another process of the run has gone

Messages say what was expected, what came and what to do; they never show values of private rows.
"""

from __future__ import annotations


class DpadsError(Exception):
    """The root of everything that dpads raises on purpose."""


class InputError(DpadsError, ValueError):
    """Wrong use or bad input."""


class ConfigError(InputError):
    """A configuration key or value is wrong."""


class SchemaError(InputError):
    """A feature schema contradicts itself."""


class DataError(InputError):
    """A log does not hold what the schema says."""


class StoreError(InputError):
    """An example store is damaged, or was written by another schema."""


class BudgetError(InputError):
    """A privacy budget cannot be met."""


class RunError(DpadsError, RuntimeError):
    """Carrying out a well-formed request failed."""


class CheckpointError(RunError):
    """A checkpoint cannot be resumed."""


class ProcessLostError(RunError):
    """Another process of the same run has gone."""


class VerificationError(RunError):
    """A claim does not hold when it is recomputed."""


class MissingDependencyError(RunError):
    """An optional package is needed and absent."""
