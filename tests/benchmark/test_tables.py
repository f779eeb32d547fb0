"""What the tables say of a result: medians, ratios, growth, what was left out."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from probe.benchmark.growth import growth
from probe.benchmark.rendering import BEGIN, END, between_marks, markdown, print_tables
from probe.benchmark.result import Bench, Job, Measurement
from probe.benchmark.tables import in_bytes, in_seconds, tables
from probe.errors import UsageError


def result(make: Any) -> Bench:
    return make.bench(
        make.measurement("sdpa", 16, {"forward": (0.1, 0.2, 0.3)}, 50),
        make.measurement("eager", 16, {"eager": (3.0, 4.0, 8.0)}, 9_000_000),
        make.measurement("scan_after_flash", 16, {"forward": (0.2, 0.2, 0.2), "scan": (0.2, 0.3, 0.9)}, 900_000),
        make.measurement("scan_alone", 16, {"scan": (1.0, 1.0, 1.0)}, 450_000),
        Measurement(
            job=Job(case="eager", length=32, statistics="core"),
            needed_bytes=412 * 10**9,
            available_bytes=60 * 10**9,
            skipped="it does not fit into memory",
        ),
    )


def cells(bench: Bench) -> dict[tuple[str, str], dict[str, str]]:
    table = tables(bench)[0]
    return {(row[0], row[1]): dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_medians_not_means() -> None:
    found = Measurement(job=Job(case="x", length=1), parts={"a": (1.0, 2.0, 30.0), "b": (1.0, 1.0, 1.0)})
    assert found.seconds == (2.0, 3.0, 31.0)
    assert found.median == 3.0
    assert found.median_of("a") == 2.0
    assert found.median_of("c") is None


def test_ratios_to_sdpa_and_to_eager(make: Any) -> None:
    rows = cells(result(make))
    flash = rows["16", "flash + scan (blocked)"]
    # Medians: SDPA 0.2 s, forward and scan together 0.5 s, the scan 0.3 s, eager 4 s.
    assert flash["time"] == "500 ms"
    assert flash["the scan's"] == "300 ms"
    assert flash["time ÷ SDPA"] == "2.50"
    assert flash["the scan's ÷ SDPA"] == "1.50"
    assert flash["eager's time ÷ it"] == "8.00"
    assert flash["eager's memory ÷ it"] == "10.0"
    assert flash["memory"] == "900 kB"
    assert rows["16", "eager n × n"]["time ÷ SDPA"] == "20.0"
    assert rows["16", "eager n × n"]["eager's time ÷ it"] == "–"
    assert rows["16", "scan (blocked)"]["eager's memory ÷ it"] == "20.0"


def test_the_implementation_that_ran_is_the_one_that_is_named(make: Any) -> None:
    found = make.measurement("scan_alone", 16, {"scan": (1.0,)}, 1).model_copy(update={"ran": "blocked, compiled"})
    assert ("16", "scan (blocked, compiled)") in cells(make.bench(found))


def test_what_was_skipped_is_said_with_the_sum(make: Any) -> None:
    bench = result(make)
    assert cells(bench)["32", "eager n × n"]["time"] == "skipped"
    said = (
        "Skipped: eager n × n, core at 32 tokens: it does not fit into memory (at least 412.0 GB, where 60.0 GB are "
        "free)."
    )
    assert said in tables(bench)[0].notes
    assert said in markdown(bench)


@pytest.mark.parametrize(
    ("power", "constant", "low", "high"), [(1, 0, 1.0, 1.0), (2, 0, 2.0, 2.0), (1, 10**6, 0.0, 0.2)]
)
def test_the_exponent_of_growth(make: Any, power: int, constant: int, low: float, high: float) -> None:
    points = [
        make.measurement("scan_alone", n, {"scan": (1.0,)}, constant + 7 * n**power) for n in (1024, 2048, 4096, 8192)
    ]
    fit = growth(points)
    assert fit is not None
    assert low - 1e-9 <= fit.exponent <= high + 1e-9
    if power == 1:
        assert fit.bytes_per_token == pytest.approx(7)


def test_two_lengths_show_no_growth(make: Any) -> None:
    assert growth([make.measurement("scan_alone", n, {"scan": (1.0,)}, n) for n in (16, 32)]) is None


def test_a_model_is_compared_with_its_untraced_prefill(make: Any) -> None:
    bench = make.bench(
        make.measurement("prefill", 64, {"prefill": (2.0,)}, 1000),
        make.measurement("prefill_in_chunks", 64, {"prefill": (2.2,)}, 1000),
        make.measurement("traced", 64, {"trace": (3.0,)}, 1200),
        layer=None,
        model=make.tiny,
        model_lengths=(64,),
    )
    (table,) = tables(bench)
    assert [row[-2:] for row in table.rows] == [("1.00", "1.00"), ("1.10", "1.00"), ("1.50", "1.10")]
    assert "tiny" in table.title


def test_the_machine_is_named_and_so_is_the_command(make: Any) -> None:
    first = markdown(result(make)).splitlines()[0]
    for part in ("A processor", "1 thread of 8 cores", "16.0 GB", "torch 2.13.0", "`probe bench --lengths 16,32,64`"):
        assert part in first
    stopped = result(make).model_copy(update={"complete": False})
    assert "It was stopped before its end." in markdown(stopped)


@pytest.mark.parametrize(
    ("busy", "threads", "warned"), [(None, 8, False), (0.4, 8, False), (0.6, 8, True), (3.0, 4, False), (4.0, 4, True)]
)
def test_a_machine_that_was_busy_is_said_to_have_been(
    make: Any, busy: float | None, threads: int, warned: bool
) -> None:
    """Of eight cores: what others take matters once what is left is too little."""
    found = make.measurement("sdpa", 16, {"forward": (1.0,)}, 1).model_copy(update={"busy_cores": busy})
    assert (f"Other programs kept {busy} cores busy" in markdown(make.bench(found, threads=threads))) == warned


def test_a_short_measurement_says_little_of_who_else_was_busy(make: Any) -> None:
    short, long = (make.measurement("sdpa", 16, {"forward": (t,)}, 1) for t in (0.001, 991.0))
    short = short.model_copy(update={"busy_cores": 8.0, "warm_up_seconds": 0.0})
    long = long.model_copy(update={"busy_cores": 0.0})
    assert "Other programs" not in markdown(make.bench(short, long, threads=8))


def test_markdown_is_a_table_for_every_reader(make: Any) -> None:
    lines = markdown(result(make)).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert set(rows[1]) <= set("|-: ")


def test_the_terminal_shows_the_same_figures(make: Any) -> None:
    out = io.StringIO()
    print_tables(result(make), Console(file=out, width=120))
    said = out.getvalue()
    for row in tables(result(make))[0].rows:
        for cell in row[1:]:
            assert cell in said


def test_a_document_keeps_what_stands_around_its_marks() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert between_marks(text, "new\n", "x.md") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert between_marks(between_marks(text, "new\n", "x"), "new\n", "x") == between_marks(text, "new\n", "x")


@pytest.mark.parametrize("text", ["", f"{BEGIN}", f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}"])
def test_a_document_without_its_marks_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"x\.md needs one line"):
        between_marks(text, "new", "x.md")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.00002, "20 µs"), (0.0123, "12.3 ms"), (0.5, "500 ms"), (5, "5.00 s"), (123.4, "123 s")]
)
def test_times_in_words(seconds: float, said: str) -> None:
    assert in_seconds(seconds) == said


@pytest.mark.parametrize(
    ("number", "said"), [(12, "12 B"), (1500, "1.5 kB"), (75e6, "75 MB"), (1.82e9, "1.82 GB"), (412e9, "412.0 GB")]
)
def test_sizes_in_words(number: float, said: str) -> None:
    assert in_bytes(number) == said
