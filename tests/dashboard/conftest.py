"""Traces for the explorer: a small one checked pair by pair, a long one whose map is known in closed form."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from filelock import FileLock

from probe.sample import Sample, Span
from probe.storage.array import Array
from probe.storage.store import RunStore, UnitWriter, write_json
from tests.dashboard.watching import WATCH

LENGTH, NUM_HEADS, CHANNEL, SCALE = 300, 4, 8, 0.7
LONG, BLOCK = 131_072, 64

HOSTILE = (
    "<s>", "</script><script>window.ran=1</script>", "<img src=x onerror=window.ran=1>", "<b>bold</b>", " the", "\n",
    "\u202egnp", "a\u2028b", "{{7*7}}", "%{x}", "&lt;", "\x1b[31m",
)  # fmt: skip


def probabilities(query: np.ndarray[Any, Any], key: np.ndarray[Any, Any], scale: float) -> np.ndarray[Any, Any]:
    """Return causal attention [query key] in float64, by definition."""
    logits = query.astype(np.float64) @ key.astype(np.float64).T * scale
    logits[np.triu_indices(len(logits), 1)] = -np.inf
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def keep_vectors(
    writer: UnitWriter,
    layer: int,
    query: np.ndarray[Any, Any],
    key: np.ndarray[Any, Any],
    log_sum_exp: np.ndarray[Any, Any],
    scale: float,
) -> None:
    """Write queries [head query channel], keys [kv_head key channel] and log Z [head query] as capture does."""
    position = np.arange(query.shape[1])
    group = writer.of_layer(layer)
    for name, values, dims in (
        ("query_vector", query, ("head", "query", "channel")),
        ("key_vector", key, ("kv_head", "key", "channel")),
        ("log_sum_exp", log_sum_exp, ("head", "query")),
        ("first_key", np.zeros(len(position), np.int64), ("query",)),
        ("stop_key", position + 1, ("query",)),
        ("key_visible", np.ones(len(position), bool), ("key",)),
    ):
        axis = "key" if "key" in dims else "query"
        split = tuple(dim for dim in dims if dim in ("head", "kv_head")) if "channel" in dims else ()
        group.append({name: Array(dims, values, coordinates={axis: position})}, axis, split=split)
    facts: dict[str, Any] = dict.fromkeys(("softcap", "window", "sink_logit", "alibi_slope"))
    facts |= {"scale": scale, "causal": True, "documents": False, "query_start": 0, "key_start": 0}
    writer.note(attention={str(layer): facts}, num_queries=len(position))


def map_arrays(
    mean: np.ndarray[Any, Any], largest: np.ndarray[Any, Any], tokens: int, name: str = "attention_map"
) -> dict[str, Array]:
    """Return a map [head query_block key_block] as what is handed to a writer."""
    dims = ("head", "query_block", "key_block")
    starts = {dim: np.arange(size) * tokens for dim, size in zip(dims[1:], mean.shape[1:], strict=True)}
    return {
        full: Array(dims, values.astype(np.float32), "probability", coordinates=starts, block_tokens=tokens)
        for full, values in ((name, mean), (f"{name}_max", largest))
    }


def cells(p: np.ndarray[Any, Any], tokens: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the mean over a cell's queries of the sum over its keys, and its largest entry, by definition."""
    starts = range(0, len(p), tokens)
    blocks = [[p[i : i + tokens, j : j + tokens] for j in starts] for i in starts]
    mean = [[block.sum(1).mean() for block in row] for row in blocks]
    return np.array(mean), np.array([[block.max() for block in row] for row in blocks])


class Small:
    """A run of three units: one with everything, a private one with a map alone, one without any map."""

    def __init__(self, path: Path) -> None:
        random = np.random.default_rng(0)
        self.path = path
        self.query = random.normal(size=(NUM_HEADS, LENGTH, CHANNEL)).astype(np.float32)
        self.key = random.normal(size=(NUM_HEADS, LENGTH, CHANNEL)).astype(np.float32)
        self.p = np.stack([probabilities(q, k, SCALE) for q, k in zip(self.query, self.key, strict=True)])
        tokens = tuple(int(token) for token in random.integers(0, len(HOSTILE), LENGTH))
        spans = (Span("needle", 100, 120), Span("<b>q</b>", 290, 300))
        sample = Sample("small", tokens, spans)
        maps = [cells(p, 2) for p in self.p]
        mean, largest = (np.stack([each[i] for each in maps]) for i in (0, 1))
        with RunStore(path) as store:
            with store.begin_unit("full", condition="baseline", sample=sample) as writer:
                writer.write_layer(0, map_arrays(mean, largest, 2))
                keep_vectors(writer, 0, self.query, self.key, self._log_sum_exp(), SCALE)
                writer.write_layer(1, map_arrays(mean[:2], largest[:2], 2))
                writer.write_token_text(dict(enumerate(HOSTILE)))
                writer.commit()
            secret = Sample.from_json({**sample.to_json(), "tokens": {"withheld": LENGTH}})
            with store.begin_unit("private", condition="secret", sample=secret) as writer:
                writer.write_layer(0, map_arrays(mean, largest, 2))
                writer.note(private=True, num_queries=LENGTH)
                writer.commit()
            with store.begin_unit("bare", condition="no map", sample=sample) as writer:
                writer.write_layer(0, {"entropy": Array(("head", "query"), np.zeros((NUM_HEADS, LENGTH)))})
                writer.commit()
        write_json(path / "run.json", {"format": 1, "status": "complete"})
        self.tokens = tokens

    def _log_sum_exp(self) -> np.ndarray[Any, Any]:
        logits = np.einsum("hqc,hkc->hqk", self.query, self.key, dtype=np.float64) * SCALE
        logits[:, *np.triu_indices(LENGTH, 1)] = -np.inf
        return np.log(np.exp(logits).sum(-1)).astype(np.float32)


class Long:
    """A trace of 131,072 tokens whose queries and keys are equal within blocks of 64, so that its map is exact.

    With a score s for each pair of blocks, a query at place r in block b has Z = Σ_{b'<b} 64 exp(s_bb') + (r + 1)
    exp(s_bb).
    """

    def __init__(self, path: Path, num_heads: int = 2, num_layers: int = 2) -> None:
        self.path = path
        blocks = LONG // BLOCK
        random = np.random.default_rng(1)
        at = np.arange(blocks) / blocks
        mean, largest, log_z, queries, keys = [], [], [], [], []
        for head in range(num_heads):
            query = random.normal(size=(blocks, 4)) * 0.5
            key = random.normal(size=(blocks, 4)) * 0.5
            # A sink, a drift along the prompt, and one stretch that the last queries look for.
            query = np.column_stack([query, np.ones(blocks), 2 * at, at > 0.97])
            key = np.column_stack(
                [key, np.where(np.arange(blocks) == 0, 7.0 - 2 * head, 0), 2 * at, 8.0 * (abs(at - 0.4) < 0.01)]
            )
            score = np.exp(np.tril(query @ key.T))
            before = BLOCK * np.tril(score, -1).sum(1)
            own = np.diagonal(score)
            z = before[:, None] + own[:, None] * np.arange(1, BLOCK + 1)
            inside = BLOCK * np.tril(score, -1) * (1 / z).mean(1)[:, None]
            inside += np.diag((own[:, None] * np.arange(1, BLOCK + 1) / z).mean(1))
            mean.append(inside)
            largest.append(np.tril(score) / z[:, :1])
            log_z.append(np.log(z).ravel())
            queries.append(query)
            keys.append(key)
        self.mean, self.largest = np.stack(mean), np.stack(largest)
        self.query, self.key, self.log_z = np.stack(queries), np.stack(keys), np.stack(log_z)
        by = 8
        coarse = self.mean.reshape(num_heads, blocks // by, by, blocks // by, by)
        coarse_mean = coarse.sum(4).mean(2)
        coarse_largest = self.largest.reshape(coarse.shape).max((2, 4))
        tokens = tuple((np.arange(LONG) * 7919 % 50_000).tolist())
        spans = (Span("needle", 52_000, 52_040), Span("question", 131_000, LONG))
        with RunStore(path) as store, store.begin_unit("long", sample=Sample("long", tokens, spans)) as writer:
            for layer in range(num_layers):
                writer.write_layer(layer, map_arrays(coarse_mean, coarse_largest, BLOCK * by))
            tile = {"query_block": 512, "key_block": 512}
            finest = map_arrays(self.mean, self.largest, BLOCK, "attention_map_grid_2048")
            writer.of_layer(1).write(finest, tile)
            vectors = (np.repeat(each, BLOCK, axis=1).astype(np.float32) for each in (self.query, self.key))
            keep_vectors(writer, 1, *vectors, self.log_z.astype(np.float32), 1.0)
            writer.write_token_text({token: f" w{token}" for token in range(50_000)})
            writer.commit()
        write_json(path / "run.json", {"format": 1, "status": "complete"})


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("small") / "run")


@pytest.fixture(scope="session")
def long(tmp_path_factory: pytest.TempPathFactory) -> Long:
    return Long(tmp_path_factory.mktemp("long") / "run")


@contextmanager
def served(path: Any, **options: Any) -> Iterator[str]:
    """Serve the explorer at a free port of this machine; yields its address. `options` are those of `bound`."""
    from probe.dashboard.application.serving import bound

    server = bound(path, host="127.0.0.1", port=0, **options)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


Serve = Callable[..., Any]


@pytest.fixture
def serve() -> Serve:
    return served


@pytest.fixture(scope="session")
def specimen(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A run of the needle specimen that kept everything; played once, whatever the number of workers."""
    import probe

    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    folder = base / "everything"
    with FileLock(base / "everything.lock"):
        if not (folder / "report.html").exists():
            probe.run(Path(__file__).parent / "specimen.yaml", out=folder)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium of 1280 × 800, which logs what it asks for and what it complains of."""
    from selenium import webdriver

    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in found.items() if path is None]:
        pytest.fail(f"no {' and no '.join(missing)} here: apt-get install -y chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(found["chromium"])
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.add_argument("--window-size=1280,887")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(found["chromedriver"]))
    # So that a test can tell a page that is at rest from one whose answer is on its way.
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    yield driver
    driver.quit()


def wait(browser: Any, condition: Callable[[Any], Any]) -> Any:
    """Wait until a condition of the page holds, and return it."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60, 0.05, ignored_exceptions=[StaleElementReferenceException]).until(condition)


def logged(browser: Any) -> tuple[set[str], list[str]]:
    """Return the hosts that were asked since the last time, and what the browser complained of."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    hosts = {urlsplit(url).hostname or "" for url in asked if url.startswith(("http", "ws"))}
    return hosts, [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
