"""What the tests of the command line share: a configuration, and how to call it."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from dpads.cli import app

CONFIG = """
[data]
train = "train.parquet"
test = "test.parquet"
[schema]
task = "ctr"
label = "click"
numeric = ["past_clicks", "past_views", "page_depth"]
categorical = ["device", "hour", "region", "site", "campaign"]
bags = ["interests"]
buckets = 200
[model]
name = "logistic"
[privacy]
epsilon = 3.0
dataset_size = 3000
[training]
expected_batch_size = 300
epochs = 2
"""


def dpads_command(*arguments: object) -> Result:
    """Runs the command line in this process, 100 columns wide, without a terminal."""
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, [str(item) for item in arguments])


def done(*arguments: object) -> str:
    """Standard output of a command that must succeed."""
    result = dpads_command(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout
