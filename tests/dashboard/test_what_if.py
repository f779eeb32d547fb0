"""What if: a prompt that is typed is read by a process of its own, and nothing but a prompt can be typed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

import probe
from probe.command.cli import app
from probe.command.view import recorded_model
from probe.dashboard.application.explorer import explorer
from probe.dashboard.application.opened import Opened
from probe.dashboard.application.page import pages
from probe.dashboard.live import results, section, session
from probe.dashboard.live.session import MOST_WAITING, Live
from probe.errors import UsageError
from probe.what_if import WhatIf, read_heads, read_layers
from tests.dashboard.conftest import wait
from tests.dashboard.test_every_page import violations

ROOT = Path(__file__).resolve().parents[2]
PROMPT = (
    "The magic number for Nairobi is 60 62 84 11. It was the patient carpenter who carried the basket in the evening. "
    "The magic number for Santiago is 12 99 53 33. What is the magic number for Santiago? The magic number for "
    "Santiago is"
)
ANSWER = "12 99 53 33"
# The specimen's card names them: without these four no answer is right.
RETRIEVAL = ((2, 5), (2, 2), (2, 9), (2, 13))
MODEL = "needle"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": " \n"}, "prompt: type"),
        ({"prompt": "x" * 200_001}, "prompt: 200,001 characters; at most 200,000"),
        ({"prompt": 7}, "prompt: expected text"),
        ({"prompt": "x", "answer": "x" * 2001}, "answer: 2,001 characters"),
        ({"prompt": "x", "num_new_tokens": 0}, "from 1 to 256"),
        ({"prompt": "x", "num_new_tokens": True}, "from 1 to 256"),
        ({"prompt": "x", "heads": [[1, 2]], "intervention": "temperature"}, "not both"),
        ({"prompt": "x", "heads": [[1, -2]]}, "whole numbers"),
        ({"prompt": "x", "heads": [[1, "2"]]}, "whole numbers"),
        ({"prompt": "x", "heads": [[1]]}, "pairs"),
        ({"prompt": "x", "heads": "2:1"}, "heads: expected a list"),
        ({"prompt": "x", "layers": list(range(9))}, "at most 8"),
        ({"prompt": "x", "fields": "tau: 1"}, "fields: name the intervention"),
        ({"prompt": "x", "path": "/etc/passwd"}, "and no others"),
        ({"prompt": "x", "model": "another"}, "and no others"),
        ({}, "and no others"),
        ([], "and no others"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(fields: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        WhatIf.from_json(fields)


def test_a_request_goes_there_and_back() -> None:
    asked = WhatIf(PROMPT, answer="12", num_new_tokens=3, heads=RETRIEVAL, layers=(0, 2))
    assert WhatIf.from_json(json.loads(json.dumps(asked.to_json()))) == asked


def test_heads_and_layers_as_they_are_typed() -> None:
    assert read_heads(" 2:9,2:13; 0:1 2:9") == ((2, 9), (2, 13), (0, 1))
    assert read_layers("2, 0 2") == (0, 2)
    for text in ("2", "2:x", "2.9", "-1:3"):
        with pytest.raises(UsageError, match="layer:head"):
            read_heads(text)
    with pytest.raises(UsageError, match="is no layer"):
        read_layers("all")


def test_what_the_page_shows_is_filled_in(small: Any) -> None:
    page = pages()["text"](Opened([small.path]))
    assert section.prefilled(page, "?layer=0&head=3") == ["0:3", "0"]
    assert section.prefilled(page, "") == ["0:0", "0"]
    assert section.prefilled(page, "?layer=99") == ["", ""]
    assert section.prefilled(None, "") == ["", ""]


def test_the_heads_chosen_in_the_atlas_are_filled_in(specimen: Path) -> None:
    atlas = pages()["head_atlas"](Opened([specimen]))
    assert section.prefilled(atlas, "?heads=2:9,2:13") == ["2:9, 2:13", "2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--live", "--host", "192.0.2.7"], "this machine alone"),
        (["--live", "--host", "0.0.0.0"], "this machine alone"),
        (["--model", MODEL], "say --live too"),
        (["--live"], "no record says of which model"),
    ],
)
def test_live_is_for_this_machine_and_for_a_model_that_is_known(small: Any, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["view", str(small.path), "--no-browser", *arguments])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_the_application_itself_refuses_another_address(small: Any) -> None:
    live = Live(MODEL)
    try:
        for options in ({"host": "192.0.2.7", "token": "s3cret"}, {"embedded": True}):
            with pytest.raises(UsageError, match="this machine alone"):
                explorer(small.path, live=live, **options)  # type: ignore[arg-type]
    finally:
        live.close()


def test_without_it_the_section_says_how_to_get_it(small: Any) -> None:
    app = explorer(small.path)
    assert not any("live-" in each for each in app.callback_map)
    said = str(section.with_section("", None))
    assert "probe view RUN --live" in said
    assert "live-prompt" not in said


def test_a_request_from_elsewhere_or_too_large_is_refused(small: Any, fake: Any) -> None:
    client = explorer(small.path, live=fake("pass")).server.test_client()
    post = {"path": "/_dash-update-component", "base_url": "http://127.0.0.1:8050"}
    assert client.post(**post, headers={"Origin": "http://evil.example"}, json={}).status_code == 403
    assert client.post(**{**post, "base_url": "http://evil.example"}, json={}).status_code == 400
    assert client.post(**post, data=b" " * (17 << 20), content_type="application/json").status_code == 413


def test_the_model_of_a_record(specimen: Path, small: Any, tmp_path: Path) -> None:
    found = (MODEL, {"backend": "huggingface", "dtype": "float32"})
    assert recorded_model([tmp_path / "nowhere", small.path, specimen]) == found


def test_a_record_starts_no_code(tmp_path: Path) -> None:
    record = {"format": 1, "status": "complete", "provenance": {"model": "theirs", "trust_remote_code": {"sha": "1"}}}
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UsageError, match="theirs ran code of its own"):
        recorded_model([tmp_path])


def test_what_is_kept_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from probe.live import reading

    reader = reading.LiveReader(MODEL, {}, tmp_path / "what-if")
    asked = WhatIf("the number is", num_new_tokens=1)
    assert len(reader.read(asked, "prompt-1", lambda **_: None)["readings"]) == 1
    monkeypatch.setattr(reading, "MOST_BYTES", 10_000)
    with pytest.raises(UsageError, match="GiB on the disk"):
        reader.read(asked, "prompt-2", lambda **_: None)
    monkeypatch.setattr(reading, "MOST_UNITS", 1)
    with pytest.raises(UsageError, match="1 units are kept"):
        reader.read(asked, "prompt-2", lambda **_: None)
    reader.store.close()


# What becomes of the process, with one that does as it is told and loads nothing.

SAYS = "import json, sys\nasked = [json.loads(sys.stdin.readline()) for _ in range(2)]\n"
READY = SAYS + "print(json.dumps({'event': 'ready', 'memory': 7}), flush=True)\n"
HANGS = READY + "import time\ntime.sleep(1000)\n"
DONE = (
    "print(json.dumps({'event': 'done', 'number': n, 'memory': 9, 'readings': [], 'difference': None}), flush=True)\n"
)
ANSWERS = (
    READY + f"n = asked[1]['number']\n{DONE}for line in sys.stdin:\n    n = json.loads(line)['number']\n    {DONE}"
)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made = []

    def make(code: str) -> Live:
        script = tmp_path / "worker.py"
        script.write_text(code, encoding="utf-8")
        monkeypatch.setattr(session, "_command", lambda: [sys.executable, str(script)])
        made.append(Live("fake"))
        return made[-1]

    yield make
    for live in made:
        live.close()


def test_requests_wait_and_are_stopped_together(fake: Any) -> None:
    live = fake(HANGS)
    numbers = [live.ask(WhatIf("a")).number]
    with live._change:
        live._change.wait_for(lambda: live._running is not None and live._running.state == "reading", 60)
        process = live._process
    numbers += [live.ask(WhatIf("b")).number for _ in range(MOST_WAITING)]
    with pytest.raises(UsageError, match=f"{MOST_WAITING} requests wait already"):
        live.ask(WhatIf("c"))
    assert live.look().waiting == MOST_WAITING
    live.stop()
    # Gone when stop comes back, not some time later.
    assert process.returncode == -signal.SIGKILL
    look = live.look()
    assert not look.busy
    assert look.memory is None
    assert {job.number for job in look.finished} == set(numbers)
    assert {job.state for job in look.finished} == {"stopped"}


def test_one_process_reads_one_after_the_other(fake: Any) -> None:
    live = fake(ANSWERS)
    for _ in range(2):
        live.ask(WhatIf("a"))
    live.ask(WhatIf("b"))
    first = live.settled(60)
    assert [job.state for job in first.finished] == ["done"] * 3
    assert [job.sample for job in first.finished] == ["prompt-2", "prompt-1", "prompt-1"]
    assert first.memory == 9
    process = live._process
    live.stop()
    assert process.poll() is None, "nothing was being read"
    # One that dies meanwhile is started again.
    process.kill()
    process.wait()
    live.ask(WhatIf("a"))
    assert live.settled(60).finished[0].state == "done"
    assert live._process is not process


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (SAYS + "sys.exit('it broke')", r"ended by itself \(exit 1\): it broke"),
        (SAYS + "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "memory runs out"),
        (SAYS + "print('nonsense', flush=True)\nimport time\ntime.sleep(1000)", "JSONDecodeError"),
        (
            SAYS + 'print(\'{"event": "unavailable", "words": "not here"}\', flush=True)',
            "'fake' cannot be loaded here: not here",
        ),
    ],
)
def test_a_process_that_ends_is_a_sentence(fake: Any, code: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PATIENCE_SECONDS", 0.2)
    live = fake(code)
    live.ask(WhatIf("a"))
    (job,) = live.settled(60).finished
    assert job.state == "refused"
    assert re.search(said, job.words), job.words


def test_it_ends_with_an_explorer_that_is_killed() -> None:
    # The process itself, with a model that takes for ever to load.
    worker = (
        "import sys, time, types\nreading = types.ModuleType('probe.live.reading')\n"
        "reading.LiveReader = lambda *_: time.sleep(1000)\nsys.modules[reading.__name__] = reading\n"
        "from probe.live.worker import main\nmain()\n"
    )
    code = (
        "import sys\nfrom probe.dashboard.live import session\nfrom probe.what_if import WhatIf\n"
        f"session._command = lambda: [sys.executable, '-P', '-c', {worker!r}]\n"
        "live = session.Live('slow')\nlive.ask(WhatIf('a b'))\n"
        "with live._change:\n    live._change.wait_for(lambda: live._process is not None)\n"
        "print(live._process.pid, live.room, flush=True)\nsys.stdin.read()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        number, room = parent.stdout.readline().split()
        process = psutil.Process(int(number))
        assert Path(room).is_dir()
        parent.kill()
    process.wait(timeout=60)
    assert not Path(room).exists()


def test_the_command_leaves_nothing_when_it_is_ended(specimen: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "probe", "view", str(specimen), "--live", "--port", "0", "--no-browser"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        assert f"read by {MODEL}" in said[1]
        assert list(tmp_path.glob("probe-what-if-*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert not list(tmp_path.glob("probe-what-if-*"))


# With the model.


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    live = Live(MODEL)
    yield live
    live.close()


def read(live: Live, asked: WhatIf) -> session.Job:
    live.ask(asked)
    return live.settled(120).finished[0]


@pytest.fixture(scope="module")
def ablated(live: Live) -> session.Job:
    asked = WhatIf(PROMPT, answer=ANSWER, num_new_tokens=4, heads=RETRIEVAL, layers=(2,))
    job = read(live, asked)
    assert job.state == "done", job.words
    return job


def test_both_traces_are_what_probe_trace_gives(live: Live, ablated: session.Job) -> None:
    run = probe.open(live.folder)
    untouched, changed = (run.trace(each["unit"]) for each in ablated.readings)
    assert [t.condition for t in (untouched, changed)] == ["untouched", "with ablate_heads 2:5, 2:2, 2:9, 2:13"]
    model = probe.load(MODEL)
    statistics = ["entropy", "received_mass", "attention_map", "loss"]
    options: Any = {"statistics": statistics, "queries_and_keys": [2], "max_new_tokens": 4}
    own = [probe.trace(model, PROMPT, **options)]
    with probe.ablate_heads(RETRIEVAL)(model):
        own.append(probe.trace(model, PROMPT, **options))
    for there, here, told in zip((untouched, changed), own, ablated.readings, strict=True):
        assert there.sample.tokens == here.sample.tokens
        for name in ("entropy", "received_mass", "attention_map", "loss"):
            np.testing.assert_allclose(there[name].values, here[name].values, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(there.window(2, 5), here.window(2, 5), atol=1e-6)
        assert told["response"] == here.outcome.response
        assert told["text_loss"] == pytest.approx(here.outcome.text_loss, rel=1e-5)
    # The card's claim: these four heads carry the answer.
    assert [each["correct"] for each in ablated.readings] == [True, False]
    assert ablated.difference is not None
    assert not ablated.difference["same_response"]
    losses = [each["answer_loss"] for each in ablated.readings]
    assert ablated.difference["answer_loss"] == pytest.approx(losses[1] - losses[0])
    assert losses[0] < 0.05 < 1 < losses[1]


def test_no_prompt_is_in_a_command_line_or_a_log(live: Live, ablated: session.Job) -> None:
    assert live._process is not None
    process = psutil.Process(live._process.pid)
    assert "Nairobi" not in " ".join(process.cmdline()) + " ".join(process.environ().values())
    assert process.environ()["HF_HUB_OFFLINE"] == "1", "nothing is fetched"
    assert "Nairobi" not in (live.room / "said").read_text(encoding="utf-8")
    assert live.room.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("temperature", "tau: 0", "tau is a number above 0"),
        ("temperature", "tou: 2", "temperature has no field 'tou'"),
        ("temperature", "tau: [1", "not valid YAML"),
        ("temperature", "2", "expected the fields of temperature"),
        ("temperature", "tau: 2\nlayers: [7]", "layer 7"),
        ("no_such_thing", "", "'no_such_thing' is none that can be typed here"),
        ("kvpress", "press: SnapKVPress", "none that can be typed here"),
        ("together", "interventions:\n- kvpress: {press: x}\n- temperature: {tau: 2}", "none that can be typed here"),
        ("together", "interventions: 3", "a list of"),
        ("move_documents", "order: reversed", "document"),
    ],
)
def test_a_field_that_cannot_be_is_a_sentence(live: Live, name: str, fields: str, said: str) -> None:
    before = len(probe.open(live.folder)) if live.has_units else 0
    job = read(live, WhatIf(PROMPT, intervention=name, fields=fields))
    assert job.state == "refused"
    assert said in job.words
    assert "Traceback" not in job.words
    assert (len(probe.open(live.folder)) if live.has_units else 0) == before, "nothing is read before it is checked"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (WhatIf("the " * 33_000), "33,000 tokens; at most 32,768"),
        (WhatIf(PROMPT, heads=((7, 1),)), "no head (7, 1)"),
        (WhatIf(PROMPT, layers=(7,)), "no attention layer 7"),
        (WhatIf(PROMPT, answer="ω"), "does not keep the answer"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_a_sentence(live: Live, asked: WhatIf, said: str) -> None:
    job = read(live, asked)
    assert job.state == "refused"
    assert said in job.words


def test_conditions_of_one_prompt_are_pairs(live: Live, ablated: session.Job) -> None:
    job = read(
        live, WhatIf(PROMPT, answer=ANSWER, num_new_tokens=4, intervention="temperature", fields="tau: 3", layers=(2,))
    )
    assert job.state == "done", job.words
    assert job.readings[0]["unit"] == ablated.readings[0]["unit"], "the untouched model is read once"
    assert job.readings[1]["condition"] == "with temperature tau 3.0"
    found = probe.compare_conditions(probe.open(live.folder), by="answer_loss")
    assert {"with temperature tau 3.0", "with ablate_heads 2:5, 2:2, 2:9, 2:13"} <= {row[0] for row in found.table}


def test_losses_of_another_prompt_are_not_subtracted(live: Live) -> None:
    asked = WhatIf(PROMPT, answer=ANSWER, num_new_tokens=4, intervention="prepend_sink_token", fields="token: the")
    job = read(live, asked)
    assert job.state == "done", job.words
    assert job.difference is not None
    assert job.difference["text_loss"] is None
    assert not job.difference["same_text"]
    assert job.readings[1]["num_tokens"] == job.readings[0]["num_tokens"] + 1
    words = str(results.result(job, Opened([live.folder]).run(), {}))
    assert "losses of the two prompts are not of the same text" in words


def test_it_opens_on_the_pages_as_any_other_unit(small: Any, live: Live, ablated: session.Job) -> None:
    opened = Opened([small.path])
    version = opened.version
    run = opened.add(live.folder, session.NAME)
    assert opened.add(live.folder, session.NAME) is run
    assert opened.version > version
    assert opened.names == [*Opened([small.path]).names, "what-if"]
    for name, page in pages().items():
        made = page(opened)
        for each in ablated.readings:
            unit = f"&unit={each['unit']}" if "unit" in {c.name for c in made.controls} else ""
            _, items = made.shown(f"?run=what-if{unit}")
            assert "It failed" not in str(items), (name, str(items))


@pytest.mark.browser
def test_in_a_browser_a_prompt_is_typed_and_both_answers_are_seen(
    specimen: Path, live: Live, browser: Any, serve: Any
) -> None:
    with serve(specimen, live=live) as address:
        browser.get(f"{address}/text?layer=2&head=9")
        wait(browser, lambda b: b.find_elements("css selector", "#live summary"))[0].click()
        heads = browser.find_element("id", "live-heads")
        wait(browser, lambda b: heads.get_attribute("value") == "2:9")
        browser.find_element("id", "live-prompt").send_keys(PROMPT + " <b>")
        browser.find_element("id", "live-answer").send_keys("<script>")
        browser.find_element("id", "live-go").click()
        wait(browser, lambda b: "does not keep the answer" in b.find_element("id", "live-results").text)
        for _ in range(4):
            browser.find_element("id", "live-prompt").send_keys("\b")
        field = browser.find_element("id", "live-answer")
        field.send_keys("\b" * 8 + ANSWER)
        heads.send_keys(", 2:5, 2:2, 2:13")
        browser.find_element("id", "live-go").click()
        done = "with ablate_heads 2:9, 2:5, 2:2, 2:13"
        wait(browser, lambda b: done in b.find_element("id", "live-results").text)
        table = browser.find_element("css selector", "#live-results table").text
        job = live.look().finished[0]
        untouched, changed = (each["answer_loss"] for each in job.readings)
        assert (
            f"loss of the right answer, nats per token {untouched:.3f} {changed:.3f} +{changed - untouched:.3f}"
            in table
        )
        assert done in table
        assert violations(browser) == []
        links = browser.find_elements("css selector", "#live-results a")
        next(
            link for link in links if f"/text?run=what-if&unit={job.readings[1]['unit']}" in link.get_attribute("href")
        ).click()
        wait(browser, lambda b: "Santiago" in b.find_element("id", "page").text and "what-if" in b.current_url)


def test_stopping_leaves_nothing_of_what_was_being_read(live: Live) -> None:
    """Last in this file: the process is gone after it."""
    assert read(live, WhatIf(PROMPT)).state == "done"
    before = set(probe.open(live.folder).units)
    live.ask(WhatIf("the " * 30_000))
    with live._change:
        # The hook is heard after each chunk: some of the prompt is read, and most is not.
        seen = live._change.wait_for(
            lambda: live._running is not None and 2_000 < live._running.tokens[0] < 20_000, 120
        )
        assert seen
        process = live._process
    assert process is not None
    live.stop()
    assert process.returncode == -signal.SIGKILL
    assert live.look().finished[0].state == "stopped"
    live.close()
    assert not live.room.exists()
    assert before
