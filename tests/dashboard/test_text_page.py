"""The page *Text*: the tokens that are there, with the values that were planted, at any length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dash import dcc
from selenium.webdriver.common.keys import Keys

from probe.analyses.charts.token_profile import MOST_POINTS, token_profile
from probe.analyses.measures.colour_steps import colour_steps
from probe.analyses.measures.context_gain import shorter_prompt
from probe.analyses.measures.token_values import token_values
from probe.dashboard.application.explorer import explorer
from probe.dashboard.application.opened import Opened
from probe.dashboard.reading.prompt import MOST_CHARACTERS, MOST_TOKENS, Prompt
from probe.dashboard.text import text
from probe.errors import MissingStatistic, UsageError
from probe.outcome import Outcome
from probe.sample import Sample, Span
from probe.storage.array import Array
from probe.storage.store import RunStore, write_json
from probe.storage.trace_store import open as open_trace
from tests.dashboard.conftest import HOSTILE, LONG, cells, keep_vectors, map_arrays, probabilities, wait
from tests.dashboard.test_every_page import panels

LENGTH, ANSWERED, HEADS, SCALE = 40, 3, 2, 0.9
SEEN = LENGTH + ANSWERED - 1
"""Tokens that were read: the prompt and all of the answer but its last."""
BASE = "http://127.0.0.1:8050"
GIVEN = (-0.5, -0.25, -2.0)


class Planted:
    """Units in which every number is known: attention by definition, losses made up."""

    def __init__(self, path: Path) -> None:
        random = np.random.default_rng(3)
        self.path = path
        query, key = random.normal(size=(2, HEADS, SEEN, 8)).astype(np.float32)
        self.p = np.stack([probabilities(q, k, SCALE) for q, k in zip(query, key, strict=True)])
        logits = np.einsum("hqc,hkc->hqk", query, key, dtype=np.float64) * SCALE
        logits[:, *np.triu_indices(SEEN, 1)] = -np.inf
        log_z = np.log(np.exp(logits).sum(-1)).astype(np.float32)
        self.loss = np.concatenate([[np.nan], random.gamma(1, 2, SEEN - 1)]).astype(np.float32)
        self.tokens = tuple(int(token) for token in random.integers(0, len(HOSTILE), LENGTH))
        self.spans = (Span("needle", 5, 15), Span("value", 8, 12), Span("<b>q</b>", 36, 40))
        sample = Sample("planted", self.tokens, self.spans, answer_tokens=(4, 5, 6), answer="x")
        secret = Sample.from_json(
            {**sample.to_json(), "tokens": {"withheld": LENGTH}, "answer_tokens": {"withheld": 3}}
        )
        outcome = Outcome("y", (7, 8, 9), False, "exact", GIVEN, text_loss=1.5)
        hidden = Outcome.from_json({**outcome.to_json(), "response_tokens": {"withheld": ANSWERED}})
        received = {
            "received_mass": Array(("head", "key"), self.p.sum(1).astype(np.float32), "probability"),
            "received_mass_num_queries": Array(("key",), (SEEN - np.arange(SEEN)).astype(np.float32), "queries"),
        }
        rows = self.p[:, LENGTH - 1 :]
        top = np.argsort(-rows, -1)[..., :4]
        best = np.take_along_axis(rows, top, -1).astype(np.float32)
        mass = np.stack([rows[..., each.start : each.stop].sum(-1) for each in self.spans], -1).astype(np.float32)
        names = np.array([each.name for each in self.spans])
        of_rows = {
            "top_keys": Array(("head", "row", "rank"), top),
            "top_keys_probability": Array(("head", "row", "rank"), best),
            "span_mass": Array(("head", "row", "span"), mass, coordinates={"span": names}),
        }
        starts = np.arange(0, SEEN, 8)
        self.pooled = np.add.reduceat(self.p.sum(1), starts, -1) / np.diff(starts, append=SEEN)
        with RunStore(path) as store:
            with store.begin_unit("full", condition="baseline", sample=sample) as writer:
                for layer in range(4):
                    writer.write_layer(
                        layer, received if layer < 3 else {"entropy": Array(("head", "query"), self.p.sum(2))}
                    )
                writer.write_layer(0, of_rows)
                keep_vectors(writer, 1, query, key, log_z, SCALE)
                maps = [cells(p, 8) for p in self.p]
                writer.of_layer(2).write(map_arrays(*(np.stack([each[i] for each in maps]) for i in (0, 1)), 8))
                writer.write({"loss": Array(("token",), self.loss, "nats", coordinates={"token": np.arange(SEEN)})})
                writer.write_token_text(dict(enumerate(HOSTILE)))
                writer.note(num_queries=SEEN)
                writer.commit(outcome)
            with store.begin_unit("private", condition="secret", sample=secret) as writer:
                blocks = {"key_block": starts}
                pooled = Array(
                    ("head", "key_block"), self.pooled.astype(np.float32), coordinates=blocks, block_tokens=8
                )
                writer.write_layer(0, {"received_mass": pooled})
                writer.note(num_queries=SEEN, private=True)
                writer.commit(hidden)
            with store.begin_unit("ids", condition="no text", sample=Sample("ids", (3, 1, 2))) as writer:
                writer.commit()
        write_json(path / "run.json", {"format": 1, "status": "complete"})


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted") / "run")


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompts before the same due words, of 8 tokens and of 20, the last 7 tokens the same in both."""
    path = tmp_path_factory.mktemp("prose") / "run"
    text_of = tuple(range(100, 119))
    with RunStore(path) as store:
        for size, losses, given in ((8, 3.0, (-2.0, -1.0)), (20, 1.0, (-0.5, -1.25))):
            facts = {
                "distant": "kept",
                "near": 7,
                "seed": 0,
                "workload_seed": 0,
                "text": "english",
                "disturbed_tokens": 0,
            }
            sample = Sample(f"plain_text-{size}-s0", (0, *text_of[-size + 1 :]), answer_tokens=(7, 8), facts=facts)
            with store.begin_unit(f"u{size}", condition="baseline", sample=sample) as writer:
                loss = losses + 0.1 * np.arange(size)
                writer.write({"loss": Array(("token",), loss, "nats", coordinates={"token": np.arange(size)})})
                writer.commit(Outcome("", (), None, "none", given))
    write_json(path / "run.json", {"format": 1, "status": "complete"})
    return path


def full(planted: Planted) -> Any:
    return open_trace(planted.path).trace("full")


def test_what_a_token_receives_is_its_column(planted: Planted) -> None:
    trace, columns = full(planted), planted.p.sum(1)
    one = token_values(trace, layer=2, head=1)
    np.testing.assert_allclose(one.values[:SEEN], columns[1], rtol=1e-6)
    assert np.isnan(one.values[SEEN:]).all()
    assert one.values.size == LENGTH + ANSWERED
    np.testing.assert_allclose(token_values(trace, layer=0).values[:SEEN], columns.sum(0), rtol=1e-6)
    each = token_values(trace, layer=0, head=0, per_query=True)
    np.testing.assert_allclose(each.values[:SEEN], columns[0] / (SEEN - np.arange(SEEN)), rtol=1e-6)
    assert "can see it" in each.words
    assert one.largest(2)[0] == (int(columns[1].argmax()), pytest.approx(columns[1].max()))
    with pytest.raises(MissingStatistic, match=r"statistics=\['received_mass'\]"):
        token_values(trace, layer=3, head=0)
    with pytest.raises(UsageError, match="no layer 9 with a head 0"):
        token_values(trace, layer=9)


def test_pooled_tokens_share_what_their_block_says(planted: Planted) -> None:
    trace = open_trace(planted.path).trace("private")
    found = token_values(trace, layer=0, head=1)
    expected = np.repeat(planted.pooled[1], 8)[:SEEN]
    np.testing.assert_allclose(found.values[:SEEN], expected, rtol=1e-6)
    assert found.block_tokens == 8
    assert "blocks of 8 tokens" in found.words
    assert all(at % 8 == 0 for at, _ in found.largest(3))


def test_what_a_query_attends_to_is_exact_where_it_was_kept(planted: Planted) -> None:
    for query in (0, 17, LENGTH - 1, SEEN - 1):
        found = token_values(full(planted), "query", layer=1, head=1, query=query)
        np.testing.assert_allclose(found.values[: query + 1], planted.p[1, query, : query + 1], rtol=1e-4, atol=1e-7)
        assert np.isnan(found.values[query + 1 :]).all()
        assert found.words.startswith("Exact p of query")
    with pytest.raises(UsageError, match=f"those of this unit are 0 to {SEEN - 1}"):
        token_values(full(planted), "query", layer=1, head=1, query=SEEN)


def test_of_a_query_that_answered_its_rows_are_told_apart(planted: Planted) -> None:
    query = LENGTH
    found = token_values(full(planted), "query", layer=0, head=0, query=query)
    p = planted.p[0, query]
    top = set(np.argsort(-p)[:4].tolist())
    for at in range(LENGTH):
        inside = min((each for each in planted.spans if each.start <= at < each.stop), key=len, default=None)
        if at in top:
            assert found.values[at] == pytest.approx(p[at], rel=1e-5)
        elif inside is None:
            assert np.isnan(found.values[at])
        else:
            share = p[inside.start : inside.stop].sum() / len(inside)
            assert found.values[at] == pytest.approx(share, rel=1e-5)
    assert "top_keys" in found.words
    assert "share its mass" in found.words
    with pytest.raises(MissingStatistic, match=r"queries_and_keys: \[0\]"):
        token_values(full(planted), "query", layer=0, head=0, query=3)
    with pytest.raises(MissingStatistic):
        token_values(full(planted), "query", layer=3, head=0, query=query)


def test_else_the_map_says_what_its_cells_do(planted: Planted) -> None:
    query = 21
    found = token_values(full(planted), "query", layer=2, head=1, query=query)
    block = planted.p[1, 16:24]
    for start in range(0, 24, 8):
        share = block[:, start : start + 8].sum(1).mean() / 8
        np.testing.assert_allclose(found.values[start : start + 8], share, rtol=1e-5)
    assert np.isnan(found.values[24:]).all()
    assert "mean over queries 16 to 23" in found.words
    assert "blocks of 8 keys" in found.words or "block of 8 keys" in found.words


def test_the_loss_is_the_captured_one_and_the_answers(planted: Planted) -> None:
    found = token_values(full(planted), "loss")
    np.testing.assert_array_equal(found.values[:SEEN], planted.loss.astype(np.float64))
    np.testing.assert_allclose(found.answer, [0.5, 0.25, 2.0])
    with pytest.raises(MissingStatistic, match="no loss was captured"):
        token_values(open_trace(planted.path).trace("ids"), "loss")


def test_the_gain_is_what_the_longer_prompt_takes_off(prose: Path) -> None:
    run = open_trace(prose)
    shorter = shorter_prompt(run, run.trace("u20"))
    assert shorter.unit == "u8"
    found = token_values(run.trace("u20"), "context_gain", shorter=shorter)
    np.testing.assert_allclose(found.answer, [1.5, -0.25])
    # 3 + 0.1 i after the short prompt, 1 + 0.1 (i + 12) after the long one.
    np.testing.assert_allclose(found.values[13:], 2.0 - 1.2)
    assert np.isnan(found.values[:13]).all()
    with pytest.raises(MissingStatistic, match="the shortest"):
        shorter_prompt(run, run.trace("u8"))


def test_steps_are_even_on_their_scale() -> None:
    log = colour_steps(np.array([np.nan, 0.0, *[1e-9] * 9, 0.01, 1.0]), "log")
    assert (log.kind, log.low, log.high) == ("log", pytest.approx(1e-5), 1.0)
    np.testing.assert_allclose(log.shares(np.array([0.0, 1e-9, 1e-5, 10**-2.5, 1.0])), [0, 0, 0, 0.5, 1], atol=1e-12)
    assert np.isnan(log.shares(np.array([np.nan]))).all()
    np.testing.assert_allclose(log.edges(), 10.0 ** np.linspace(-5, 0, 9))
    linear = colour_steps(np.array([1.0, 4.0]), "linear")
    np.testing.assert_allclose(linear.shares(np.array([0.0, 1.0, 4.0])), [0, 0.25, 1])
    signed = colour_steps(np.array([-1.0, 4.0]), "log")
    assert signed.kind == "signed"
    np.testing.assert_allclose(signed.shares(np.array([-4.0, 0.0, 2.0])), [0, 0.5, 0.75])
    assert colour_steps(np.full(3, np.nan), "log").edges()[-1] == 1


def asked(items: Any) -> dict[str, Any]:
    return dict(next(each.data for each in items if isinstance(each, dcc.Store)))


def test_the_page_begins_with_what_was_captured(planted: Planted, prose: Path) -> None:
    page = text(Opened([planted.path]))
    view, items = page.shown("")
    assert (view["unit"], view["colour"], view["query"]) == ("full", "received", "")
    said = asked(items)
    assert said["sections"] == [
        ["prompt", 0, 40, ""],
        ["response", 40, 43, "What the model answered, wrong"],
        ["answer", 43, 46, said["sections"][2][3]],
    ]
    assert said["spans"] == [["needle", 5, 15], ["value", 8, 12], ["<b>q</b>", 36, 40]]
    assert text(Opened([prose])).shown("")[0]["colour"] == "loss"
    view, _ = page.shown("?unit=full&colour=query&layer=1")
    assert view["query"] == str(LENGTH - 1)
    assert not panels(page.shown("?profile=off")[1])
    assert "Σ of the attention" in str(page.shown("?profile=off")[1])
    # A query of another, longer prompt.
    assert page.shown("?query=4000")[0]["query"] == str(LENGTH + ANSWERED - 1)
    for address in ("?colour=red", "?query=x", "?at=-1", f"?find={'x' * 201}"):
        assert "Store" not in str(page.shown(address)[1])


@pytest.mark.parametrize("colour", ["received", "per-query", "query", "loss", "gain", "none"])
def test_whatever_the_colour_the_text_is_there(planted: Planted, colour: str) -> None:
    page = text(Opened([planted.path]))
    for unit in ("full", "private", "ids"):
        _, items = page.shown(f"?unit={unit}&colour={colour}")
        said = asked(items)
        coloured = colour in {"full": ("received", "per-query", "query", "loss"), "private": ("received", "loss")}.get(
            unit, ()
        )
        assert (said["values"] is not None) == coloured
        assert ("Nothing to colour by" in str(items)) == (not coloured and colour != "none")
        for panel in panels(items):
            *before, last = panel.python.split("\n")
            names: dict[str, Any] = {}
            exec("\n".join([*before, f"made = {last}"]), names)
            assert names["made"] == panel.figure


def test_the_table_holds_every_token(planted: Planted) -> None:
    (panel,) = panels(text(Opened([planted.path])).shown("?colour=loss")[1])
    columns, rows = panel.rows()
    assert columns == ("part", "position", "token_id", "text", "loss")
    assert len(rows) == LENGTH + ANSWERED + 3
    assert rows[7][:3] == ("prompt", 7, planted.tokens[7])
    assert rows[7][4] == planted.loss[7]
    assert rows[-1][1:3] == (2, 6)
    assert rows[-1][4] == 2.0


def test_tokens_come_by_range_and_no_further(planted: Planted, long: Any) -> None:
    client = explorer(planted.path).server.test_client()
    found = client.get("/tokens/words/3/9", base_url=BASE)
    assert found.json["ids"] == list(planted.tokens[3:9])
    values = client.get("/tokens/values/3/9?layer=2&head=1", base_url=BASE).json
    np.testing.assert_allclose(values["values"], planted.p[1].sum(0)[3:9], rtol=1e-3)
    shares = colour_steps(token_values(full(planted), layer=2, head=1).values, "log").shares(planted.p[1].sum(0)[3:9])
    np.testing.assert_allclose(values["shares"], 1000 * shares, atol=1)
    for path, said in (
        ("/tokens/words/0/47", "between 0 and 46"),
        ("/tokens/words/9/9", "at most"),
        ("/tokens/secrets/0/9", "not 'secrets'"),
        ("/tokens/values/0/9?layer=3", "was not captured"),
        ("/tokens/values/0/9?colour=none", "by nothing"),
        ("/tokens/values/0/9?run=elsewhere", "elsewhere"),
    ):
        answer = client.get(path, base_url=BASE)
        assert (answer.status_code, said in answer.json["problem"]) == (400, True), path
    assert client.get("/tokens/words/0/9", base_url="http://evil.example").status_code == 400
    assert client.get("/tokens/words/0/9", base_url=BASE, headers={"Origin": "http://evil.example"}).status_code == 403
    page = text(Opened([long.path]))
    with pytest.raises(UsageError, match="at most 2,048"):
        page.tokens("words", 0, MOST_TOKENS + 1, "")
    assert page.tokens("words", 65_536, 65_538, "")["words"] == [f" w{at * 7919 % 50_000}" for at in (65_536, 65_537)]


def test_a_token_of_megabytes_is_cut_and_says_so(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store, store.begin_unit("u", sample=Sample("s", (0,) * MOST_TOKENS)) as writer:
        writer.write_token_text({0: "\u202e" * 1_000_000})
        writer.commit()
    write_json(tmp_path / "run.json", {"format": 1, "status": "complete"})
    found = Prompt(open_trace(tmp_path).trace("u")).words(0, MOST_TOKENS)
    assert len(json.dumps(found, ensure_ascii=False).encode()) < 1_500_000
    assert found[0].endswith("…⟨1,000,000 characters⟩")
    assert found[0].startswith("⟨U+202E⟩" * (MOST_CHARACTERS // 8))


def test_found_is_what_stands_there_across_tokens(planted: Planted) -> None:
    prompt = Prompt(full(planted))
    pieces = [HOSTILE[int(token)] for token in prompt.ids]
    joined = "".join(pieces).lower()
    for wanted in ("THE", "<", "window.ran=1", pieces[3] + pieces[4], "nowhere", ".*"):
        places, at = [], joined.find(wanted.lower())
        while at >= 0:
            ends = np.cumsum([len(piece) for piece in pieces])
            places.append((int((ends <= at).sum()), int((ends <= at + len(wanted) - 1).sum()) + 1))
            at = joined.find(wanted.lower(), at + len(wanted))
        found = prompt.find(wanted)
        assert (found.number, list(found.places)) == (len(places), places)
    _, items = text(Opened([planted.path])).shown("?unit=private&find=x")
    assert "this trace is private" in str(items)
    assert asked(items)["hits"] is None


def test_what_was_withheld_stays_so(planted: Planted) -> None:
    page = text(Opened([planted.path]))
    found = page.tokens("words", 0, 46, "?unit=private")
    assert (set(found["words"]), set(found["ids"])) == ({"▪"}, {-1})
    assert page.tokens("words", 0, 3, "?unit=ids")["words"] == ["⟨token 3⟩", "⟨token 1⟩", "⟨token 2⟩"]
    assert "ids" in str(page.shown("?unit=ids")[1])


def test_a_long_prompt_is_drawn_by_its_means_and_largest(long: Any) -> None:
    trace = open_trace(long.path).trace("long")
    query = 100_000
    figure = token_profile(trace, "query", layer=1, head=0, query=query)
    score = np.exp(long.query[0][query // 64] @ long.key[0].T - long.log_z[0][query])
    p = np.repeat(score, 64)[: query + 1]
    mean, largest = figure.plotly["data"]
    size = -(-LONG // MOST_POINTS)
    np.testing.assert_allclose(mean["y"][5], p[5 * size : 6 * size].mean(), rtol=1e-3)
    np.testing.assert_allclose(largest["y"][400], p[400 * size : 401 * size].max(), rtol=1e-3)
    assert len(mean["x"]) <= MOST_POINTS
    assert f"{size} tokens each" in figure.caption


LOADED = """
const list = document.getElementById('text-tokens');
if (!list) return [];
const box = list.getBoundingClientRect();
return [...document.querySelectorAll('.reader-token')].filter((each) => {
  const at = each.getBoundingClientRect();
  return at.top >= box.top - 2 && at.bottom <= box.bottom + 2 && (!arguments[0] || each.dataset.value !== undefined);
}).map((each) => [Number(each.dataset.slot), each.textContent, each.getAttribute('aria-label')]);
"""


READ = """
const said = [...document.querySelectorAll('#text-reading dt')].filter((each) => each.textContent === 'attention');
return said.length ? Number(said[said.length - 1].nextSibling.textContent) : null;
"""


def loaded(browser: Any, least: int, valued: bool = True) -> list[Any]:
    """Wait for tokens in the window, at a slot of at least so many; return slot, text and label."""
    return list(wait(browser, lambda b: [e for e in b.execute_script(LOADED, valued) if e[0] >= least]))


@pytest.mark.browser
def test_in_the_middle_of_131072_tokens_the_right_ones_stand(long: Any, browser: Any, serve: Any) -> None:
    with serve(long.path) as address:
        browser.get(f"{address}/text?layer=1&head=1&colour=query&query=131071")
        loaded(browser, 0)
        browser.execute_script("const r = document.getElementById('text-tokens'); r.scrollTop = r.scrollHeight / 2")
        there = loaded(browser, 50_000)
        assert all(abs(slot - LONG / 2) < 2_000 for slot, *_ in there)
        assert all(word == f" w{slot * 7919 % 50_000}" for slot, word, _ in there)
        assert browser.execute_script("return document.querySelectorAll('.reader-token').length") < 2_000
        slot = there[len(there) // 2][0]
        p = np.exp(long.query[1][-1] @ long.key[1][slot // 64] - long.log_z[1][131_071])
        label = next(label for at, _, label in there if at == slot)
        assert float(label.rpartition(" ")[2]) == pytest.approx(p, rel=0.01)
        # A click chooses the query; what it attends to is exact too.
        browser.find_element("id", f"text-token-{slot}").click()
        wait(browser, lambda b: f"query={slot}" in b.current_url)
        wait(browser, lambda b: f"Exact p of query {slot:,}" in b.find_element("id", "text-content").text)
        p = np.exp(long.query[1][slot // 64] @ long.key[1][slot // 64] - long.log_z[1][slot])
        wait(browser, lambda b: b.execute_script(READ) == pytest.approx(p, rel=1e-3))
        # A control takes along where one has scrolled to.
        wait(browser, lambda b: "at=" in b.current_url)
        browser.execute_script("document.getElementById('text-numbers').click()")
        wait(browser, lambda b: "numbers=on" in b.current_url and "at=" in b.current_url)
        loaded(browser, 50_000)
        # Reloaded, it is the same view.
        browser.refresh()
        first = int(browser.current_url.partition("at=")[2].partition("&")[0])
        assert first in [at for at, *_ in loaded(browser, 50_000)]
        assert f"at={first}" in browser.current_url
        said = browser.find_element("id", "text-reading").text
        assert f"{slot:,}" in said


@pytest.mark.browser
def test_a_search_leads_to_what_it_finds(long: Any, browser: Any, serve: Any) -> None:
    with serve(long.path) as address:
        browser.get(f"{address}/text?layer=1&colour=none")
        loaded(browser, 0, False)
        browser.find_element("tag name", "body").send_keys("/")
        field = browser.switch_to.active_element
        assert field.get_attribute("id") == "text-find"
        field.send_keys("w7919 ")
        # Token 7919 stands at every position i with i · 7919 ≡ 7919 modulo 50,000.
        for number, slot in ((1, 1), (2, 50_001), (3, 100_001), (1, 1)):
            wait(browser, lambda b, n=number: b.find_element("id", "text-hits").text == f"{n} of 3")
            now = wait(browser, lambda b: b.find_elements("css selector", ".reader-hit-now"))
            assert [each.get_attribute("data-slot") for each in now] == [str(slot), str(slot + 1)]
            assert slot in [at for at, *_ in loaded(browser, slot, False)]
            field.send_keys(Keys.ENTER)
        browser.find_element("id", "text-position").send_keys("131,071", Keys.ENTER)
        assert loaded(browser, 131_071, False)[-1][1] == f" w{131_071 * 7919 % 50_000}"


@pytest.mark.browser
def test_hostile_tokens_stand_there_and_none_runs(planted: Planted, browser: Any, serve: Any) -> None:
    with serve(planted.path) as address:
        browser.get(f"{address}/text?colour=loss&numbers=on")
        there = {slot: word for slot, word, _ in loaded(browser, 0)}
        shown = {"\n": "↵", "\u202egnp": "⟨U+202E⟩gnp", "a\u2028b": "a⟨U+2028⟩b", "\x1b[31m": "⟨U+001B⟩[31m"}
        for slot, token in enumerate(planted.tokens):
            if slot in there:
                assert there[slot] == shown.get(HOSTILE[token], HOSTILE[token])
        assert len(there) > 10
        names = browser.execute_script(
            "return [...document.querySelectorAll('.reader-name')].map((e) => e.textContent)"
        )
        assert names == ["needle", "value", "<b>q</b>"]
        # By keyboard alone: to the tokens, and along them.
        tokens = browser.find_element("id", "text-tokens")
        tokens.send_keys(Keys.ARROW_RIGHT)
        tokens.send_keys(Keys.ARROW_RIGHT)
        wait(browser, lambda b: "query=1" in b.current_url)
        assert tokens.get_attribute("aria-activedescendant") == "text-token-1"
        tokens.send_keys(Keys.ARROW_LEFT)
        wait(browser, lambda b: "query=0" in b.current_url)
        browser.back()
        wait(browser, lambda b: "query=1" in b.current_url)
        assert browser.execute_script("return window.ran") is None
