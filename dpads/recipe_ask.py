"""What a recipe is asked, checked before anything is spent, and the rows that it works on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dpads import run_files as files
from dpads.config import Config, DataConfig
from dpads.config_toml import to_toml
from dpads.errors import ConfigError
from dpads.recipe_public import check_public_logs, check_public_store, logs_share_a_file
from dpads.recipe_rows import write_made_up_rows
from dpads.recipe_stages import RowsName
from dpads.run_data import open_rows
from dpads.store import ExampleStore
from dpads.sweep_progress import SweepProgress
from dpads.warm_start import refuse_start

ASKED: Final = "asked.json"
STORE: Final = "store"
SYNTHETIC: Final = "synthetic"
MADE_UP_ROWS: Final = 50_000

OnProgress = Callable[[str, SweepProgress | None], None]


@dataclass(frozen=True)
class How:
    """What was asked for beside the configuration."""

    public: tuple[str, ...] | None
    hours: float
    trials: int
    workers: int | None
    threads: int | None
    on_progress: OnProgress | None

    @property
    def noise_free_rows(self) -> RowsName:
        """What stages without noise are computed on."""
        if self.public is None:
            return "private"
        return "synthetic" if self.public == (SYNTHETIC,) else "public"


@dataclass(frozen=True)
class RecipeRows:
    """Stores, by their folders.

    Attributes:
        data: of the private rows.
        test_rows: what the ledger calls their test rows.
        public: the store for stages without noise; None where they run on the private rows.
    """

    data: DataConfig
    test_rows: str
    public: ExampleStore | None


def check_asked(config: Config, hours: float, trials: int) -> None:
    """Refuses a configuration that lacks what the recipe needs."""
    privacy = config.privacy
    if privacy.epsilon is None or privacy.dataset_size is None:
        raise ConfigError(
            "Expected privacy.epsilon, the total of all trials with noise, and privacy.dataset_size, a "
            "public number of units: the recipe plans with them before it reads a row. Set both."
        )
    if privacy.sampling_prob is not None:
        raise ConfigError(
            "Expected no privacy.sampling_prob: the recipe chooses the batch size. Leave it out, and "
            "privacy.iterations; set training.epochs."
        )
    if privacy.sampler != "poisson":
        raise ConfigError(
            f'Expected privacy.sampler = "poisson", got "{privacy.sampler}": trials with noise are taken '
            "out of a Renyi filter, and no Renyi divergence of truncated batches is known. Leave the "
            "sampler out."
        )
    refuse_start(config, "a trial of a recipe")
    if config.data.test is None:
        raise ConfigError("The recipe compares models on test rows. Set data.test.")
    if config.training.noise_seed is not None or config.training.reference:
        raise ConfigError(
            "Expected neither training.noise_seed nor training.reference: trials must not share noise, and "
            "the first stage trains references of its own. Leave them out."
        )
    if not 0.0 < hours < float("inf"):
        raise ConfigError(f"Expected hours > 0, got {hours!r}.")
    if trials < 1:
        raise ConfigError(f"Expected trials to be a whole number >= 1, got {trials!r}.")


def claim(folder: Path, config: Config, how: How) -> None:
    """Writes down what was asked, or checks that the folder's recipe was asked the same."""
    asked = {
        "config": to_toml(config),
        "public": None if how.public is None else list(how.public),
        "hours": how.hours,
        "trials": how.trials,
    }
    path = folder / ASKED
    if not path.exists():
        files.write_text(path, files.to_json(asked))
        return
    kept = files.read_json(path)
    changed = sorted(key for key in asked if asked[key] != kept.get(key))
    if changed:
        raise ConfigError(
            f"{folder}: here is a recipe that was asked for something else: {', '.join(changed)} differ. "
            "Name another --out, or start it as it was started."
        )


def open_recipe_rows(
    folder: Path,
    config: Config,
    public: Sequence[str] | None,
    on_prepare: Callable[[int], None] | None,
) -> RecipeRows:
    """Opens or prepares all stores."""
    stores = folder / STORE
    stores.mkdir(mode=0o700, exist_ok=True)
    data, schema = config.data, config.schema
    train = open_rows(data.train, schema, stores / "train", on_prepare)
    train.check_labels()
    private = {"data.train": (data.train, train)}
    kept, test_rows = dataclasses.replace(data, train=(str(train.path.absolute()),)), "test"
    if isinstance(data.test, tuple):
        if logs_share_a_file(data.train, data.test):
            raise ConfigError(
                "data.train and data.test share a log: models would be compared on rows that they were "
                "trained on. Name other logs, or set data.test to a fraction."
            )
        test = open_rows(data.test, schema, stores / "test", on_prepare)
        private["data.test"] = (data.test, test)
        kept = dataclasses.replace(kept, test=(str(test.path.absolute()),))
        test_rows = "train_and_test" if train.shares_examples(test) else "declared_test"
    if public is None:
        return RecipeRows(kept, test_rows, None)
    sources, made_up = list(public), list(public) == [SYNTHETIC]
    if not made_up:
        for key, (names, _) in private.items():
            check_public_logs(sources, names, key)
    elif not (stores / "public").exists():
        rows = min(MADE_UP_ROWS, (config.privacy.dataset_size or 1) * config.privacy.rows_per_unit)
        sources = [str(write_made_up_rows(schema, rows, stores / "synthetic.parquet"))]
    found = open_rows(sources, schema, stores / "public", on_prepare)
    found.check_labels()
    if not made_up:
        for key, (_, rows_of) in private.items():
            check_public_store(found, rows_of, key)
    return RecipeRows(kept, test_rows, found)


def noisy(config: Config, noise_multiplier: float) -> Config:
    """The configuration with an explicit noise multiplier in place of a budget."""
    privacy = dataclasses.replace(
        config.privacy, epsilon=None, noise_multiplier=float(noise_multiplier)
    )
    return dataclasses.replace(config, privacy=privacy)
