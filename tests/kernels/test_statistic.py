"""Statistics are named, requested and described by one contract."""

from __future__ import annotations

import pytest

from probe.axes import AXES
from probe.errors import UsageError
from probe.kernels.entropy import entropy
from probe.kernels.offset_mass import offset_mass
from probe.kernels.received_mass import received_mass
from probe.kernels.statistic import names, parse

CORE = {
    "queries_and_keys",
    *("log_sum_exp", "entropy", "max_probability", "max_logit", "sink_mass", "recent_mass", "offset_mass"),
    *("match_mass", "mean_distance", "distance_histogram", "received_mass", "attention_map", "span_mass", "top_keys"),
    "span_logit",
    "window_mass",
    "sparse_shape_mass",
    *("output_norm_share", "key_norm", "value_norm", "residual_norm", "residual_max", "residual_median", "loss"),
    *(
        "key_channel_energy",
        "key_spectrum",
        "key_neighbour_similarity",
        "key_layer_similarity",
        "value_layer_similarity",
    ),
}


def test_every_core_statistic_is_found():
    assert set(names()) >= CORE


@pytest.mark.parametrize("name", sorted(CORE))
def test_a_statistic_says_what_it_is(name):
    statistic = parse(name)
    assert statistic.key == name
    assert "" in statistic.arrays
    assert statistic.source
    assert len(statistic.definition) > 20
    for facts in statistic.arrays.values():
        assert set(facts.axes) <= set(AXES)
    if statistic.arrays[""].merge == "max":
        assert next(iter(statistic.arrays)) == ""


@pytest.mark.parametrize(
    ("request_", "wanted", "key"),
    [
        ("entropy", entropy(), "entropy"),
        ({"received_mass": {"horizon": 64}}, received_mass(horizon=64), "received_mass_horizon_64"),
        ({"received_mass": {}}, received_mass(), "received_mass"),
        ({"received_mass": None}, received_mass(), "received_mass"),
        ({"offset_mass": {"others": [256, 512]}}, offset_mass(others=(256, 512)), "offset_mass_others_256_512"),
        (received_mass(horizon=3), received_mass(horizon=3), "received_mass_horizon_3"),
    ],
)
def test_a_request_gives_the_statistic_and_its_key(request_, wanted, key):
    assert parse(request_) == wanted
    assert parse(request_).key == key


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("entropie", "no statistic 'entropie'.*entropy"),
        ("Scan", "no statistic"),
        ({"received_mass": {"horizn": 64}}, "no parameter 'horizn'; it has horizon"),
        ({"entropy": {"base": 2}}, "no parameter 'base'; it has none"),
        ({"received_mass": {"horizon": "64"}}, "horizon = '64'"),
        ({"received_mass": {"horizon": True}}, "horizon = True"),
        ({"received_mass": {"horizon": 0}}, "at least 1"),
        ({"match_mass": {"by": "luck"}}, "by = 'luck'"),
        ({"offset_mass": {"others": [5]}}, "ascend"),
        ({"attention_map": {"grid": 7}}, "even"),
        ({"top_keys": {"k": 0}}, "at least 1"),
        ({"sink_mass": {"num_sink": 0}}, "at least 1"),
        ({"recent_mass": {"recent": 0}}, "at least 1"),
        ({"received_mass": [64]}, "mapping"),
        ({"a": {}, "b": {}}, "requested as"),
        (7, "requested as"),
    ],
)
def test_a_wrong_request_is_a_usage_error_that_names_what_exists(request_, message):
    with pytest.raises(UsageError, match=message):
        parse(request_)


def test_array_names_derive_from_the_key():
    statistic = received_mass(horizon=64)
    assert [statistic.array_name(s) for s in statistic.arrays] == [
        "received_mass_horizon_64",
        "received_mass_horizon_64_num_queries",
    ]
    assert parse("max_probability").array_name("argmax_key") == "argmax_key"
