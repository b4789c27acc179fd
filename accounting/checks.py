"""The assumptions of a guarantee: each a check with its basis, its result and its evidence.

The basis says why anybody should believe it, in falling strength:

* `enforced_by_code`: the wrong thing cannot be run; the evidence is code and a test.
* `verified`: measured or compared for this run; the evidence is the ledger or a test.
* `asserted_by_user`: a named person stands behind it ([statement] asserted_by).
* `declared_in_configuration`: the configuration says it and nobody signed. Whoever answers for
  the configuration answers for it; the claim is at most conditional, and the headline says that
  no name stands behind it.

`claim_level` is computed from the checks and can be typed nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class ClaimLevel(StrEnum):
    """How much is claimed."""

    FORMAL = "formal"
    CONDITIONAL = "conditional"
    NONE = "none"


class Basis(StrEnum):
    """Why a check is believed."""

    ENFORCED = "enforced_by_code"
    VERIFIED = "verified"
    ASSERTED = "asserted_by_user"
    DECLARED = "declared_in_configuration"
    NOT_CHECKED = "not_checked"
    NOT_APPLICABLE = "not_applicable"


class Result(StrEnum):
    """What came of a check."""

    HOLDS = "holds"
    VIOLATED = "violated"
    UNKNOWN = "unknown"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One assumption.

    Attributes:
        id: Its name, "<topic>.<what>".
        assumption: What is assumed, as a sentence.
        basis: Why it is believed.
        result: Whether it holds.
        effect_if_false: "invalidates", "weakens_quantified", "theoretical" or "negligible".
        load_bearing: Whether the guarantee stands on it.
        asserted_by: The person, where the basis is an assertion.
        note: What this run adds to the sentence.
    """

    id: str
    assumption: str
    basis: Basis
    result: Result = Result.HOLDS
    effect_if_false: str = "invalidates"
    load_bearing: bool = True
    asserted_by: str | None = None
    note: str | None = None
    evidence: Sequence[tuple[str, str]] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """The check as the schema has it."""
        found = [*EVIDENCE.get(self.id, ()), *self.evidence]
        values: dict[str, Any] = {
            "id": self.id,
            "assumption": self.assumption,
            "basis": str(self.basis),
            "result": str(self.result),
            "effect_if_false": self.effect_if_false,
            "load_bearing": self.load_bearing,
            "evidence": [
                {"kind": kind, "ref": ref, "touches_private_data": False} for kind, ref in found
            ],
        }
        if self.asserted_by is not None:
            values["asserted_by"] = self.asserted_by
        if self.note is not None:
            values["note"] = self.note
        return values


def claim_level(checks: Sequence[Check]) -> ClaimLevel:
    """none, conditional or formal: the weakest load-bearing check decides.

    Guarantees:
        - A load-bearing check that is violated or unknown leaves no claim.
        - A load-bearing check that rests on people leaves a conditional claim at most.
    """
    bearing = [check for check in checks if check.load_bearing]
    if not bearing or any(c.result is not Result.HOLDS for c in bearing):
        return ClaimLevel.NONE
    if any(c.basis in (Basis.ASSERTED, Basis.DECLARED) for c in bearing):
        return ClaimLevel.CONDITIONAL
    return ClaimLevel.FORMAL


_CODE, _TEST = "code_path", "unit_test"

EVIDENCE: Mapping[str, Sequence[tuple[str, str]]] = {
    "sampling.matches_accounting": (
        (_CODE, "dpads/sampling.py::PoissonSampler"),
        (_CODE, "dpads/plan.py::Plan"),
        (
            _TEST,
            "tests/test_random.py::test_every_unit_joins_with_the_sampling_probability_independently",
        ),
    ),
    "sampling.any_batch_size": (
        (_CODE, "dpads/training.py::Trainer"),
        (_TEST, "tests/test_clipping.py::test_an_empty_batch_gives_zeros"),
        (_TEST, "tests/test_training.py::test_batches_that_nobody_joined_add_noise_and_count"),
    ),
    "clipping.joint_norm": (
        (_CODE, "dpads/clipping.py::clip_batch"),
        (_CODE, "kernels/clip.py::clip_factors"),
        (_TEST, "tests/test_clipping.py::test_each_unit_adds_at_most_the_clip_norm"),
        (_TEST, "tests/test_clipping.py::test_equals_autograd_one_unit_at_a_time"),
    ),
    "clipping.rounding": (
        (_CODE, "accounting/events.py::SENSITIVITY_SLACK"),
        (_CODE, "kernels/clip.py::add_clipped_layer"),
        (_CODE, "dpads/sampling.py::Grouping"),
        (
            _TEST,
            "tests/test_clipping.py::test_the_bound_on_a_groups_rounding_stays_below_the_slack",
        ),
        (_TEST, "tests/test_clipping.py::test_products_of_a_row_do_not_depend_on_its_place"),
        (_TEST, "tests/test_clipping.py::test_rows_that_nearly_cancel_stay_within_the_sensitivity"),
        (
            _TEST,
            "tests/test_clipping.py::test_neighbouring_batches_of_aligned_gradients_differ_by_at_most_the_sensitivity",
        ),
        (_TEST, "tests/accounting/test_events.py::test_dp_sgd_event_has_the_sensitivity_slack"),
    ),
    "clipping.non_finite": (
        (_CODE, "dpads/clipping.py::clip_batch"),
        (
            _TEST,
            "tests/test_clipping.py::test_a_unit_that_is_not_finite_leaves_the_others_unchanged_to_the_bit",
        ),
    ),
    "model.no_cross_example_ops": (
        (_CODE, "models/base.py::Tower"),
        (_TEST, "tests/test_clipping.py::test_equals_autograd_one_unit_at_a_time"),
    ),
    "normaliser.public_constant": (
        (_CODE, "accounting/mechanism.py::DpSgdConfig"),
        (_CODE, "dpads/noise.py::NoiseMechanism"),
        (
            _TEST,
            "tests/test_training.py::test_one_noiseless_iteration_is_the_clipped_sum_over_the_divisor",
        ),
    ),
    "noise.every_coordinate": (
        (_CODE, "dpads/noise.py::NoiseMechanism"),
        (_CODE, "dpads/tables.py::TableMechanism"),
        (_TEST, "tests/test_training.py::test_noise_on_the_tower_has_the_accounted_scale"),
        (_TEST, "tests/test_tables.py::test_every_row_has_the_law_of_dense_noise"),
    ),
    "noise.never_reused": (
        (_CODE, "dpads/noise.py::RunKeys"),
        (_TEST, "tests/test_tables.py::test_no_address_serves_two_draws_whatever_is_read_when"),
        (_TEST, "tests/test_training.py::test_runs_without_a_noise_seed_never_share_noise"),
    ),
    "noise.generator": (
        (_CODE, "kernels/chacha.py::keystream"),
        (_CODE, "kernels/keys.py::fresh_master_key"),
        (_TEST, "tests/test_random.py::test_rfc8439_block_function_section_2_3_2"),
    ),
    "noise.floating_point": (
        (_CODE, "kernels/gaussian.py::noisy_mean"),
        (_CODE, "dpads/noise.py::to_public_grid"),
        (_TEST, "tests/test_training.py::test_what_leaves_stands_on_a_public_grid"),
    ),
    "iterations.all_counted": (
        (_CODE, "accounting/ledger.py::Ledger"),
        (_CODE, "dpads/training.py::Trainer"),
        (_CODE, "dpads/training_identity.py::run_identity"),
        (_CODE, "dpads/checkpoint.py::CheckpointFolder"),
        (_TEST, "tests/test_training.py::test_resuming_with_other_settings_is_refused_by_name"),
        (
            _TEST,
            "tests/test_training.py::test_a_resumed_run_ends_with_the_same_parameters_to_the_bit",
        ),
    ),
    "iterations.fixed_in_advance": (
        (_CODE, "dpads/plan.py::Plan"),
        (_TEST, "tests/test_training.py::test_the_ledger_is_written_before_the_first_coin"),
    ),
    "adjacency.public_numbers": (
        (_CODE, "dpads/plan.py::resolve"),
        (_TEST, "tests/test_plan.py::test_plan_is_equal_byte_for_byte_on_neighbouring_stores"),
    ),
    "features.nothing_fitted": (
        (_CODE, "dpads/encoding.py::encode"),
        (_CODE, "dpads/hashing.py::table_rows"),
        (_TEST, "tests/test_hashing.py::test_rows_equal_the_committed_vectors"),
        (_TEST, "tests/test_encoding.py::test_a_pure_function_of_each_row"),
    ),
    "initialisation.data_independent": (
        (_CODE, "models/base.py::init_tables"),
        (_CODE, "models/base.py::Description"),
    ),
    "weights.before_clipping": (
        (_CODE, "dpads/clipping.py::clip_batch"),
        (_TEST, "tests/test_clipping.py::test_each_unit_adds_at_most_the_clip_norm"),
    ),
    "accountant.upper_bound": (
        (_CODE, "accounting/accountant.py::epsilon_of"),
        (_CODE, "accounting/precision.py::composition_error"),
        (_TEST, "tests/accounting/test_accountant.py::test_closed_form_of_the_plain_gaussian"),
        (
            _TEST,
            "tests/accounting/test_accountant.py::test_no_number_is_too_small_where_float64_fails",
        ),
    ),
}
"""Code and tests behind each check: the one place to edit when either moves."""
