"""Which part of a torch module owns each trainable parameter: what computes its per-example gradients.

A parameter has exactly one owner:

    linear    a linear layer that is called once: its factors, inputs and output gradients, are enough
    sampled   a layer that is called once and has one of Opacus' grad samplers: LayerNorm, Conv1d, ...
    whole     the module as a whole, one example at a time: parameters that forward reads in other ways
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from dpads.errors import ConfigError

Sampler = Callable[[nn.Module, list[torch.Tensor], torch.Tensor], dict[nn.Parameter, torch.Tensor]]


@dataclass(frozen=True)
class Linear:
    """A linear layer, each of whose outputs depends on one of its inputs' vectors.

    Attributes:
        layer: name of the layer.
        weight: name of its weight.
        bias: name of its bias, or None where it has none.
        positions: vectors that an example passes through it.
        width_in: length of such a vector.
        width_out: length of what comes of it.
    """

    layer: str
    weight: str
    bias: str | None
    positions: int
    width_in: int
    width_out: int


@dataclass(frozen=True)
class Owners:
    """Every trainable parameter, once.

    Attributes:
        linears: the linear layers.
        sampled: {layer: {name of its parameter within it: name}} of the layers with a grad sampler.
        whole: names of the parameters of the module as a whole.
    """

    linears: tuple[Linear, ...]
    sampled: Mapping[str, Mapping[str, str]]
    whole: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """What a layer read and wrote in one forward pass.

    Attributes:
        args: its arguments.
        plain_arguments: whether none was given by name.
        output: what it returned.
        versions: how often each tensor had been written to.
    """

    args: tuple[Any, ...]
    plain_arguments: bool
    output: Any
    versions: tuple[int, ...]

    def is_plain(self, rows: int) -> bool:
        """Whether it read one float32 tensor and wrote one, the examples first."""
        return (
            self.plain_arguments
            and len(self.args) == 1
            and all(
                isinstance(value, torch.Tensor)
                and value.dtype == torch.float32
                and value.dim() >= 2
                and value.shape[0] == rows
                for value in (*self.args, self.output)
            )
        )

    @property
    def is_changed(self) -> bool:
        """Whether a tensor was written to after the call."""
        return _versions((*self.args, self.output)) != self.versions


class Recorder:
    """Notes what layers read and write, where the calling thread asks for it.

    Args:
        layers: the layers by name; they get a hook each.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.copies = False  # for modules that write to what their layers read or return
        self._local = threading.local()
        for name, layer in layers.items():
            layer.register_forward_hook(self._hook(name), with_kwargs=True)

    @contextmanager
    def calls(self) -> Iterator[dict[str, list[Call]]]:
        """{layer: its calls} of the forward passes inside."""
        found: dict[str, list[Call]] = {}
        self._local.calls = found
        try:
            yield found
        finally:
            self._local.calls = None

    def _hook(self, name: str) -> Callable[..., Any]:
        """A function, which copies of a module share; outside of `calls` it does nothing."""

        def note(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
            calls = getattr(self._local, "calls", None)
            if calls is None:
                return None
            if self.copies:
                args = tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args)
            versions = _versions((*args, output))
            calls.setdefault(name, []).append(Call(args, not keywords, output, versions))
            return output.clone() if self.copies and isinstance(output, torch.Tensor) else None

        return note


@cache
def _grad_samplers() -> dict[type[nn.Module], Sampler]:
    """Opacus' samplers of layers that read one tensor with the examples first."""
    from opacus.grad_sample import GradSampleModule

    kinds = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm]
    return {kind: GradSampleModule.GRAD_SAMPLERS[kind] for kind in kinds}


def recordable(module: nn.Module) -> dict[str, nn.Module]:
    """Layers that could own their parameters, by name."""
    found = {}
    for name, layer in module.named_modules():
        own = list(layer.parameters(recurse=False))
        if own and all(value.requires_grad for value in own):
            biased = not isinstance(layer, nn.LayerNorm) or layer.bias is not None
            if _is_linear(layer) or (type(layer) in _grad_samplers() and biased):
                found[name] = layer
    return found


def find_owners(module: nn.Module, recorder: Recorder, rows: torch.Tensor) -> Owners:
    """Runs the module once and gives every trainable parameter its owner.

    Args:
        module: with the hooks of `recorder`.
        recorder: of the module's `recordable` layers; it makes copies from here on where they are needed.
        rows: float32[n, width]; n is no other size that the module knows.

    Raises:
        ConfigError: a parameter or layer is never used, or used in several places, or the output has
            another shape than one logit an example.
    """
    names = _names(module)
    with recorder.calls() as calls, torch.enable_grad():
        logits = module(rows)
    _check_output(logits, len(rows))
    recorder.copies = any(call.is_changed for of_layer in calls.values() for call in of_layer)
    uses = _uses(logits)
    for value, name in names.items():
        if not uses[value]:
            raise ConfigError(
                f'Parameter "{name}" is never used, so that it would only collect noise. Leave it out, or '
                "set its requires_grad to False: it then keeps its value."
            )
    linears, sampled, owned = [], {}, set()
    for name, layer in recordable(module).items():
        of_layer = calls.get(name, [])
        if len(of_layer) > 1:
            raise ConfigError(
                f'Layer "{name}" is used {len(of_layer)} times in a forward pass, so that its gradient '
                "would have several owners. Give every use a layer of its own."
            )
        if not of_layer or not of_layer[0].is_plain(len(rows)):
            continue
        own = {key: names[value] for key, value in layer.named_parameters(recurse=False)}
        call = of_layer[0]
        if _is_linear(layer):
            width_in, width_out = int(call.args[0].shape[-1]), int(call.output.shape[-1])
            positions = call.output[0].numel() // width_out
            linears.append(
                Linear(name, own["weight"], own.get("bias"), positions, width_in, width_out)
            )
        else:
            sampled[name] = own
        for key, value in layer.named_parameters(recurse=False):
            if uses[value] > 1:
                raise ConfigError(
                    f'Parameter "{own[key]}" is used by layer "{name}" and in {uses[value] - 1} more '
                    "places. Give every use a parameter of its own."
                )
        owned |= set(own.values())
    whole = tuple(name for name in names.values() if name not in owned)
    return Owners(tuple(linears), sampled, whole)


def sample(
    layer: nn.Module, read: torch.Tensor, output_grads: torch.Tensor
) -> dict[str, torch.Tensor]:
    """{name within the layer: float32[n, *shape]}, per-example gradients of a layer's parameters."""
    values = _grad_samplers()[type(layer)](layer, [read], output_grads)
    return {name: values[own] for name, own in layer.named_parameters(recurse=False)}


def _is_linear(layer: nn.Module) -> bool:
    """Whether it is a linear layer as torch has it, not one that a recurrent layer calls step by step."""
    from opacus.layers.dp_rnn import RNNLinear

    return (
        isinstance(layer, nn.Linear)
        and not isinstance(layer, RNNLinear)
        and type(layer).forward is nn.Linear.forward
        and "weight" in layer._parameters
    )


def _names(module: nn.Module) -> dict[nn.Parameter, str]:
    """Names of the trainable parameters; refuses one that has two."""
    names: dict[nn.Parameter, str] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        if not value.requires_grad:
            continue
        if value in names:
            owner = names[value].rpartition(".")[0]
            if f"{name}.".startswith(f"{owner}." if owner else ""):
                continue  # a module that lists a parameter of one inside it, as Opacus' recurrent layers do
            raise ConfigError(
                f'Parameters "{names[value]}" and "{name}" are one tensor, so that its gradient would have '
                "two owners. Give each layer its own."
            )
        if value.dtype != torch.float32 or value.device.type != "cpu":
            raise ConfigError(
                f'Parameter "{name}": expected float32 on the CPU, got {value.dtype} on {value.device}. '
                "Convert the module with module.float().cpu()."
            )
        names[value] = name
    return names


def _check_output(logits: Any, rows: int) -> None:
    """Refuses anything but one logit an example."""
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(
            f"Expected the module to return a tensor of logits, got {type(logits).__name__}."
        )
    if tuple(logits.shape) != (rows,) or logits.dtype != torch.float32:
        got = f"{logits.dtype} {list(logits.shape)} for {rows} examples".removeprefix("torch.")
        raise ConfigError(
            f"Expected the module to return one float32 logit an example, got {got}. Return "
            "logits of shape [examples], before any sigmoid."
        )


def _uses(logits: torch.Tensor) -> Counter[Any]:
    """How many operations read each leaf of the graph."""
    counts: Counter[Any] = Counter()
    stack, seen = [logits.grad_fn], {logits.grad_fn}
    while stack:
        node = stack.pop()
        for following, _ in node.next_functions if node is not None else ():
            leaf = getattr(following, "variable", None)
            if leaf is not None:
                counts[leaf] += 1
            elif following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return counts


def _versions(values: tuple[Any, ...]) -> tuple[int, ...]:
    """How often each tensor has been written to."""
    return tuple(value._version for value in values if isinstance(value, torch.Tensor))
