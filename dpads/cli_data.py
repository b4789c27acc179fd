"""Commands that come before training: prepare, plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from dpads.cli_screen import console, print_json, print_table

DEFAULT_BATCH_SIZES = (256, 1024, 4096, 16_384)
DEFAULT_EPOCHS = (1.0, 5.0, 20.0)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def prepare(
    logs: Annotated[
        list[str],
        typer.Argument(
            help="Logs: files or quoted globs, .parquet .arrow .csv .tsv, plain or .gz/.zst."
        ),
    ],
    schema: Annotated[
        Path, typer.Option(help="TOML file with a schema table; a configuration will do.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the store; it must not exist.")],
    json_: JsonOption = False,
) -> None:
    """Read logs into an example store: hashed, grouped by privacy unit, ready to train from."""
    from dpads.schema import FeatureSchema
    from dpads.store import prepare as prepare_store

    with console(stderr=True).status("preparing"):
        store = prepare_store(logs, FeatureSchema.from_toml(schema), out=out)
    if json_:
        print_json({"store": str(out), "examples": store.num_examples})
    else:
        typer.echo(f"{out}: {store.num_examples:,} examples")


def plan(
    examples: Annotated[
        int,
        typer.Option("--examples", help="Public number of privacy units (privacy.dataset_size)."),
    ],
    epsilon: Annotated[float, typer.Option("--epsilon", help="Privacy budget, in total.")],
    delta: Annotated[
        float | None,
        typer.Option(help="Default: min(1e-8, 0.1 / examples), rounded down to a power of ten."),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(help="Expected batch size; may be given several times."),
    ] = None,
    epochs: Annotated[
        list[float] | None, typer.Option(help="Passes over the data; may be given several times.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Print what a budget costs, before any data is touched: noise, iterations, batch sizes."""
    from dpads.plan import PrivacySpec, plan_table, resolve

    sizes = batch_size or [size for size in DEFAULT_BATCH_SIZES if size <= examples] or [examples]
    with console(stderr=True).status("calibrating"):
        rows = plan_table(
            examples,
            epsilon=epsilon,
            delta=delta,
            batch_sizes=sizes,
            epochs=epochs or DEFAULT_EPOCHS,
        )
        spec = PrivacySpec(epsilon=epsilon, delta=delta, dataset_size=examples)
        used = resolve(spec, expected_batch_size=sizes[0], epochs=1.0).delta
    if json_:
        print_json(
            {
                "examples": examples,
                "epsilon": epsilon,
                "delta": used,
                "l2_clip_norm": 1.0,
                "rows": [dataclasses.asdict(row) for row in rows],
            }
        )
        return
    print_table(
        f"epsilon {epsilon:g}, delta {used:g}, {examples:,} units, add-or-remove-one",
        [
            "batch size",
            "epochs",
            "iterations",
            "sampling prob",
            "noise multiplier",
            "noise / coordinate",
        ],
        [
            [
                f"{row.expected_batch_size:,}",
                f"{row.epochs:g}",
                f"{row.iterations:,}",
                f"{row.sampling_prob:.3g}",
                f"{row.noise_multiplier:.4f}",
                f"{row.noise_per_coordinate:.3e}",
            ]
            for row in rows
        ],
        caption="noise / coordinate: stddev on the averaged gradient, at l2_clip_norm 1",
    )
