"""What only people know: the [statement] table, every key optional and none of them invented.

A key that is absent is printed as missing in the statement, with what it is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from dpads._validate import nearest
from dpads.errors import ConfigError

TUNING: Mapping[str, str] = {
    "none": "the configuration was fixed without a look at these rows",
    "public_data": "the configuration was chosen on public or synthetic data",
    "not_accounted": "other runs on these rows chose the configuration, and are not in epsilon",
}
"""How the configuration was chosen: the values of the key `tuning`."""

ASKED_FOR: Mapping[str, str] = {
    "model_name": "what the model is called",
    "model_version": "which version of the model this is",
    "publisher": "who answers for the model",
    "contact": "where a question about this statement goes",
    "intended_use": "what the model is for",
    "trusted_party": "who holds the raw log and runs the mechanism as written",
    "asserted_by": '"Name, role" of the person who stands behind what code cannot check',
    "unit_definition": "what one row of the log is in the world, how many rows one fact can enter, and "
    "whom one value of the user column stands for (a person, a device, an address)",
    "period": "which time the log spans",
    "upstream": "what was filtered, joined, deduplicated or sampled before the log came here",
    "tuning": 'how the configuration was chosen: "none", "public_data" or "not_accounted"',
    "refresh": "whether models are trained again on these rows, or on later rows of the same people",
    "justification": "why this unit, epsilon and delta were chosen, and who agreed to them",
    "region": "where the people in the log live",
    "access_control": "how access to the raw log, the keys and the internal run folder is controlled",
    "data_collection": "on what ground the log is collected, and how long it is kept",
    "released_to": "who gets the model",
    "repository": "where the code of this run can be read",
    "commit": "which commit of that code ran",
    "third_party_review": "who reviewed code or statement from outside",
}
"""The keys of [statement], and what each is for."""


@dataclass(frozen=True, kw_only=True)
class HumanFacts:
    """The [statement] table: texts by key, None where nobody supplied one.

    Attributes:
        model_name: See `ASKED_FOR` for this and every other key.
    """

    model_name: str | None = None
    model_version: str | None = None
    publisher: str | None = None
    contact: str | None = None
    intended_use: str | None = None
    trusted_party: str | None = None
    asserted_by: str | None = None
    unit_definition: str | None = None
    period: str | None = None
    upstream: str | None = None
    tuning: str | None = None
    refresh: str | None = None
    justification: str | None = None
    region: str | None = None
    access_control: str | None = None
    data_collection: str | None = None
    released_to: str | None = None
    repository: str | None = None
    commit: str | None = None
    third_party_review: str | None = None

    @classmethod
    def from_mapping(cls, table: Mapping[str, object]) -> HumanFacts:
        """Reads the table, before training begins.

        Raises:
            ConfigError: An unknown key (the nearest known one is named), a value that is not a
                text, or an unknown way of tuning.
        """
        given: object = table
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"Expected statement to be facts by name, got {type(given).__name__}. Pass "
                'statement={"publisher": "Ads team"}.'
            )
        texts: dict[str, str] = {}
        for key, value in table.items():
            if key not in ASKED_FOR:
                raise ConfigError(f'Unknown key "{key}" in [statement].' + nearest(key, ASKED_FOR))
            if not isinstance(value, str) or not value.strip():
                raise ConfigError(
                    f"Expected [statement] {key} to be a text, got {value!r}. It is "
                    f"{ASKED_FOR[key]}; leave the key out if that is not known."
                )
            texts[key] = value
        if texts.get("tuning", "none") not in TUNING:
            known = ", ".join(f'"{word}" ({text})' for word, text in TUNING.items())
            raise ConfigError(
                f'Expected [statement] tuning to be one of {known}, got "{texts["tuning"]}".'
            )
        return cls(**texts)

    def missing(self) -> list[str]:
        """The keys that nobody supplied, in the order in which they are asked for."""
        return [field.name for field in fields(self) if getattr(self, field.name) is None]
