"""Commands that come before training: prepare, plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from dpads.cli_bench import check_costs, plan_costs, print_costs
from dpads.cli_screen import JsonOption, console, print_json, print_table, whole_number
from dpads.errors import ConfigError

DEFAULT_BATCH_SIZES = (256, 1024, 4096, 16_384)
DEFAULT_EPOCHS = (1.0, 5.0, 20.0)


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
    shards: Annotated[
        int,
        typer.Option(
            parser=whole_number,
            metavar="K",
            help="Cut the store into K parts, so that up to K processes can train on it together.",
        ),
    ] = 1,
    json_: JsonOption = False,
) -> None:
    """Read logs into an example store: hashed, grouped by privacy unit, ready to train from."""
    from dpads.preparing import prepare as prepare_store
    from dpads.schema import FeatureSchema

    with console(stderr=True).status("preparing"):
        store = prepare_store(logs, FeatureSchema.from_toml(schema), out=out, shards=shards)
    if json_:
        print_json({"store": str(out), "examples": store.num_examples, "shards": shards})
    else:
        pieces = f" in {shards:,} shards" if shards > 1 else ""
        typer.echo(f"{out}: {store.num_examples:,} examples{pieces}")


def plan(
    examples: Annotated[
        int | None,
        typer.Option(
            "--examples",
            parser=whole_number,
            metavar="N",
            help="Public number of privacy units (privacy.dataset_size).",
        ),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", help="Privacy budget, in total.")
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="Default: min(1e-8, 0.1 / examples), rounded down to a power of ten."),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Expected batch size; may be given several times.",
        ),
    ] = None,
    epochs: Annotated[
        list[float] | None, typer.Option(help="Passes over the data; may be given several times.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG",
            help="A configuration: it fills in what no other option says, and time and memory of its "
            "model are estimated, from a short measurement.",
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Print what a budget costs, before any data is touched: noise, iterations, batch sizes.

    With --config, the exit code is 2 where a line does not fit into this machine's memory: all
    lines are printed first.
    """
    from dpads.config import load_config
    from dpads.plan import PrivacySpec, resolve
    from dpads.plan_rows import plan_table
    from dpads.private_sums_config import wanted_releases

    parsed = None if config is None else load_config(config)
    if parsed is not None:
        examples = parsed.privacy.dataset_size if examples is None else examples
        epsilon = parsed.privacy.epsilon if epsilon is None else epsilon
        delta = parsed.privacy.delta if delta is None else delta
        batch_size = batch_size or [parsed.training.expected_batch_size]
        epochs = epochs or [parsed.training.epochs]
    l2_clip_norm = 1.0 if parsed is None else parsed.l2_clip_norm
    if examples is None:
        raise ConfigError(_missing("--examples", "dataset_size", config))
    if epsilon is None:
        raise ConfigError(_missing("--epsilon", "epsilon", config))
    sizes = batch_size or [size for size in DEFAULT_BATCH_SIZES if size <= examples] or [examples]
    with console(stderr=True).status("calibrating"):
        sampler = "poisson" if parsed is None else parsed.privacy.sampler
        rows = plan_table(
            examples,
            epsilon=epsilon,
            delta=delta,
            batch_sizes=sizes,
            epochs=epochs or DEFAULT_EPOCHS,
            l2_clip_norm=l2_clip_norm,
            sampler=sampler,
            wanted=None
            if parsed is None
            else wanted_releases(
                parsed.schema, parsed.prior, parsed.selection, parsed.recalibration
            ),
        )
        spec = PrivacySpec(epsilon=epsilon, delta=delta, dataset_size=examples)
        used = resolve(spec, expected_batch_size=sizes[0], epochs=1.0).delta
    costs = [] if parsed is None else plan_costs(parsed, examples, rows)
    if json_:
        plain = [dataclasses.asdict(row) for row in rows]
        for values, cost in zip(plain, costs, strict=False):
            values.update(cost.to_dict())
        print_json(
            {
                "examples": examples,
                "epsilon": epsilon,
                "delta": used,
                "l2_clip_norm": l2_clip_norm,
                "rows": plain,
            }
        )
        check_costs(costs)
        return
    print_table(
        f"epsilon {epsilon:g}, delta {used:g}, {examples:,} units, add-or-remove-one",
        [
            "batch size",
            "epochs",
            "iterations",
            "sampling prob",
            "noise multiplier",
            "noise / coord",
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
        caption=f"noise / coord: stddev on the averaged gradient, at l2_clip_norm {l2_clip_norm:g}",
    )
    if rows[0].releases:  # a function of the budget alone: the same in every row
        typer.echo()
        print_table(
            "Beside training, inside of the same budget",
            ["", "share", "noise multiplier", "norm bound", "noise"],
            [
                [
                    release.kind.replace("_", " "),
                    f"{release.share:g}",
                    f"{release.noise_multiplier:.2f}",
                    f"{release.l2_clip_norm:.4g}",
                    f"{release.noise_stddev:.4g}",
                ]
                for release in rows[0].releases
            ],
            caption="noise: stddev on every coordinate of the sum"
            + (
                f"; a row is trained where its noisy count is {parsed.selection.threshold:g} or more"
                if parsed is not None and parsed.selection.kind != "none"
                else ""
            ),
        )
    if costs:
        print_costs(rows, costs)
        check_costs(costs)


def _missing(option: str, key: str, config: Path | None) -> str:
    """What to say where neither the command line nor a configuration has a number."""
    if config is None:
        return f"Expected {option}, got none. Give it, or a --config whose [privacy] has {key}."
    return f"{config}: [privacy] has no {key}, which a plan needs. Give {option}."
