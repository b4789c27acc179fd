"""What a user's torch module must not have: refused by name, before anything is tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from dpads.errors import ConfigError
from dpads.models.torch_conversion import Embedding, embeddings_of

VALIDATED = "opacus.validators.ModuleValidator.fix(module) returns a copy with {} in its place."
REMEDIES = {
    "BatchNorm": "Use nn.LayerNorm, or nn.GroupNorm: " + VALIDATED.format("that"),
    "SyncBatchNorm": "Use nn.LayerNorm, or nn.GroupNorm: " + VALIDATED.format("that"),
    "InstanceNorm": "Make it with track_running_stats=False.",
    "MultiheadAttention": VALIDATED.format("opacus.layers.DPMultiheadAttention"),
    "LSTM": VALIDATED.format("opacus.layers.DPLSTM"),
    "GRU": VALIDATED.format("opacus.layers.DPGRU"),
    "RNN": "opacus.layers.DPRNN is one that can.",
}


def check_named(module: Any) -> dict[str, Embedding]:
    """Refuses layers that cannot be private or exact.

    Args:
        module: the user's.

    Returns:
        The trainable embeddings by name.

    Raises:
        ConfigError: naming the layer and the remedy.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"Expected a torch.nn.Module, got {type(module).__name__}. Give the module itself."
        )
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(value):
            raise ConfigError(
                f'"{name}" has no shape yet. Call the module once on a batch before the conversion.'
            )
        if value.device.type != "cpu" or (
            value.is_floating_point() and value.dtype != torch.float32
        ):
            raise ConfigError(
                f'"{name}": expected float32 on the CPU, got {value.dtype} on {value.device}. Convert the '
                "module with module.float().cpu()."
            )
    for name, layer in module.named_modules():
        _check_validated(name, layer)
        if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
            raise ConfigError(
                f'Layer "{name}" draws its dropout (p = {layer.p}) anew in every pass, so that nothing '
                "could be computed again after an interruption. Noise and clipping regularise already: "
                "call module.eval() before the conversion, or set p = 0."
            )
    embeddings = embeddings_of(module)
    if not embeddings:
        raise ConfigError(
            f"{type(module).__name__}: expected a module with trainable nn.Embedding or nn.EmbeddingBag "
            "layers; it has none. They become the tables that dpads trains; a table that is a plain "
            "nn.Parameter is none."
        )
    _check_ties(embeddings)
    for name, layer in embeddings.items():
        _check_embedding(name, layer)
    return embeddings


def _check_validated(name: str, layer: nn.Module) -> None:
    """Refuses what Opacus' ModuleValidator refuses."""
    from opacus.validators import ModuleValidator

    for kind in type(layer).__mro__:
        validate = ModuleValidator.VALIDATORS.get(kind)
        errors = validate(layer) if validate is not None else []
        if errors:
            known = next((k for k in REMEDIES if kind.__name__.startswith(k)), None)
            remedy = REMEDIES[known] if known else "Leave it out."
            reason = str(errors[0]).split(". ")[0].strip()
            raise ConfigError(
                f'Layer "{name}" is a {type(layer).__name__}, which cannot be private: {reason}. {remedy}'
            )


def _check_embedding(name: str, layer: Embedding) -> None:
    """Refuses options of an embedding that no exact clipping knows."""
    refusals = {
        "max_norm": (
            layer.max_norm is not None,
            "it rewrites rows while they are read, outside of what noise protects. Set max_norm=None",
        ),
        "scale_grad_by_freq": (
            layer.scale_grad_by_freq,
            "it divides gradients by the batch's counts of ids. Set scale_grad_by_freq=False",
        ),
        'mode="max"': (
            getattr(layer, "mode", None) == "max",
            'a maximum has no row gradients that tables know. Use mode="sum" or "mean"',
        ),
    }
    for option, (used, reason) in refusals.items():
        if used:
            raise ConfigError(f'Embedding "{name}" has {option}: {reason}.')
    own = nn.EmbeddingBag if isinstance(layer, nn.EmbeddingBag) else nn.Embedding
    if type(layer).forward is not own.forward or "weight" not in layer._parameters:
        raise ConfigError(
            f'Embedding "{name}" is a {type(layer).__name__} with a forward or a weight of its own, which '
            f"cannot be taken apart. Use nn.{own.__name__} itself, and compute outside of it."
        )
    if len(list(layer.parameters(recurse=False))) != 1:
        raise ConfigError(f'Embedding "{name}": expected one parameter, its weight.')
    padding = layer.padding_idx
    if own is nn.Embedding and padding is not None and bool(layer.weight[padding].any()):
        raise ConfigError(
            f'Embedding "{name}": row {padding} is its padding_idx but is not zero; padding reads nothing. '
            f"Set it: with torch.no_grad(): module.{name}.weight[{padding}] = 0."
        )


def _check_ties(embeddings: Mapping[str, Embedding]) -> None:
    """Refuses tied embeddings that disagree on their padding."""
    first: dict[int, tuple[str, int | None]] = {}
    for name, layer in embeddings.items():
        other, padding = first.setdefault(id(layer.weight), (name, layer.padding_idx))
        if padding != layer.padding_idx:
            raise ConfigError(
                f'Embeddings "{other}" and "{name}" tie one weight but have other padding_idx, '
                f"{padding} and {layer.padding_idx}. Give both the same."
            )
