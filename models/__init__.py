"""Models: a frozen description plus a tower over looked-up features.

A description is plain data; `description.init(schema, seed=0)` makes a `Model` with its tables and tower.
"""

if __name__ != "dpads.models":
    raise ImportError("import dpads.models, not models")

from dpads.models.base import Description, Model, describe
from dpads.models.dcn import Dcn
from dpads.models.deepfm import DeepFm
from dpads.models.dlrm import Dlrm
from dpads.models.fm import Fm
from dpads.models.jax_function import JaxFunction, from_jax
from dpads.models.layout import Layout
from dpads.models.logistic import Logistic
from dpads.models.mlp import Mlp
from dpads.models.user_module import TorchModule, from_torch
from dpads.models.users_model import UsersModel

__all__ = [
    "Dcn",
    "DeepFm",
    "Description",
    "Dlrm",
    "Fm",
    "JaxFunction",
    "Layout",
    "Logistic",
    "Mlp",
    "Model",
    "TorchModule",
    "UsersModel",
    "describe",
    "from_jax",
    "from_torch",
]
