"""Code and tests behind the checks of a run that JAX trained, where they are others than torch's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_CODE, _TEST = "code_path", "unit_test"
_BACKEND = "tests/test_jax_backend.py"
_MECHANISM = "tests/test_backend_jax_mechanism.py"
_KERNELS = "tests/test_jax_kernels.py"
_NOISE = "tests/test_jax_kernels_noise.py"
_TOWERS = "tests/test_jax_towers.py"
_USERS = "tests/test_jax_user_tower.py"
_REFUSALS = "tests/test_jax_user_refusals.py"
_PROCESSES = "tests/test_many_processes.py"
_HOSTS = "tests/test_hosts.py"
_LOADING = "tests/test_jax_loading.py"
_CHUNKS = "tests/test_jax_chunks.py"
_ONE_RUN = (_TEST, f"{_PROCESSES}::test_two_processes_of_two_devices_are_one_run")

JAX_EVIDENCE: Mapping[str, Sequence[tuple[str, str]]] = {
    "sampling.any_batch_size": (
        (_CODE, "dpads/sampling.py::PoissonSampler"),
        (_CODE, "dpads/jax_batches.py"),
        (_CODE, "dpads/jax_chunks.py"),
        (
            _TEST,
            "tests/test_random.py::test_every_unit_joins_with_the_sampling_probability_independently",
        ),
        (_TEST, f"{_MECHANISM}::test_batches_of_any_size_are_those_of_torch"),
        (_TEST, "tests/test_random.py::test_shards_draw_the_coins_of_their_own_units"),
        (_TEST, f"{_LOADING}::test_a_batch_is_cut_into_whole_units_in_order"),
        (_TEST, f"{_PROCESSES}::test_any_number_of_processes_is_one_run"),
        (_TEST, f"{_CHUNKS}::test_chunks_have_whole_groups_and_every_example_once"),
        (_TEST, f"{_KERNELS}::test_padding_changes_no_bit"),
    ),
    "clipping.joint_norm": (
        (_CODE, "kernels/jax_ops.py::square_norms"),
        (_CODE, "kernels/jax_ops.py::clip_factors"),
        (_TEST, f"{_KERNELS}::test_clipped_sums_equal_the_reference_and_numba"),
        (
            _TEST,
            f"{_TOWERS}::test_equals_the_torch_tower_and_autodiff_one_example_at_a_time",
        ),
        (_TEST, f"{_BACKEND}::test_jax_is_torch"),
        (_TEST, f"{_BACKEND}::test_jax_is_torch_for_counts_and_users"),
        (_TEST, f"{_CHUNKS}::test_a_batch_in_many_chunks_is_clipped_as_in_torch"),
        (_TEST, f"{_HOSTS}::test_a_user_in_two_processes_is_refused"),
        _ONE_RUN,
    ),
    "clipping.rounding": (
        (_CODE, "accounting/events.py::SENSITIVITY_SLACK"),
        (_CODE, "kernels/jax_linear.py"),
        (_CODE, "kernels/jax_moves.py"),
        (
            _TEST,
            f"{_KERNELS}::test_a_unit_more_or_less_moves_the_sums_by_the_sensitivity_at_most",
        ),
        (_TEST, f"{_KERNELS}::test_rounding_in_groups_stays_within_the_slack"),
        (_TEST, f"{_KERNELS}::test_a_groups_bits_do_not_depend_on_what_stands_before_it"),
        (_TEST, f"{_KERNELS}::test_units_whose_parts_cancel_are_clipped_by_their_parts"),
        (_TEST, f"{_KERNELS}::test_nothing_is_certified_in_32_bits"),
        (_TEST, "tests/test_jax_precision.py::test_no_setting_of_the_users_makes_sums_coarser"),
        (_TEST, f"{_LOADING}::test_a_unit_more_changes_no_other_devices_groups"),
        (_TEST, f"{_CHUNKS}::test_a_unit_more_cuts_no_other_group_than_its_own"),
        (_TEST, f"{_NOISE}::test_a_gradient_and_its_noise_are_rounded_once"),
        (_TEST, "tests/accounting/test_events.py::test_dp_sgd_event_has_the_sensitivity_slack"),
    ),
    "clipping.non_finite": (
        (_CODE, "kernels/jax_ops.py::clip_factors"),
        (_TEST, f"{_KERNELS}::test_a_unit_that_is_not_finite_changes_no_bit_of_the_others"),
        (
            _TEST,
            f"{_USERS}::test_a_unit_that_is_not_finite_leaves_the_others_unchanged_to_the_bit",
        ),
    ),
    "model.no_cross_example_ops": (
        (_CODE, "models/jax_towers.py::JaxTower"),
        (_CODE, "models/jax_user_tower.py::UserTower"),
        (_CODE, "models/jax_user_checks.py::check_program"),
        (_CODE, "models/jax_user_checks.py::check_function"),
        (_TEST, f"{_TOWERS}::test_an_examples_bits_are_its_own"),
        (
            _TEST,
            f"{_CHUNKS}::test_an_examples_bits_are_its_own_wherever_it_stands_in_a_chunk",
        ),
        (_TEST, f"{_REFUSALS}::test_a_function_of_the_batch_is_refused"),
        (_TEST, f"{_REFUSALS}::test_code_that_jax_cannot_see_is_refused"),
        (
            _TEST,
            f"{_REFUSALS}::test_examples_that_meet_in_a_way_that_no_name_shows_are_refused",
        ),
    ),
    "normaliser.public_constant": (
        (_CODE, "accounting/mechanism.py::DpSgdConfig"),
        (_CODE, "kernels/jax_moves.py"),
        (_TEST, f"{_NOISE}::test_noisy_means_are_numbas"),
        (_TEST, f"{_BACKEND}::test_jax_is_torch"),
    ),
    "noise.every_coordinate": (
        (_CODE, "kernels/jax_moves.py"),
        (_TEST, f"{_NOISE}::test_noisy_means_are_numbas"),
        (
            _TEST,
            f"{_NOISE}::test_lazy_noise_and_gradients_reach_a_row_as_in_the_dense_reference",
        ),
        (_TEST, f"{_BACKEND}::test_jax_is_torch"),
        (_TEST, f"{_BACKEND}::test_rows_that_are_not_selected_stay_zero_as_in_torch"),
        _ONE_RUN,
    ),
    "noise.never_reused": (
        (_CODE, "dpads/noise.py::RunKeys"),
        (_TEST, f"{_NOISE}::test_a_normal_depends_on_its_address_alone"),
        (_TEST, f"{_BACKEND}::test_a_read_in_the_middle_is_that_of_torch"),
        (_TEST, f"{_MECHANISM}::test_runs_never_share_noise"),
    ),
    "noise.generator": (
        (_CODE, "kernels/jax_random.py::keystream"),
        (_CODE, "kernels/chacha.py::keystream"),
        (_CODE, "kernels/keys.py::fresh_master_key"),
        (_TEST, f"{_NOISE}::test_rfc8439_block_function_section_2_3_2"),
        (_TEST, f"{_NOISE}::test_words_are_those_of_chacha20"),
        (_TEST, f"{_NOISE}::test_normals_are_numbas"),
    ),
    "noise.floating_point": (
        (_CODE, "kernels/jax_moves.py"),
        (_CODE, "dpads/noise.py::public_grid"),
        (_CODE, "dpads/noise.py::to_public_grid"),
        (_TEST, f"{_MECHANISM}::test_what_leaves_stands_on_a_public_grid"),
    ),
    "iterations.all_counted": (
        (_CODE, "accounting/ledger.py::Ledger"),
        (_CODE, "dpads/training.py::Trainer"),
        (_CODE, "dpads/training_identity.py::run_identity"),
        (_CODE, "dpads/training_identity.py::jax_facts"),
        (_CODE, "dpads/checkpoint.py::CheckpointFolder"),
        (_TEST, "tests/test_training.py::test_resuming_with_other_settings_is_refused_by_name"),
        (_TEST, f"{_BACKEND}::test_a_resumed_run_ends_with_the_same_parameters"),
        (_TEST, f"{_HOSTS}::test_nobody_goes_on_before_entries_and_checkpoints_are_durable"),
        (_TEST, f"{_HOSTS}::test_keys_are_bound_to_one_identity"),
        (
            _TEST,
            f"{_PROCESSES}::test_a_process_that_dies_stops_the_others_and_the_run_goes_on",
        ),
    ),
    "weights.before_clipping": (
        (_CODE, "models/jax_losses.py::example_losses"),
        (_TEST, f"{_MECHANISM}::test_weights_are_inside_the_loss_as_in_torch"),
    ),
}
"""Of the checks that are missing here, code and tests do not depend on the backend."""
