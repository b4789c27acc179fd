"""What cannot be private or exact is refused by name, with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import dpads
from dpads.errors import ConfigError

ROWS = 20
SCHEMA = dpads.FeatureSchema(
    task="ctr",
    label="y",
    numeric=["n"],
    categorical=["a", "b"],
    bags=[dpads.Bag("t", "sum"), dpads.Bag("v", "sum", "w")],
    buckets=ROWS,
)


class User(nn.Module):
    """An embedding, a linear layer, and a forward that a test gives."""

    def __init__(self, forward: Callable[[Any, Any], Any], **layers: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ROWS, 4)
        self.linear = nn.Linear(4, 1)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.call = forward

    def forward(self, columns: Any) -> Any:
        return self.call(self, columns)


def plain(self: Any, columns: Any) -> torch.Tensor:
    logits: torch.Tensor = self.linear(self.embedding(columns["a"]))
    return logits


def normed(self: Any, columns: Any) -> torch.Tensor:
    logits: torch.Tensor = self.linear(self.norm(self.embedding(columns["a"])))
    return logits


def refusal(module: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        dpads.models.from_torch(module, options.pop("schema", SCHEMA), **options)
    return str(refused.value)


def says(text: str, *parts: str) -> None:
    for part in parts:
        assert part in text, text


def test_the_plain_module_is_accepted() -> None:
    dpads.models.from_torch(User(plain), SCHEMA)


def test_refuses_what_is_no_module() -> None:
    says(refusal(lambda columns: columns), "torch.nn.Module", "function")


def test_refuses_batch_norm_in_training_and_in_evaluation() -> None:
    for module in (
        User(normed, norm=nn.BatchNorm1d(4)),
        User(normed, norm=nn.BatchNorm1d(4)).eval(),
    ):
        says(refusal(module), '"norm"', "BatchNorm", "GroupNorm", "ModuleValidator.fix")


@pytest.mark.parametrize(
    ("layer", "remedy"),
    [
        (nn.InstanceNorm1d(4, affine=True, track_running_stats=True), "track_running_stats=False"),
        (nn.MultiheadAttention(4, 2), "DPMultiheadAttention"),
        (nn.LSTM(4, 4), "DPLSTM"),
        (nn.GRU(4, 4), "DPGRU"),
        (nn.SyncBatchNorm(4), "GroupNorm"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_refuses_what_opacus_refuses_with_its_remedy(layer: nn.Module, remedy: str) -> None:
    says(refusal(User(plain, layer=layer)), '"layer"', type(layer).__name__, remedy)


def test_opacus_remedy_for_batch_norm_is_accepted() -> None:
    from opacus.validators import ModuleValidator

    module = User(normed, norm=nn.BatchNorm1d(64), embedding=nn.Embedding(ROWS, 64))
    module.linear = nn.Linear(64, 1)
    module = ModuleValidator.fix(module)
    assert isinstance(module.norm, nn.GroupNorm)
    dpads.models.from_torch(module, SCHEMA)


def test_refuses_statistics_of_the_batch() -> None:
    def forward(self: Any, columns: Any) -> Any:
        rows = self.embedding(columns["a"])
        return self.linear(rows - rows.mean(dim=0))

    says(refusal(User(forward)), "mixes the examples of a batch")


def test_refuses_a_softmax_over_the_batch() -> None:
    says(
        refusal(User(lambda self, columns: plain(self, columns).log_softmax(dim=0) + 1.0)),
        "mixes the examples of a batch",
    )


def test_refuses_in_batch_negatives() -> None:
    def scores(self: Any, columns: Any) -> Any:
        return self.embedding(columns["a"]) @ self.other(columns["b"]).T + self.linear.bias

    def loss(self: Any, columns: Any) -> Any:
        table = scores(self, columns)
        return table.diagonal() - table.logsumexp(dim=1)

    says(
        refusal(User(scores, other=nn.Embedding(ROWS, 4))),
        "in-batch negatives",
        "one logit an example",
    )
    says(
        refusal(User(loss, other=nn.Embedding(ROWS, 4))), "mixes the examples", "in-batch negatives"
    )


def test_refuses_counts_of_ids_in_the_batch() -> None:
    def forward(self: Any, columns: Any) -> Any:
        same = (columns["a"][:, None] == columns["a"][None, :]).sum(dim=1, keepdim=True)
        return plain(self, columns) / same

    says(refusal(User(forward)), "mixes the examples of a batch")


@pytest.mark.parametrize(
    ("forward", "got"),
    [
        (lambda self, c: self.embedding(c["a"]), "[61, 4]"),
        (lambda self, c: plain(self, c).sum(), "[]"),
        (lambda self, c: plain(self, c)[:, :, None], "[61, 1, 1]"),
        (lambda self, c: (plain(self, c), 0), "tuple"),
        (lambda self, c: self.embedding(c["a"]).argmax(dim=1), "int64"),
    ],
)
def test_refuses_an_output_of_the_wrong_shape(forward: Any, got: str) -> None:
    says(refusal(User(forward)), "one logit an example", got)


@pytest.mark.parametrize(
    "last", [torch.sigmoid, torch.exp, functional.softplus, functional.logsigmoid]
)
def test_refuses_predictions_where_logits_are_expected(last: Any) -> None:
    says(
        refusal(User(lambda self, c: last(plain(self, c)).squeeze(1))),
        "forward ends in",
        "the logit",
        "Leave the last step out",
    )


def test_refuses_a_module_without_embeddings() -> None:
    module = nn.Linear(1, 1)
    says(refusal(module), "trainable nn.Embedding", "it has none")
    frozen = User(plain)
    frozen.embedding.requires_grad_(False)
    says(refusal(frozen), "trainable nn.Embedding", "it has none")


def test_refuses_a_linear_layer_used_twice() -> None:
    def forward(self: Any, columns: Any) -> Any:
        return plain(self, columns) + self.linear(self.embedding(columns["b"]))

    schema = dpads.FeatureSchema(
        task="ctr", label="y", categorical=["a", "b"], tables={"both": ["a", "b"]}, buckets=ROWS
    )
    says(refusal(User(forward), schema=schema), '"linear"', "2 times", "a layer of its own")


def test_refuses_the_weight_of_an_embedding_in_another_place() -> None:
    uses = {
        "linear": lambda self, c: functional.linear(
            self.embedding(c["a"]), self.embedding.weight
        ).sum(1),
        "embedding": lambda self, c: (
            plain(self, c) + functional.embedding(c["a"], self.embedding.weight).sum(1, True)
        ),
        "penalty": lambda self, c: plain(self, c) + 0.1 * self.embedding.weight.square().sum(),
    }
    for forward in uses.values():
        says(
            refusal(User(forward)),
            'weight of embedding "embedding"',
            "F.linear(x, embedding.weight)",
            "Call the embedding",
        )


def test_refuses_a_tied_output_layer() -> None:
    module = User(lambda self, c: self.out(self.embedding(c["a"])).sum(1), out=nn.Linear(4, ROWS))
    module.out.weight = module.embedding.weight
    says(refusal(module), 'weight of embedding "embedding"')


def test_refuses_values_of_a_weight_that_are_read_past_autograd() -> None:
    def forward(self: Any, columns: Any) -> Any:
        return plain(self, columns) * (1.0 + self.embedding.weight.detach().abs().mean())

    says(refusal(User(forward)), "not those of autograd on the module itself")


def test_refuses_a_regulariser_inside_forward() -> None:
    def forward(self: Any, columns: Any) -> Any:
        return plain(self, columns) + 0.1 * self.linear.weight.square().sum()

    says(refusal(User(forward)), '"linear.weight"', "a parameter of its own")


def test_refuses_an_unused_parameter() -> None:
    says(
        refusal(User(plain, spare=nn.Linear(4, 1))), '"spare.weight"', "never used", "requires_grad"
    )


def test_refuses_an_unused_embedding() -> None:
    says(
        refusal(User(plain, spare=nn.Embedding(ROWS, 4))),
        '"spare"',
        "never called",
        "requires_grad",
    )


@pytest.mark.parametrize(
    ("layer", "option"),
    [
        (nn.Embedding(ROWS, 4, max_norm=1.0), "max_norm"),
        (nn.Embedding(ROWS, 4, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (nn.EmbeddingBag(ROWS, 4, mode="max"), 'mode="max"'),
    ],
)
def test_refuses_options_of_an_embedding(layer: nn.Module, option: str) -> None:
    says(refusal(User(plain, other=layer)), '"other"', option)


@pytest.mark.parametrize(
    "computed",
    [
        lambda ids: (ids + 1) % ROWS,
        lambda ids: ids // 2,
        lambda ids: ids.flip(0),
        lambda ids: torch.where(ids == 3, 4, ids),
        lambda ids: ids.roll(1),
    ],
)
def test_refuses_computed_ids(computed: Any) -> None:
    def forward(self: Any, columns: Any) -> Any:
        return self.linear(self.embedding(computed(columns["a"])))

    says(refusal(User(forward)), '"embedding"', "ids that forward computes", "upstream")


def test_refuses_ids_that_lost_digits_in_float32() -> None:
    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["a"], buckets=2**25)
    module = User(plain)
    module.embedding = nn.Embedding(2**25, 1)
    module.linear = nn.Linear(1, 1)
    says(
        refusal(module, schema=schema, inputs=lambda c: {"a": c["a"].float().long()}),
        '"embedding"',
        "float32 for ids beyond 2^24",
    )


def test_refuses_ids_of_positions() -> None:
    def forward(self: Any, columns: Any) -> Any:
        rows = self.embedding(columns["a"])[:, None] + self.positions(torch.arange(3))
        return self.linear(rows.sum(1))

    says(refusal(User(forward, positions=nn.Embedding(3, 4))), '"positions"', "[3]", "nn.Parameter")


def test_refuses_a_ragged_bag_that_is_not_pooled() -> None:
    def forward(self: Any, columns: Any) -> Any:
        return self.linear(self.embedding(columns["t"].values))

    says(refusal(User(forward)), "ragged bag", "lengths")


def test_refuses_weights_that_forward_computes() -> None:
    def forward(self: Any, columns: Any) -> Any:
        values, offsets, weights = columns["v"]
        return self.linear(self.bag(values, offsets, weights * 2)) + plain(self, columns)

    module = User(forward, bag=nn.EmbeddingBag(ROWS, 4, mode="sum"))
    says(refusal(module), '"bag"', "per_sample_weights", "dpads.Bag")


def test_refuses_fewer_rows_than_ids() -> None:
    module = User(plain)
    module.embedding = nn.Embedding(ROWS - 1, 4)
    says(refusal(module), '"embedding" has 19 rows', '"a"', "buckets")


def test_refuses_columns_that_share_an_embedding_but_no_table() -> None:
    def forward(self: Any, columns: Any) -> Any:
        return self.linear(self.embedding(columns["a"]) * self.embedding(columns["b"]))

    says(refusal(User(forward)), '"a" and "b"', "tables = {")


def test_refuses_a_row_of_padding_that_is_not_zero() -> None:
    module = User(plain)
    module.embedding = nn.Embedding(ROWS, 4, padding_idx=3)
    with torch.no_grad():
        module.embedding.weight[3] = 1
    says(refusal(module), "row 3", "padding_idx", "module.embedding.weight[3] = 0")


def test_refuses_padding_that_is_not_the_embeddings() -> None:
    module = User(lambda self, c: self.linear(self.embedding(c["t"]).sum(1)))
    module.embedding = nn.Embedding(ROWS, 4, padding_idx=5)
    says(refusal(module, lengths={"t": 3}), "padding_idx 5", "padding=5")
    dpads.models.from_torch(module, SCHEMA, lengths={"t": 3}, padding=5)


def test_refuses_ties_that_disagree_on_padding() -> None:
    module = User(plain, other=nn.Embedding(ROWS, 4, padding_idx=0))
    module.other.weight = module.embedding.weight
    says(refusal(module), '"embedding" and "other"', "padding_idx")


def test_refuses_dropout_unless_it_is_off() -> None:
    def forward(self: Any, columns: Any) -> Any:
        return self.linear(self.dropout(self.embedding(columns["a"])))

    says(
        refusal(User(forward, dropout=nn.Dropout(0.1))),
        '"dropout"',
        "0.1",
        "module.eval()",
        "p = 0",
    )
    dpads.models.from_torch(User(forward, dropout=nn.Dropout(0.0)), SCHEMA)
    dpads.models.from_torch(User(forward, dropout=nn.Dropout(0.1)).eval(), SCHEMA)


def test_refuses_random_numbers_in_forward_and_leaves_the_generator_alone() -> None:
    module = User(lambda self, c: functional.dropout(plain(self, c), 0.1))
    before = torch.random.get_rng_state()
    text = refusal(module)
    says(text, "random numbers", "module.eval()")
    assert torch.equal(before, torch.random.get_rng_state())


def test_refuses_a_forward_that_writes_to_a_buffer() -> None:
    def forward(self: Any, columns: Any) -> Any:
        logits = plain(self, columns)
        self.seen += logits.detach().mean()
        return logits

    module = User(forward)
    module.register_buffer("seen", torch.zeros(()))
    says(refusal(module), '"seen"', "carries what it saw")
    assert float(module.seen) == 0.0


def test_refuses_an_embedding_with_a_forward_of_its_own() -> None:
    class Scaled(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return super().forward(input) * 2

    module = User(plain)
    module.embedding = Scaled(ROWS, 4)
    says(refusal(module), '"embedding" is a Scaled', "nn.Embedding itself")


def test_refuses_hooks_that_change_an_embedding() -> None:
    module = User(plain)
    module.embedding.register_forward_hook(lambda _, args, output: output * 2)
    says(refusal(module), "not those of autograd on the module itself", "hooks")


def test_refuses_other_precisions() -> None:
    says(refusal(User(plain).double()), "float32 on the CPU", "float64", "module.float().cpu()")


def test_refuses_another_way_in_another_batch() -> None:
    def forward(self: Any, columns: Any) -> Any:
        logits = plain(self, columns)
        return logits + self.other(columns["b"]).sum(1, True) if len(logits) > 50 else logits

    says(refusal(User(forward, other=nn.Embedding(ROWS, 4))), "another number of times")


def test_names_what_forward_is_called_on_where_it_fails() -> None:
    says(refusal(User(lambda self, c: c["missing"])), "KeyError", "inputs=", "RaggedBag")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"lengths": {"tt": 3}}, 'Did you mean "t"'),
        ({"lengths": {"t": 0}}, "positive number"),
        ({"lengths": {"t": 3}, "padding": ROWS}, "below the buckets"),
        ({"padding": -1}, "an id from 0"),
        ({"inputs": "columns"}, "a function"),
        ({"schema": {}}, "FeatureSchema"),
    ],
)
def test_refuses_wrong_arguments(options: Any, part: str) -> None:
    says(refusal(User(plain), **options), part)


def test_refuses_a_forward_that_needs_a_batch() -> None:
    says(
        refusal(User(lambda self, c: plain(self, c).squeeze().mul(2.0)[: len(c["a"])])),
        "one example by itself",
    )


def test_refuses_logits_that_are_not_finite_unless_the_schema_says_what_numbers_there_are() -> None:
    module = User(lambda self, c: plain(self, c) + (c["n"][:, None] + 0.5).log())
    says(refusal(module), "not finite", "clip=(0, 1e9)")
    numeric = [dpads.Numeric("n", clip=(0, 1e9))]
    schema = dpads.FeatureSchema(
        task="ctr", label="y", numeric=numeric, categorical=["a"], buckets=ROWS
    )
    dpads.models.from_torch(module, schema)


def test_refuses_parameters_without_a_shape() -> None:
    says(refusal(User(plain, lazy=nn.LazyLinear(1))), '"lazy.weight"', "no shape yet")
