"""Why a check should be believed: code, tests, digests and logs that a reader can look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpads.accounting.evidence_jax import JAX_EVIDENCE


@dataclass(frozen=True)
class Evidence:
    """One thing to look at.

    Attributes:
        kind: "code_path", "unit_test", "config_hash", "log" or another kind of the schema.
        ref: Where it is, or what it says.
        sha256: The digest of what it is about, where it has one.
        touches_private_data: Whether it was read off private rows outside the accounted mechanism;
            public copies leave it out.
    """

    kind: str
    ref: str
    sha256: str | None = None
    touches_private_data: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The evidence as the schema has it."""
        sealed = {} if self.sha256 is None else {"sha256": self.sha256}
        private = {"touches_private_data": self.touches_private_data}
        return {"kind": self.kind, "ref": self.ref, **sealed, **private}


_CODE, _TEST = "code_path", "unit_test"
_PLANTED = (
    "tests/accounting/test_statement_checks.py"
    "::test_each_load_bearing_check_can_fail_and_then_takes_the_claim_away"
)

EVIDENCE: Mapping[str, Sequence[tuple[str, str]]] = {
    "sampling.matches_accounting": (
        (_CODE, "accounting/schemes.py::scheme_of"),
        (_CODE, "dpads/sampling.py::sampler_of"),
        (_CODE, "dpads/plan.py::Plan"),
        (
            _TEST,
            "tests/test_samplers.py::test_sampler_relation_and_event_agree_or_nothing_is_built",
        ),
    ),
    "sampling.suits_relation": (
        (_CODE, "accounting/mechanism.py::DpSgdConfig"),
        (_CODE, "accounting/accountant.py::check_relation"),
        (
            _TEST,
            "tests/test_samplers.py::test_sampler_relation_and_event_agree_or_nothing_is_built",
        ),
    ),
    "sampling.any_batch_size": (
        (_CODE, "dpads/sampling.py::PoissonSampler"),
        (_CODE, "dpads/training.py::Trainer"),
        (
            _TEST,
            "tests/test_random.py::test_every_unit_joins_with_the_sampling_probability_independently",
        ),
        (_TEST, "tests/test_clipping.py::test_an_empty_batch_gives_zeros"),
        (_TEST, "tests/test_training.py::test_batches_that_nobody_joined_add_noise_and_count"),
    ),
    "sampling.truncation_in_event": (
        (_CODE, "accounting/schemes.py::TruncatedPoissonScheme"),
        (_CODE, "dpads/sampling.py::TruncatedPoissonSampler"),
        (
            _TEST,
            "tests/test_samplers.py::test_a_truncated_batch_is_any_subset_of_the_poisson_batch_as_likely",
        ),
        (_TEST, "tests/test_training.py::test_batches_that_nobody_joined_add_noise_and_count"),
    ),
    "sampling.no_amplification": (
        (_CODE, "accounting/schemes.py::FixedOrderScheme"),
        (_CODE, "dpads/sampling.py::FixedOrderSampler"),
        (_TEST, "tests/test_samplers.py::test_a_fixed_order_pass_has_every_unit_once"),
    ),
    "unit.cap_enforced": (
        (_CODE, "dpads/units.py::units_of"),
        (_CODE, "dpads/store.py::ExampleStore"),
        (_TEST, "tests/test_users.py::test_a_run_enforces_the_cap_and_states_the_unit"),
        (_TEST, "tests/test_users.py::test_kept_rows_of_everybody_else_do_not_change"),
    ),
    "clipping.joint_norm": (
        (_CODE, "dpads/clipping.py::clip_batch"),
        (_CODE, "kernels/clip.py::clip_factors"),
        (_TEST, "tests/test_clipping.py::test_each_unit_adds_at_most_the_clip_norm"),
        (_TEST, "tests/test_clipping.py::test_equals_autograd_one_unit_at_a_time"),
        (_TEST, "tests/test_users.py::test_one_iteration_is_the_sum_of_users_clipped_as_one"),
    ),
    "clipping.rounding": (
        (_CODE, "accounting/events.py::SENSITIVITY_SLACK"),
        (_CODE, "kernels/clip.py::add_clipped_layer"),
        (_CODE, "kernels/blas.py::row_blocks"),
        (_CODE, "kernels/moves.py::move_rows"),
        (_CODE, "dpads/sampling.py::Grouping"),
        (
            _TEST,
            "tests/test_clipping.py::test_the_bound_on_a_groups_rounding_stays_below_the_slack",
        ),
        (_TEST, "tests/test_row_places.py::test_a_row_does_not_depend_on_its_place"),
        (_TEST, "tests/test_tables.py::test_a_gradient_is_rounded_once_together_with_its_noise"),
        (
            _TEST,
            "tests/test_users.py::test_rows_of_many_users_that_nearly_cancel_stay_within_the_sensitivity",
        ),
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
        (_CODE, "models/torch_tower.py::TorchTower"),
        (_CODE, "models/torch_module_checks.py::check_module"),
        (_CODE, "models/torch_module_checks.py::find_blocks"),
        (_CODE, "models/torch_module_state.py::KeptState"),
        (_TEST, "tests/test_module_tower.py::test_an_examples_bits_are_its_own"),
        (
            _TEST,
            "tests/test_module_mixing.py::test_a_module_that_mixes_large_or_many_equal_rows_is_refused",
        ),
        (_TEST, "tests/test_module_mixing.py::test_a_module_sees_no_more_rows_than_a_block"),
        (_TEST, "tests/test_clipping.py::test_a_layer_that_mixes_examples_is_refused"),
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
        (
            _TEST,
            "tests/test_initialisation.py::test_initial_parameters_follow_from_schema_and_seed_alone",
        ),
    ),
    "initialisation.from_earlier_run": (
        (_CODE, "accounting/earlier.py::carried_event"),
        (_TEST, _PLANTED),
    ),
    "initialisation.earlier_accounted": (
        (_CODE, "accounting/earlier.py::carried_event"),
        (_CODE, "dpads/plan.py::Plan"),
        (_TEST, "tests/test_warm_start.py::test_the_figures_compose_both_runs"),
    ),
    "weights.before_clipping": (
        (_CODE, "dpads/clipping.py::clip_batch"),
        (_TEST, "tests/test_clipping.py::test_each_unit_adds_at_most_the_clip_norm"),
    ),
    "calibration.accounted": (
        (_CODE, "accounting/ledger.py::Ledger"),
        (_CODE, "dpads/recalibration.py::recalibrated"),
        (
            _TEST,
            "tests/test_recalibration.py::test_the_entry_is_on_the_ledger_before_a_row_is_read",
        ),
    ),
    "releases.accounted": (
        (_CODE, "dpads/private_sums.py::noisy_sum"),
        (_CODE, "accounting/releases.py::Release"),
        (
            _TEST,
            "tests/test_private_sums.py::test_one_unit_moves_the_sum_by_at_most_the_norm_bound",
        ),
        (
            _TEST,
            "tests/test_private_sums.py::test_every_coordinate_has_noise_of_the_accounted_scale",
        ),
        (
            _TEST,
            "tests/test_plan_releases.py::test_everything_together_meets_the_budget_from_below",
        ),
    ),
    "tuning.same_mechanism": (
        (_CODE, "dpads/training.py::Trainer"),
        (_CODE, "dpads/noise.py::RunKeys"),
        (_TEST, "tests/test_training.py::test_runs_without_a_noise_seed_never_share_noise"),
        (_TEST, "tests/test_sweep.py::test_two_trials_that_differ_in_one_setting_share_no_noise"),
    ),
    "tuning.fixed_in_advance": (
        (_CODE, "dpads/sweep_folder.py::claim_folder"),
        (_CODE, "dpads/selecting_ledger.py::trainings_of"),
        (
            _TEST,
            "tests/test_sweep.py::test_a_folder_of_another_sweep_is_refused_by_the_keys_that_differ",
        ),
    ),
    "tuning.runs_counted": (
        (_CODE, "dpads/selecting_ledger.py::trainings_of"),
        (_TEST, "tests/test_select.py::test_every_other_private_trial_is_charged"),
        (_TEST, "tests/test_select.py::test_trials_that_never_began_are_charged_as_planned"),
    ),
    "tuning.drawn_once": (
        (_CODE, "dpads/private_selection_law.py::draw_number"),
        (_CODE, "dpads/private_selection_state.py::SealedFolder"),
        (_CODE, "accounting/joint.py::JointRuns"),
        *(
            (_TEST, f"tests/test_private_selection.py::test_{name}")
            for name in (
                "the_number_of_candidates_follows_the_law_that_is_accounted",
                "each_candidate_is_as_likely_as_any_other",
                "what_was_drawn_is_never_drawn_again",
                "nothing_that_can_be_listed_tells_how_many_there_are",
                "a_candidate_that_fails_has_the_worst_score_and_is_not_replaced",
                "no_candidate_and_none_that_works_look_the_same",
                "the_best_score_is_selected_and_nothing_else_is_left",
            )
        ),
        (
            _TEST,
            "tests/accounting/test_statement_tuning.py::test_two_runs_of_one_selection_are_refused",
        ),
    ),
    "tuning.score_inside": (
        (_CODE, "dpads/private_score.py::ScoreMechanism"),
        (_CODE, "accounting/tuning.py::noise_for_selection"),
        *(
            (_TEST, f"tests/test_private_selection.py::test_{name}")
            for name in (
                "one_unit_moves_a_score_by_at_most_the_bound",
                "scores_have_the_noise_that_is_accounted",
                "no_candidate_trains_on_the_units_of_scores_or_tests",
            )
        ),
    ),
    "tuning.filter_kept": (
        (_CODE, "accounting/filters.py::RenyiFilter"),
        (_CODE, "dpads/recipe_budget.py::FilterFile"),
        (_CODE, "dpads/recipe_budget.py::check_kept"),
        (
            _TEST,
            "tests/accounting/test_filters.py::test_whatever_is_chosen_the_composition_stays_inside",
        ),
        (_TEST, "tests/test_recipe.py::test_nothing_beyond_the_total_is_spent"),
        (
            _TEST,
            "tests/test_recipe_budget.py::test_what_is_lost_is_never_drawn_again_under_the_same_charge",
        ),
        (
            _TEST,
            "tests/test_recipe.py::test_what_was_spent_survives_and_is_spent_once_for_each_name",
        ),
    ),
    "ledger.complete": (
        (_CODE, "accounting/ledger.py::Ledger"),
        (_TEST, "tests/test_training.py::test_the_ledger_is_written_before_the_first_coin"),
    ),
    "joint.same_rows": (
        (_CODE, "accounting/joint.py::JointRuns"),
        (
            _TEST,
            "tests/accounting/test_statement_joint.py::test_runs_that_do_not_compose_are_refused_by_name",
        ),
    ),
    "audit.no_contradiction": ((_CODE, "accounting/figures.py::contradicts"), (_TEST, _PLANTED)),
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
"""Code and tests behind each check, as torch runs them: the place to edit when either moves."""


BY_BACKEND: Mapping[str, Mapping[str, Sequence[tuple[str, str]]]] = {
    "jax": JAX_EVIDENCE,
    "jax-gpu": JAX_EVIDENCE,
}
"""What takes the place of that in a run on another backend than torch."""


def evidence_of(name: str, backends: Sequence[str] = ()) -> list[Evidence]:
    """The code and the tests behind a check.

    Args:
        name: Of the check.
        backends: What ran the mechanism, of each run once; none where a check is of no single run.
    """
    found = [
        pair
        for backend in backends or ("torch",)
        for pair in BY_BACKEND.get(backend, {}).get(name, EVIDENCE.get(name, ()))
    ]
    return [Evidence(kind, ref) for kind, ref in dict.fromkeys(found)]
