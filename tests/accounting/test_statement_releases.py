"""The statement of what is released beside training, of priors, and of weights of classes."""

from __future__ import annotations

from statement_runs import statement_of


def test_what_is_released_beside_training_is_stated_wherever_it_matters() -> None:
    statement = statement_of("released beside training")
    data, page = statement.data, statement.to_markdown()
    assert (
        "DP-SGD with a noisy count for where its output starts, a noisy count that"
        in data["headline"]
    )
    assert "and a noisy recalibration, is (3.00, 1e-8)" in data["headline"]
    kinds = ["dp_count", "selection", "training", "recalibration"]
    assert [item["kind"] for item in data["accounting"]["entries"]] == kinds
    accesses = {a.get("dp_event"): a for a in data["definition"]["data_accesses"]}
    for item in data["accounting"]["entries"]:
        assert accesses[item["id"]]["treatment"] == "covered_by_accounting"
    assert "share of 0.1 of the budget" in accesses["E2"]["description"]
    for release in data["mechanism"]["releases"]:
        assert f"a share of {release['share']} of the budget" in page
    output = data["definition"]["mechanism_output"]
    assert output["released"].endswith(", and the calibration of the output")
    assert "with every noisy sum beside training" in output["formally_protected"]
    start = next(a for a in data["definition"]["data_accesses"] if "init_seed" in a["description"])
    assert start["description"].endswith(
        "The output starts at the noisy count that is listed here."
    )
    assert start["treatment"] == "covered_by_accounting"


def test_a_public_rate_is_somebodys_word() -> None:
    statement = statement_of("public rate, signed")
    assert "known from elsewhere, not from these rows" in statement.headline
    start = next(
        a for a in statement.data["definition"]["data_accesses"] if "init_seed" in a["description"]
    )
    assert start["treatment"] == "declared_public"
    assert start["check_id"] == "initialisation.rate_is_public"


def test_weights_of_classes_are_weights_inside_the_loss() -> None:
    assert statement_of("weights of classes").data["mechanism"]["loss_weights"] == "before_clipping"
    assert statement_of("public size").data["mechanism"]["loss_weights"] == "none"
