"""Verification: true statements hold, and whatever is altered in one is found and named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from altering import (
    Statement,
    altered,
    drop,
    failure,
    leaves,
    numbers,
    put,
    statement,
    statement_text,
    text_of,
)
from statement_runs import PUBLIC, RUNS, USERS, run_inputs

from dpads.accounting import group
from dpads.accounting.canonical import canonical_bytes, digest
from dpads.accounting.events import effective_noise_multiplier
from dpads.accounting.headline import headline_of
from dpads.accounting.limits import limitations_of
from dpads.accounting.sealing import sealed
from dpads.accounting.statement import make_statement
from dpads.accounting.verification import Verification, verify_statement

# What nothing else in a statement determines: renewed digests hide a change, a run's folder shows it.
DIGEST_ONLY = {"mechanism/clipping/norm", "mechanism/clipping/expected_batch_size"}
DIGEST_ONLY_OF_AUDITS = {
    f"audit/0/{key}"
    for key in (
        "epsilon_lower_bound", "delta", "confidence", "canaries", "guesses", "correct",
        "max_detectable_epsilon",
    )
}  # fmt: skip
# Altered, these contradict what follows from them before they contradict what they follow from.
NAMED_BY_WHAT_FOLLOWS = {
    "mechanism/sampler/dataset_size": "mechanism/sampler/batches_per_pass",
    "mechanism/clipping/expected_batch_size": "mechanism/sampler/batches_per_pass",
}


@pytest.mark.parametrize("name", [*RUNS, "joint"])
def test_a_true_statement_holds(name: str) -> None:
    assert failure(statement_text(name)) == ""
    assert failure(statement(name)) == ""


@pytest.mark.parametrize("name", ["store's count", "capped", "everything", "no noise", "joint"])
def test_a_public_copy_holds_too(name: str) -> None:
    from dpads.accounting.public import public_copy

    copied = public_copy(statement(name))
    assert failure(copied) == ""
    copied["visibility"] = "internal"
    assert failure(sealed(copied))


@pytest.mark.parametrize("cap", [1, 4])
@pytest.mark.parametrize("unit", ["example", "user"])
def test_statements_of_small_caps_hold(unit: str, cap: int) -> None:
    privacy = {**PUBLIC, "unit": unit, "max_examples_per_unit": cap}
    made = make_statement(run_inputs(privacy=privacy, **USERS))
    assert failure(made.data) == ""
    assert failure(made.public().data) == ""


def missed_and_misnamed(
    data: Statement, *, forged: bool, last: bool, every: int = 1
) -> tuple[set[str], dict[str, str]]:
    """What altering each number by a digit leaves unnoticed, and what it is named as instead."""
    missed, misnamed, renyi = set(), {}, 0
    for path, value in numbers(data):
        if "rdp_orders" in path or "rdp_values" in path:  # hundreds, all treated alike
            renyi += 1
            if renyi % every != 0:
                continue
        other = put(data, path, altered(value, last=last))
        found = verify_statement(sealed(other) if forged else other).first_failure
        name = text_of(path)
        if found is None:
            missed.add(name)
        elif found.item != name and not (name.startswith(f"{found.item}/") and forged is False):
            misnamed[name] = found.item
    return missed, misnamed


@pytest.mark.parametrize("forged", [False, True], ids=["digests left", "digests renewed"])
def test_one_altered_digit_in_any_number_is_found_and_named(forged: bool) -> None:
    missed, misnamed = missed_and_misnamed(statement(), forged=forged, last=True, every=10)
    assert missed == (DIGEST_ONLY if forged else set())
    assert misnamed == {}


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True], ids=["first digit", "last digit"])
@pytest.mark.parametrize("forged", [False, True], ids=["digests left", "digests renewed"])
@pytest.mark.parametrize(
    "name",
    [
        "capped",
        "fixed order, capped",
        "truncated",
        "user unit",
        "audited",
        "best of some",
        "joint",
        "selected privately",
        "recipe",
        "chosen from a sweep",
    ],
)
def test_one_altered_digit_is_found_in_every_kind_of_statement(
    name: str, forged: bool, last: bool
) -> None:
    data = statement(name)
    every = 1 if name == "capped" else 12
    missed, misnamed = missed_and_misnamed(data, forged=forged, last=last, every=every)
    expected = set(DIGEST_ONLY)
    if name == "audited":
        expected |= DIGEST_ONLY_OF_AUDITS
    if name == "joint":
        expected |= {f"further_runs/0/{item}" for item in DIGEST_ONLY}
    if name == "fixed order, capped" and not last:
        expected -= {"mechanism/clipping/expected_batch_size"}  # another number of batches per pass
    assert missed == (expected if forged else set())
    for path, item in misnamed.items():
        assert item == NAMED_BY_WHAT_FOLLOWS.get(path) or path.startswith(item), (path, item)


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_any_altered_text_or_truth_is_found_by_the_digests_at_least(stride: int) -> None:
    data = statement("no noise")
    kept = [leaf for leaf in leaves(data) if isinstance(leaf[1], str | bool)]
    assert len(kept) > 300
    for path, value in kept[::stride]:
        other = (
            not value
            if isinstance(value, bool)
            else f"{value[:-1]}{'1' if value[-1:] == '0' else '0'}"
        )
        assert failure(put(data, path, other)), path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["everything", "joint"])
def test_a_forger_can_change_only_texts_that_people_or_ledgers_alone_say(name: str) -> None:
    data = statement(name)
    free = set()
    for path, value in leaves(data):
        if not isinstance(value, str | bool) or path[0] in ("digest", "section_digests"):
            continue
        other = (
            not value
            if isinstance(value, bool)
            else f"{value[:-1]}{'1' if value[-1:] == '0' else '0'}"
        )
        if not failure(sealed(put(data, path, other))):
            free.add(text_of(path))
    said = {
        "accounting/justification", "definition/unit_of_privacy/contribution_bound/period",
        "dp_setting/access_control", "dp_setting/data_collection", "dp_setting/trusted_parties/0/party",
        "releases/0/to_whom", "subject/contact", "subject/intended_use", "subject/model_version",
        "subject/publisher", "subject/region", "transparency/commit", "transparency/repository",
        "transparency/third_party_review", "transparency/versions/dpads",
    }  # fmt: skip
    of_ledgers = {p for p in free if p.startswith("definition/data_accesses/")}
    of_plans = {p for p in free if p.startswith("checks/0/evidence/") and p.endswith("/sha256")}
    others = {
        "everything": {
            "audit/0/same_run_as_release", "definition/unit_of_privacy/contribution_bound/identifier",
            "ledgers/0/run", "subject/model_kind",
        },
        "joint": {"subject/model_kind"},
    }[name]  # fmt: skip
    assert said <= free
    assert free - said - of_ledgers - of_plans <= others
    for path in of_ledgers:
        access = data["definition"]["data_accesses"][int(path.split("/")[2])]
        assert access["filled_by"] != "auto" or "rows" in access


def test_an_epsilon_that_was_lowered_and_sealed_again_is_named_with_both_figures() -> None:
    data = statement("public size")
    stated = data["guarantees"][0]["value"]["epsilon"]
    for other in (round(stated - 0.01, 2), round(stated + 0.01, 2)):
        forged = sealed(put(data, ("guarantees", 0, "value", "epsilon"), other))
        assert failure(forged) == (
            f"guarantees/0/value/epsilon: {other} is stated, {stated} recomputed"
        )


def test_a_figure_that_was_lowered_wherever_it_stands_is_found() -> None:
    data = json.loads(
        statement_text("public size").replace("3.0,", "2.9,").replace("(3.00,", "(2.90,")
    )
    data["headline"], data["limitations"] = headline_of(data), limitations_of(data)
    assert "(2.90," in data["headline"]
    assert failure(sealed(data)).startswith("guarantees/0/value/epsilon: 2.9 is stated, 3.0 rec")


def test_a_headline_that_says_less_than_the_figures_is_found() -> None:
    data = statement("public size")
    data["headline"] = data["headline"].replace("(3.00,", "(1.00,")
    assert failure(sealed(data)).startswith("headline: ")
    data = statement("no noise")
    data["headline"] += " It is (1.00, 1e-8)-differentially private."
    assert failure(sealed(data)).startswith("headline: ")


def _claiming(data: Statement, level: str) -> Statement:
    """The statement as if it claimed something."""
    data["claim_level"] = level
    for guarantee in data["guarantees"]:
        guarantee["hypothetical"] = False
    data["headline"], data["limitations"] = headline_of(data), limitations_of(data)
    return sealed(data)


def test_a_broken_check_cannot_be_talked_away() -> None:
    data = statement("fixed seed")
    broken = [
        n for n, c in enumerate(data["checks"]) if c["load_bearing"] and c["result"] != "holds"
    ]
    assert broken
    held = copy.deepcopy(data)
    for number in broken:
        held["checks"][number]["result"] = "holds"
        held["checks"][number].pop("note")
    assert failure(_claiming(held, "formal")).startswith(f"checks/{broken[0]}/result: ")
    loose = copy.deepcopy(data)
    for number in broken:
        loose["checks"][number]["load_bearing"] = False
    assert failure(_claiming(loose, "formal")).startswith(f"checks/{broken[0]}/load_bearing: ")
    gone = copy.deepcopy(data)
    gone["checks"] = [c for n, c in enumerate(gone["checks"]) if n not in broken]
    assert failure(_claiming(gone, "formal")).startswith("checks: ")
    assert failure(_claiming(copy.deepcopy(data), "formal")).startswith("claim_level: ")


def test_a_check_of_nobodys_or_twice_is_refused_and_a_worse_one_is_not() -> None:
    data = statement("public size")
    known = data["checks"][0]
    more = {**data, "checks": [*data["checks"], {**known, "id": "made.up"}]}
    assert "made.up" in failure(sealed(more))
    assert "twice" in failure(sealed({**data, "checks": [*data["checks"], known]}))
    honest = copy.deepcopy(data)
    honest["checks"][3].update(result="violated", note="Somebody looked.")
    assert failure(sealed(honest)).startswith("claim_level: ")


def test_a_use_of_the_data_cannot_be_left_out() -> None:
    data = statement("public size")
    accesses = data["definition"]["data_accesses"]
    data["definition"]["data_accesses"] = [a for a in accesses if a["stage"] != "evaluation"]
    for number, access in enumerate(data["definition"]["data_accesses"], start=1):
        access["id"] = f"A{number}"
    data["headline"], data["limitations"] = headline_of(data), limitations_of(data)
    assert failure(sealed(data)).startswith("definition/data_accesses: the ledgers have 3 entries")


def test_a_sampler_that_is_not_the_accounted_one_is_named() -> None:
    passes = statement("fixed order")
    poisson = statement("public size")
    claimed = put(poisson, ("mechanism", "sampler"), passes["mechanism"]["sampler"])
    assert failure(sealed(claimed)).startswith("mechanism/sampler/")
    related = put(passes, ("definition", "adjacency", "relation"), "add_or_remove_one")
    assert failure(sealed(related)).startswith("mechanism/sampler/kind: ")
    # Shuffled batches under Poisson's event: the event is swapped, everything else left.
    swapped = copy.deepcopy(passes)
    for key in ("dp_event", "dp_event_sha256"):
        swapped["accounting"][key] = poisson["accounting"][key]
    swapped["accounting"]["entries"][0]["dp_event"] = poisson["accounting"]["dp_event"]
    assert failure(sealed(swapped)).startswith("mechanism/sampler/kind: ")


def test_another_mechanism_with_its_own_event_has_another_epsilon() -> None:
    """Everything about the mechanism is changed alike: the figures no longer follow."""
    data = statement("public size")
    noise = data["mechanism"]["noise"]
    text = json.dumps(data)
    other = noise["noise_multiplier"] * 0.9
    text = text.replace(repr(noise["noise_multiplier"]), repr(other)).replace(
        repr(noise["accounted_noise_multiplier"]), repr(effective_noise_multiplier(other))
    )
    data = json.loads(text)
    data["accounting"]["dp_event_sha256"] = digest(data["accounting"]["dp_event"])
    assert failure(sealed(data)).startswith("guarantees/0/value/epsilon: 3.0 is stated, 3.")


def test_a_poisoned_cache_of_groups_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = statement("capped")
    assert failure(data) == ""
    lowered = {}
    for file in (tmp_path / "dpads").iterdir():
        content = json.loads(file.read_bytes())
        lowered[content["key"]] = file
        content["loss"]["epsilon"] = content["loss"]["pld_epsilon"] = "0.5"
        content["sha256"] = group._seal(content["key"], content["loss"])
        file.write_bytes(canonical_bytes(content))
    assert lowered
    for number in (3, 4):
        value = data["guarantees"][number]["value"]
        for point in value.get("profile", [value]):
            point["epsilon"] = 0.5
    data["headline"], data["limitations"] = headline_of(data), limitations_of(data)
    assert failure(sealed(data)).startswith("guarantees/3/value/epsilon: 0.5 is stated, ")


def _made_elsewhere(data: Statement) -> Statement:
    """The statement as another version of the accountant's library would have made it."""
    data["accounting"]["version"] = "0.5.9"
    data["transparency"]["versions"]["dp-accounting"] = "0.5.9"
    return data


def test_another_version_may_state_more_and_never_less() -> None:
    data = _made_elsewhere(statement("public size"))
    found = verify_statement(sealed(data))
    assert found.ok
    assert any("dp-accounting 0.5.9 made it" in finding.note for finding in found.findings)
    looser = copy.deepcopy(data)
    looser["guarantees"][0]["value"]["epsilon"] += 0.01
    looser["accounting"]["bounds"]["pld"] += 0.0001
    looser["accounting"]["value_discretization_interval"] = 1e-2
    looser["meaning"]["accuracy"] = 0.99
    shares = (data["meaning"]["accuracy"], 0.99)
    before, after = (f"at most {100 * share:g} %" for share in shares)
    looser["meaning"]["text"] = looser["meaning"]["text"].replace(before, after)
    looser["headline"] = headline_of(looser)
    assert failure(sealed(looser)) == ""
    text = put(looser, ("meaning", "text"), looser["meaning"]["text"].replace("99 %", "51 %"))
    assert failure(sealed(text)).startswith("meaning/text: ")
    tighter = copy.deepcopy(data)
    tighter["guarantees"][0]["value"]["epsilon"] -= 0.01
    said = failure(sealed(tighter))
    assert said.startswith("guarantees/0/value/epsilon: 2.99 is stated, 3.0 recomputed")
    assert "dp-accounting 0.5.9 made it" in said
    order = put(data, ("guarantees", 2, "value", "rdp_orders", 5), 1.9)
    assert failure(sealed(order)).startswith("guarantees/2/value/rdp_orders/5: ")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: {**d, "schema_version": "0.2"}, 'schema_version: expected "0.3"'),
        (lambda d: {**d, "schema_version": 0.3}, 'schema_version: expected "0.3"'),
        (lambda d: {**d, "remark": ""}, "the statement: Additional properties"),
        (lambda d: put(d, ("accounting", "epsilon"), 1.0), "accounting: Additional properties"),
        (lambda d: drop(d, ("accounting", "bounds")), "accounting: 'bounds' is a required"),
        (lambda d: drop(d, ("headline",)), "the statement: 'headline' is a required"),
        (lambda d: put(d, ("mechanism", "steps", "planned"), 347.0), "mechanism/steps/planned: "),
        (lambda d: put(d, ("ledgers", 0, "entries"), True), "ledgers/0/entries: "),
        (lambda d: put(d, ("subject", "publisher"), "Somebody"), "subject: it was altered"),
        (lambda d: put(d, ("digest",), "0" * 64), "digest: it is not that of"),
        (lambda d: put(d, ("section_digests", "tier"), "0" * 64), "tier: it was altered"),
        (lambda d: put(d, ("statement_id",), f"urn:uuid:{'0' * 36}"), "statement_id: "),
    ],
)
def test_what_is_not_as_it_should_be_is_named(
    change: Callable[[Statement], Statement], says: str
) -> None:
    assert failure(change(statement("signed"))).startswith(says)


def test_progress_says_what_is_recomputed() -> None:
    said: list[str] = []
    assert verify_statement(statement_text("capped"), on_progress=said.append).ok
    assert said[0] == "recomputing the event"
    assert "recomputing the guarantee for users: 0 of 5 deltas" in said
    assert all(text.isprintable() for text in said)


def test_findings_as_plain_data() -> None:
    found = verify_statement(statement_text("public size"))
    plain = found.to_dict()
    assert plain["ok"] is True
    assert plain["first_failure"] is None
    assert {item["held"] for item in plain["items"]} == {True}
    assert [item["item"] for item in plain["items"]][:2] == [
        "schema_version",
        "accounting/dp_event",
    ]
    assert not Verification(()).ok
    lowered = put(statement("public size"), ("tier", "delta"), 1e-9)
    plain = verify_statement(lowered).to_dict()
    assert plain["ok"] is False
    assert plain["first_failure"].startswith("tier/delta: ")
