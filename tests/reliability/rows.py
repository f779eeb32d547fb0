"""The rows of docs/reliability.md: what is promised, the bar, and the tests that hold it.

A test may be named here, or say a figure of a row by the fixture `measured`, or both. Named tests are counted where
they run; a figure stands beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Row:
    """One promise: its group on the page, what is done, what must come of it, and tests by `file::name`, or a file."""

    group: str
    what: str
    bar: str
    tests: tuple[str, ...] = ()


LOST, WRONG, IN, MACHINES, COST = (
    "Nothing is lost",
    "Nothing is silently wrong",
    "Nobody gets in",
    "Past one machine",
    "The cost is known before",
)

_DAMAGE, _CRASH = "tests/store/test_store_damage.py", "tests/store/test_store_crash.py"
_VERIFY, _RUN, _CLI, _HALVED = (
    "tests/test_verify.py",
    "tests/test_run.py",
    "tests/test_cli.py",
    "tests/hooks/test_prefill_out_of_memory.py",
)

ROWS: Final[dict[str, Row]] = {
    "kill -9": Row(
        LOST,
        "kill -9 at random moments of a small run, and resumed",
        "200 moments; findings and trace equal an uninterrupted run's, byte for byte; at "
        "most one unit redone per kill; no holes",
        (
            f"{_CRASH}::test_a_killed_writer_leaves_no_half_unit_and_the_next_one_makes_the_same_bytes",
            f"{_RUN}::test_a_stopped_run_goes_on_to_the_same_findings",
        ),
    ),
    "every write": Row(
        LOST,
        "the n-th write of a small run killed, failed (the disk is full) or torn, for every n",
        "every n recovers to the same findings and arrays",
        ("tests/test_faults.py::test_some_writes_are_spoilt_and_the_run_goes_on",),
    ),
    "record cut": Row(
        LOST,
        "the commit record cut at every byte",
        "opens; drops only the torn last entry",
        (
            f"{_DAMAGE}::test_the_record_cut_at_every_byte_drops_the_torn_entry_alone",
            f"{_DAMAGE}::test_a_writer_goes_on_where_a_torn_entry_began",
        ),
    ),
    "full disk": Row(LOST, "a full disk", "one clear line, exit 4; what was committed stays readable; it goes on"),
    "signals": Row(
        LOST,
        "SIGINT, SIGTERM, SIGUSR2 (Slurm), also inside one long call of a library",
        "resumable within 5 s; no traceback, no orphan process; exit 130, 143, 140",
        (
            "tests/test_limits.py::test_a_run_that_is_deaf_ends_within_five_seconds",
            f"{_CLI}::test_a_signal_ends_the_process_without_a_traceback",
        ),
    ),
    "second process": Row(
        LOST,
        "a second process on one run folder; a holder that is dead",
        "refused with the holder's host and process id, exit 6; the dead one's folder is taken over",
        (f"{_CRASH}::test_a_held_folder_names_its_holder_and_is_free_when_that_is_killed",),
    ),
    "limits": Row(
        LOST,
        "`--max-hours` and `--budget` reached",
        "ends after the unit at hand, exit 7; goes on to the same findings",
        (
            "tests/test_limits.py::test_a_run_stops_at_its_disk_and_goes_on_to_the_same_findings",
            "tests/test_limits.py::test_the_command_says_how_to_go_on",
        ),
    ),
    "lost device": Row(
        LOST,
        "a GPU that is lost in the middle of a run",
        "one line, exit 3; no sample is counted as failed; the same command goes on to the same findings",
    ),
    "one bit": Row(
        WRONG,
        "one flipped bit anywhere; a chunk deleted or swapped",
        "found every time, named by array and chunk; `probe verify --repair` reads that unit alone again",
        (
            f"{_DAMAGE}::test_one_flipped_bit_in_any_file_of_a_unit_is_found_and_named",
            f"{_DAMAGE}::test_one_flipped_bit_in_a_chunk_is_an_error_when_it_is_read",
            f"{_DAMAGE}::test_a_lost_chunk_is_an_error_and_never_fill_values",
            f"{_DAMAGE}::test_swapped_chunks_are_found_and_each_is_named",
            f"{_DAMAGE}::test_units_that_changed_places_are_found",
            f"{_DAMAGE}::test_a_whole_unit_that_is_gone_is_named",
            f"{_DAMAGE}::test_a_flipped_bit_in_the_record_is_never_taken_for_the_truth",
            f"{_VERIFY}::test_every_flipped_bit_of_a_runs_own_files_is_found",
            f"{_VERIFY}::test_a_damaged_unit_alone_is_read_again",
        ),
    ),
    "1,000 bits": Row(
        WRONG, "1,000 bit flips over a run folder", "all found by `probe verify`, all repaired by `--repair`"
    ),
    "device memory": Row(
        WRONG,
        "out of memory on the device",
        "the chunk is halved; the same result; it says so; never endless",
        (
            f"{_HALVED}::test_the_result_is_that_of_a_device_with_room",
            f"{_HALVED}::test_room_that_ends_in_the_middle_of_a_prompt_costs_nothing_of_what_came_before",
            f"{_HALVED}::test_below_the_smallest_chunk_the_sum_is_told",
            f"{_HALVED}::test_a_cache_without_a_way_back_says_so",
            "tests/recurrent/test_going_on.py::test_a_chunk_without_room_is_halved",
        ),
    ),
    "not finite": Row(
        WRONG,
        "NaN or infinity in weights, logits, attention; rows that are masked whole",
        "reported with layer, head and position; never in a headline",
        (
            "tests/hooks/test_non_finite.py::test_a_planted_nan_is_found",
            "tests/hooks/test_non_finite.py::test_a_value_that_overflows_is_found_where_the_weights_are_finite",
            "tests/kernels/test_non_finite_heads.py::test_planted_values_are_counted_once_and_located",
            "tests/kernels/test_statistics_agree_with_float64.py::test_a_query_that_sees_no_key_counts_nothing",
            "tests/store/test_what_was_noted.py::test_a_bad_head_is_counted_and_located_and_the_others_are_intact",
            f"{_RUN}::test_weights_that_are_not_numbers_are_named_by_layer_and_never_in_a_headline",
            f"{_RUN}::test_a_bad_embedding_is_named_by_the_token_that_uses_it",
            "tests/test_bad_inputs.py::test_weights_that_are_not_finite_are_named",
            "tests/test_report.py::test_a_value_that_was_not_measured_is_never_in_the_headline",
            "tests/test_report.py::test_a_measurement_that_is_not_finite_cannot_be_made",
        ),
    ),
    "twice": Row(
        WRONG,
        "the same casebook twice",
        "identical JSON (times and dates aside) and identical bytes of every array",
        (
            "tests/kernels/test_triton_scan.py::test_deterministic_sums_are_equal_bit_for_bit_and_right",
            "tests/analyses/test_every_analysis.py::test_its_finding_is_complete_deterministic_and_round_trips",
        ),
    ),
    "changed underneath": Row(
        WRONG,
        "resumed after the casebook, the model's revision or weights, or a library changed",
        "refuses to mix, names the key that differs, exit 6",
        (f"{_RUN}::test_another_run_in_the_folder_is_refused_by_what_differs",),
    ),
    "float64": Row(
        WRONG,
        "statistics against independent float64 definitions",
        "fp32 within 1e-5·max(1, |x|), or within twice eager's own error where heads are sharp; fp16 and bf16 within "
        "1.5 times eager's error",
        (
            "tests/kernels/test_statistics_agree_with_float64.py::"
            "test_blocked_and_reference_equal_an_independent_float64",
            "tests/kernels/test_statistics_agree_with_float64.py::test_sharp_heads_are_within_twice_eagers_own_error",
            "tests/kernels/test_statistics_agree_with_float64.py::"
            "test_half_precision_input_is_no_worse_than_eager_attention",
            "tests/kernels/test_triton_scan.py::test_every_statistic_equals_an_independent_float64",
            "tests/test_parity.py::test_every_core_statistic_agrees_with_float64",
        ),
    ),
    "padding": Row(
        WRONG,
        "padding on either side, batches, chunks of a prompt",
        "each sample's statistics are those that it has alone, within 1e-6 in fp32",
        (
            "tests/test_bad_inputs.py::test_padding_on_either_side_gives_what_each_sample_gives_alone",
            "tests/recurrent/test_recurrent_traces.py::"
            "test_a_padded_batch_gives_what_each_sample_gives_alone_or_is_refused",
            "tests/test_parity.py::test_chunks_of_a_prompt_change_nothing",
        ),
    ),
    "fuzzed casebooks": Row(
        IN,
        "100,000 fuzzed casebooks",
        "a clear error with line and column, exit 2; each under 1 s and 200 MB; none crashes or hangs",
    ),
    "hostile traces": Row(
        IN,
        "hostile traces: huge shapes, links, `../`, unknown codecs, tokens of 10 MB",
        "refused or capped, under 512 MiB",
        (
            f"{_DAMAGE}::test_an_array_that_claims_what_is_not_there_is_refused_at_once",
            f"{_DAMAGE}::test_a_chunk_that_unpacks_to_more_than_a_chunk_is_refused",
            f"{_DAMAGE}::test_a_manifest_that_leads_out_of_its_unit_is_refused",
            f"{_DAMAGE}::test_links_are_refused_wherever_they_stand",
        ),
    ),
    "hostile text": Row(
        IN,
        "hostile tokens, names of cases and of models in report, explorer, notebook and terminal",
        "nothing runs; the text is shown exactly",
        (
            "tests/test_report.py::test_text_is_shown_exactly_wherever_it_stands",
            "tests/test_report.py::test_in_a_browser_nothing_planted_runs_and_text_is_shown_exactly",
            "tests/dashboard/test_in_a_browser.py::test_hostile_tokens_are_shown_and_none_runs",
            f"{_CLI}::test_text_from_outside_cannot_command_the_terminal",
            f"{_CLI}::test_an_error_message_cannot_command_the_terminal",
        ),
    ),
    "report": Row(
        IN,
        "the report",
        "makes no network request",
        (
            "tests/test_report.py::test_nothing_is_fetched",
            "tests/test_report.py::test_in_a_browser_every_figure_is_drawn_and_nothing_is_requested",
        ),
    ),
    "explorer": Row(
        IN,
        "the explorer",
        "127.0.0.1; debug off whatever the environment says; foreign Host 400, foreign Origin 403; another address "
        "needs a token",
        (
            "tests/dashboard/test_serving.py::test_a_foreign_host_gets_400",
            "tests/dashboard/test_serving.py::test_a_foreign_origin_gets_403",
            "tests/dashboard/test_serving.py::test_another_address_needs_a_token",
            "tests/dashboard/test_serving.py::test_the_environment_has_no_say",
        ),
    ),
    "csv": Row(
        IN,
        "CSV cells and headers that begin with = + - @ or a tab",
        "neutralised; numbers stay numbers",
        (
            "tests/store/test_export.py::test_tables_hold_every_number_and_no_formula",
            "tests/store/test_export.py::test_a_cell_of_text_is_no_formula_and_a_number_stays_one",
        ),
    ),
    "remote code": Row(
        IN,
        "code in a checkpoint",
        "never run without a flag, and then printed in the report",
        (
            "tests/hooks/test_load.py::test_remote_code_is_not_run_without_a_flag",
            "tests/test_bad_inputs.py::test_code_of_a_checkpoint_runs_only_where_it_is_allowed_and_is_then_on_record",
        ),
    ),
    "workers": Row(
        MACHINES,
        "one worker or several (Ray)",
        "identical findings; 4 workers of one thread at least 3 times the throughput of one process",
    ),
    "dead worker": Row(
        MACHINES, "a worker killed every 10 s during a sweep", "the sweep completes with identical findings"
    ),
    "object storage": Row(
        MACHINES,
        "a run in object storage (an S3 server of the tests'), and its connection lost at a put",
        "the same bytes as on a disk; one error, and it goes on to the same",
        (
            "tests/store/test_object_store.py::test_a_run_in_s3_is_the_files_of_one_in_a_folder",
            "tests/store/test_object_store.py::test_it_opens_shows_and_is_verified_by_its_url",
            "tests/store/test_object_faults.py::test_a_connection_that_is_lost_costs_a_unit_at_most",
            "tests/store/test_object_faults.py::test_a_connection_may_be_lost_at_any_put",
        ),
    ),
    "ranks": Row(
        MACHINES,
        "one prompt over 2 and 4 ranks (gloo); a rank that dies",
        "statistics within 1e-5 of float64, traces as one process's to 1e-4; the rank is named",
        (
            "tests/kernels/test_ranked_scan.py::test_two_ranks_equal_float64",
            "tests/kernels/test_ranked_scan.py::test_four_ranks_of_which_some_hold_nothing_equal_float64",
            "tests/kernels/test_ranked_scan.py::test_a_rank_that_dies_is_named_by_those_that_need_it",
            "tests/kernels/test_ranked_scan.py::test_a_rank_that_says_nothing_is_given_up_and_named",
            "tests/hooks/test_over_ranks.py::test_the_specimens_trace_is_that_of_one_process",
            "tests/hooks/test_over_ranks.py::test_every_architecture_over_ranks_has_the_trace_of_one_process",
        ),
    ),
    "sweep": Row(MACHINES, "a sweep of 10,000 units", "scheduled in seconds; linear"),
    "20 GB": Row(
        COST,
        "a trace of 20 GB, written and read",
        "at most 256 MiB over the baseline",
        ("tests/store/test_store_writing.py::test_a_gibibyte_is_written_and_read_within_256_mib",),
    ),
    "predicted": Row(
        COST, "`--dry-run` against what a run took", "within a factor of 1.5 on memory and disk, of 2 on time"
    ),
}
"""Every row of the page, by the name that `measured` takes."""

_LISTED: Final = {name for row in ROWS.values() for name in row.tests}


def listed(test: str) -> bool:
    """Return whether a row names a test, by `file::name`."""
    return test in _LISTED
