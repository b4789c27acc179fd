"""Torch modules as users write them, and some that cannot be private; they read 5 vectors and a number."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

WIDTH = 16  # what schema_of gives a model with vectors of width 3: 5 * 3 columns, 1 number


class Squeezed(nn.Sequential):
    """A sequence of layers down to one output."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = super().forward(features).squeeze(1)
        return logits


class Attention(nn.Module):
    """Fields attend to each other: linear layers on [n, fields, dim], and parameters outside of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Linear(3, 4),
            nn.Linear(3, 4),
            nn.Linear(3, 3, bias=False),
        )
        self.norm = nn.LayerNorm(3)
        self.scale = nn.Parameter(torch.ones(2, 3))
        self.bias = nn.Parameter(torch.zeros(()))
        self.last = nn.Linear(16, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        fields, number = features[:, :15].reshape(-1, 5, 3), features[:, 15:]
        scores = self.query(fields) @ self.key(fields).transpose(1, 2)
        fields = self.norm(fields + scores.softmax(dim=2) @ self.value(fields))
        fields = torch.cat([fields[:, :2] * self.scale, fields[:, 2:]], dim=1)
        logits: torch.Tensor = self.last(torch.cat([fields.flatten(1), number], dim=1)).squeeze(1)
        return logits + self.bias


class Heads(nn.Module):
    """torch's attention, whose parameters no layer's forward reads, and convolutions over the fields."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(3, 1, batch_first=True)
        self.convolution = nn.Conv1d(5, 4, 2, padding=1)
        self.groups = nn.GroupNorm(2, 4)
        self.last = nn.Linear(16, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        fields = features[:, :15].reshape(-1, 5, 3)
        fields, _ = self.heads(fields, fields, fields)
        fields = self.groups(self.convolution(fields)).tanh()
        logits: torch.Tensor = self.last(fields.flatten(1)).squeeze(1)
        return logits


class OneByOne(nn.Module):
    """Python looks at a value, which torch cannot map over rows."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(WIDTH, 2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if features[0, 0].item() == 4711.0:
            features = 1.0 * features
        return (features @ self.kernel).square().sum(dim=1).sqrt() + features @ self.kernel[:, 0]


def layers() -> nn.Module:
    """Layers that write to what others return, of all kinds that have an owner."""
    return Squeezed(
        nn.Linear(WIDTH, 8),
        nn.ReLU(inplace=True),
        nn.LayerNorm(8),
        nn.Linear(8, 6, bias=False),
        nn.PReLU(),
        nn.RMSNorm(6),
        nn.LayerNorm(6, bias=False),
        nn.Linear(6, 1),
    )


GOOD = {"layers": layers, "attention": Attention, "heads": Heads, "one by one": OneByOne}


class Pair(nn.Module):
    """Two linear layers; subclasses do with them what they should not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.first(features).tanh()).squeeze(1)
        return logits


class UsedTwice(Pair):
    """Refused: a layer has two inputs."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(self.first(features).tanh())


class WeightBorrowed(Pair):
    """Refused: a weight has a use outside of its layer."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(functional.linear(features, self.first.weight))


class Penalised(Pair):
    """Refused: a regulariser inside forward."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features) + 0.01 * self.first.weight.square().sum()


class NeverUsed(Pair):
    """Refused: a parameter without a use."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(features).squeeze(1)
        return logits


class Tied(Pair):
    """Refused: one tensor, two names."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.middle.weight = self.first.weight

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(self.middle(features))


class Centred(Pair):
    """Refused: the batch's mean."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features - features.mean(dim=0))


class Negatives(Pair):
    """Refused: in-batch negatives."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.first(features)
        logits: torch.Tensor = self.last(features).squeeze(1)
        return logits + (hidden @ hidden.T).softmax(dim=1).diagonal()


class Normalised(Pair):
    """Refused: BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(features))


class Dropped(Pair):
    """Refused: random numbers."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(functional.dropout(features))


class Column(Pair):
    """Refused: the shape of the output."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features).unsqueeze(1)


REFUSED = {
    UsedTwice: 'Layer "first" is used 2 times',
    WeightBorrowed: 'Parameter "first.weight" is used by layer "first" and in 1 more',
    Penalised: 'Parameter "first.weight" is used by layer "first" and in 1 more',
    NeverUsed: 'Parameter "first.(weight|bias)" is never used',
    Tied: '"first.weight" and "middle.weight" are one tensor',
    Centred: "mixes the examples",
    Negatives: "mixes the examples",
    Normalised: 'Layer "norm" is BatchNorm1d',
    Dropped: "random numbers",
    Column: r"one float32 logit an example, got float32 \[7, 1\] for 7",
}
