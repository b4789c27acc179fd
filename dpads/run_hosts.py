"""What the processes of a run settle before they open any rows."""

from __future__ import annotations

import dataclasses
import json
import tomllib

from dpads.accounting.ledger import Ledger
from dpads.config import Config
from dpads.config_toml import to_toml
from dpads.hosts import Hosts
from dpads.record import versions

# Tables of a configuration that are named where they differ.
TABLES = ("data", "schema", "model", "privacy", "training")


def check_configuration(config: Config, hosts: Hosts) -> None:
    """Refuses processes that were started with different configurations or versions.

    Paths of rows may differ: every process has its own shards.

    Raises:
        ConfigError: the message names what differs.
    """
    if hosts.count == 1:
        return
    test = config.data.test
    data = dataclasses.replace(
        config.data, train=("",), test=("",) if isinstance(test, tuple) else test
    )
    tables = tomllib.loads(to_toml(dataclasses.replace(config, data=data)))
    own = {f"[{name}]": json.dumps(tables.pop(name, None), sort_keys=True) for name in TABLES}
    hosts.check_same(
        {
            **own,
            "configuration": json.dumps(tables, sort_keys=True),
            "versions of packages": json.dumps(versions(config.training.backend)),
        }
    )


def shared_ledger(ledger: Ledger, hosts: Hosts) -> Ledger:
    """The ledger of process 0; in the other processes a copy in memory of what it has so far."""
    entries = [dataclasses.asdict(entry) for entry in ledger.entries]
    known = hosts.of_first(json.dumps(entries).encode())
    if hosts.is_first:
        return ledger
    copy = Ledger()
    for fields in json.loads(known):
        copy.append(**fields)
    return copy
