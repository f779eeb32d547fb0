// The text of a prompt at any length: only what is near the window is in the page. Text only: nothing here makes markup.
(function () {
  const BLOCK = 64; // tokens of a paragraph
  const RANGE = 1024; // tokens of one answer of the server
  const MOST_RANGES = 96; // answers that are kept
  const WIDE = 128; // tokens of a span that is outlined finely, or little else would be seen
  const MARGIN = 500; // pixels above and below the window that are there already
  let state = null;

  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const by = (id) => document.getElementById(id);
  const spelt = (number) => number.toLocaleString("en");
  const short = (value) => (value === null || value === undefined ? "–"
    : value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(3))));

  // ---- what is where ----
  function begin(root, asked) {
    const blocks = [];
    asked.sections.forEach(([name, start, stop, label]) => {
      for (let at = start; at < stop; at += BLOCK)
        blocks.push({ start: at, stop: Math.min(at + BLOCK, stop), from: start, section: name, label: at === start ? label : "" });
    });
    root.textContent = "";
    const all = root.appendChild(make("div", "reader-all"));
    const size = blocks.length ? blocks[blocks.length - 1].stop : 0;
    state = { root, all, asked, blocks, size, heights: new Float64Array(blocks.length), tops: new Float64Array(blocks.length + 1),
      guess: 110, shown: new Map(), words: new Map(), values: new Map(), waiting: new Set(), at: 0, chosen: null, pointed: null,
      hit: -1, wanted: null };
    root.addEventListener("scroll", scrolled, { passive: true });
    ["wheel", "pointerdown", "touchstart"].forEach((each) => root.addEventListener(each, () => { state.wanted = null; }, { passive: true }));
  }

  function place() {
    let top = 0;
    for (let i = 0; i < state.blocks.length; i++) {
      state.tops[i] = top;
      top += state.heights[i] || state.guess;
    }
    state.tops[state.blocks.length] = top;
    state.all.style.height = top + "px";
  }

  // The last of a sorted list of starts that is not beyond a number.
  function last(start, length, number) {
    let low = 0, high = length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (start(middle) <= number) low = middle; else high = middle - 1;
    }
    return low;
  }
  const blockAtPixel = (pixel) => last((i) => state.tops[i], state.blocks.length, pixel);
  const blockOf = (slot) => last((i) => state.blocks[i].start, state.blocks.length, slot);

  // ---- drawing ----
  function draw() {
    if (!state || !state.root.isConnected || !state.blocks.length) return;
    for (let turn = 0; turn < 4; turn++) {
      place();
      const top = state.root.scrollTop, height = state.root.clientHeight;
      const first = blockAtPixel(Math.max(0, top - MARGIN)), stop = blockAtPixel(top + height + MARGIN) + 1;
      const anchor = blockAtPixel(top), offset = top - state.tops[anchor];
      for (const [i, element] of state.shown)
        if (i < first || i >= stop) { element.remove(); state.shown.delete(i); }
      for (let i = first; i < stop; i++) if (!state.shown.has(i)) mount(i);
      let changed = false, measured = 0, sum = 0;
      for (const [i, element] of state.shown) {
        if (element.dataset.loaded !== "yes") continue;
        const found = element.offsetHeight;
        measured++; sum += found;
        if (Math.abs(found - state.heights[i]) > 0.5) { state.heights[i] = found; changed = true; }
      }
      if (measured && !state.guessed) { state.guess = sum / measured; state.guessed = true; changed = true; }
      if (changed) {
        place();
        // What stood at the top stays there, whatever turns out to be taller above it.
        const settled = state.settled && Math.abs(top - state.settled.top) < 2;
        const now = state.tops[anchor] + offset;
        if (Math.abs(now - state.root.scrollTop) > 0.5) state.root.scrollTop = now;
        if (settled) { state.wanted = state.settled.slot; state.down = 0; }
      }
      for (const [i, element] of state.shown) element.style.top = state.tops[i] + "px";
      if (!changed) break;
    }
    if (state.wanted !== null) reveal(state.wanted);
    where();
    load();
  }

  function mount(i) {
    const block = state.blocks[i];
    const element = make("div", "reader-block");
    element.setAttribute("role", "group");
    element.setAttribute("aria-label", called(block.start, block) + " to " + called(block.stop - 1, block));
    const at = element.appendChild(make("span", "reader-at", spelt(block.start - (block.section === "answer" ? block.from : 0))));
    at.setAttribute("aria-hidden", "true");
    element.appendChild(make("div", "reader-line"));
    // In the order of the text, which is how it is read aloud.
    const after = [...state.shown.keys()].filter((other) => other > i).sort((a, b) => a - b)[0];
    state.all.insertBefore(element, after === undefined ? null : state.shown.get(after));
    state.shown.set(i, element);
    fill(i);
  }

  const called = (slot, block) =>
    block.section === "answer" ? "due token " + spelt(slot - block.from) : "position " + spelt(slot);

  function fill(i) {
    const element = state.shown.get(i), block = state.blocks[i];
    const line = element.lastChild;
    line.textContent = "";
    const words = state.words.get(Math.floor(block.start / RANGE));
    const end = state.words.get(Math.floor((block.stop - 1) / RANGE));
    if (!words || !end) {
      line.textContent = "…";
      element.style.height = (state.heights[i] || state.guess) + "px";
      delete element.dataset.loaded;
      return;
    }
    element.style.height = "";
    element.dataset.loaded = "yes";
    if (block.label) line.appendChild(make("span", "reader-part", block.label));
    const here = state.asked.spans.filter(([, start, stop]) => start < block.stop && stop > block.start);
    for (let slot = block.start; slot < block.stop; slot++) line.appendChild(token(slot, block, here, line));
    if (block.section !== "answer" && state.asked.hits) markHits(block, line);
    paint(i);
  }

  function token(slot, block, spans, line) {
    const text = wordAt(slot);
    const inside = block.section === "answer" ? [] : spans.filter(([, start, stop]) => start <= slot && slot < stop);
    inside.filter(([, start]) => start === slot).forEach(([name]) => {
      const label = line.appendChild(make("span", "reader-name", name));
      label.setAttribute("aria-hidden", "true");
    });
    const element = make("span", "reader-token", text);
    if (inside.length) {
      // Of spans within each other the shortest is outlined.
      const [, start, stop] = inside.reduce((a, b) => (b[2] - b[1] < a[2] - a[1] ? b : a));
      element.classList.add("reader-span");
      if (stop - start > WIDE) element.classList.add("reader-span-wide");
      if (slot === start) element.classList.add("reader-span-first");
      if (slot === stop - 1) element.classList.add("reader-span-last");
    }
    if (text.endsWith("↵")) element.classList.add("reader-line-end");
    element.id = "text-token-" + slot;
    element.dataset.slot = slot;
    element.setAttribute("role", "option");
    element.setAttribute("aria-posinset", slot + 1);
    element.setAttribute("aria-setsize", state.size);
    element.setAttribute("aria-selected", String(slot === state.chosen));
    if (slot === state.chosen) element.classList.add("reader-chosen");
    return element;
  }

  const wordAt = (slot) => state.words.get(Math.floor(slot / RANGE)).words[slot % RANGE];
  const idAt = (slot) => state.words.get(Math.floor(slot / RANGE)).ids[slot % RANGE];
  const valueAt = (slot) => {
    const range = state.values.get(Math.floor(slot / RANGE));
    return range ? range.values[slot % RANGE] : undefined;
  };

  function paint(i) {
    const element = state.shown.get(i);
    if (element.dataset.loaded !== "yes") return;
    const { kind, steps, name } = state.asked;
    for (const each of element.querySelectorAll(".reader-token")) {
      const slot = Number(each.dataset.slot), range = state.values.get(Math.floor(slot / RANGE));
      [...each.classList].filter((one) => /^reader-(mass|signed)-|^reader-negative$/.test(one)).forEach((one) => each.classList.remove(one));
      each.style.removeProperty("--reader-share");
      delete each.dataset.value;
      let said = each.textContent + ", " + called(slot, state.blocks[i]);
      if (range && state.asked.values !== null) {
        const value = range.values[slot % RANGE], share = range.shares[slot % RANGE];
        each.dataset.value = short(value);
        if (share !== null) {
          const along = share / 1000;
          each.classList.add("reader-" + (kind === "signed" ? "signed" : "mass") + "-" + Math.min(steps - 1, Math.floor(along * steps)));
          if (kind === "signed" && along < 0.5) each.classList.add("reader-negative");
          each.style.setProperty("--reader-share", (kind === "signed" ? Math.abs(2 * along - 1) : along) * 100 + "%");
        }
        said += ", " + name + " " + (value === null ? "none" : short(value));
      }
      each.setAttribute("aria-label", said);
    }
  }

  function markHits(block, line) {
    const hits = state.asked.hits;
    let i = hits.length ? last((k) => hits[k][0], hits.length, block.start) : 0;
    while (i > 0 && hits[i - 1][1] > block.start) i--;
    for (; i < hits.length && hits[i][0] < block.stop; i++)
      for (let slot = Math.max(hits[i][0], block.start); slot < Math.min(hits[i][1], block.stop); slot++) {
        const found = line.querySelector("#text-token-" + slot);
        if (found) {
          found.classList.add("reader-hit");
          if (i === state.hit) found.classList.add("reader-hit-now");
        }
      }
  }

  const again = () => { if (state) for (const i of state.shown.keys()) fill(i); };

  // ---- asking the server ----
  let soon = 0;
  function load(atOnce) {
    const ranges = new Set();
    for (const i of state.shown.keys()) {
      ranges.add(Math.floor(state.blocks[i].start / RANGE));
      ranges.add(Math.floor((state.blocks[i].stop - 1) / RANGE));
    }
    if (state.chosen !== null) ranges.add(Math.floor(state.chosen / RANGE));
    // While a hand drags the bar, thousands of tokens pass that nobody reads.
    clearTimeout(soon);
    soon = setTimeout(() => {
      for (const range of ranges) {
        ask("words", range, state.asked.unit);
        if (state.asked.values !== null) ask("values", range, state.asked.values);
      }
    }, state.words.size && !atOnce ? 40 : 0);
  }

  function ask(what, range, search) {
    const mine = state, kept = mine[what], waits = what + range + search;
    if (kept.has(range) || mine.waiting.has(waits)) return;
    mine.waiting.add(waits);
    const start = range * RANGE, stop = Math.min(start + RANGE, mine.size);
    fetch("/tokens/" + what + "/" + start + "/" + stop + search)
      .then((answer) => answer.json())
      .catch(() => ({ problem: "The explorer does not answer: is it still running?" }))
      .then((found) => {
        mine.waiting.delete(waits);
        const wanted = what === "words" ? mine.asked.unit : mine.asked.values;
        if (mine !== state || search !== wanted) return;
        by("text-problem").textContent = found.problem || "";
        if (found.problem) return;
        kept.set(range, found);
        if (kept.size > MOST_RANGES) kept.delete(kept.keys().next().value);
        for (const [i] of mine.shown) {
          const block = mine.blocks[i];
          if (block.start >= stop || block.stop <= start) continue;
          if (what === "words") fill(i); else paint(i);
        }
        draw();
        read();
      });
  }

  // ---- moving ----
  function scrolled() {
    if (!state.frame) state.frame = requestAnimationFrame(() => { state.frame = 0; draw(); remember(); });
  }

  // Bring a token into view, as far down as is asked for; as soon as its block has been read and measured.
  function jump(slot, down) {
    if (!state || !state.blocks.length) return;
    slot = Math.min(Math.max(0, slot), state.size - 1);
    state.down = down === undefined ? 1 / 3 : down;
    place();
    state.root.scrollTop = Math.max(0, state.tops[blockOf(slot)] - state.root.clientHeight * state.down);
    state.wanted = slot;
    draw();
    remember();
  }

  function reveal(slot) {
    const element = by("text-token-" + slot);
    if (!element) return;
    state.wanted = null;
    const inside = element.getBoundingClientRect().top - state.root.getBoundingClientRect().top;
    if (state.down === 0 || inside < 20 || inside > state.root.clientHeight - 40) {
      state.root.scrollTop += inside - Math.max(4, state.root.clientHeight * state.down);
      draw();
    }
    // What was asked for at the top is what the address says, until somebody scrolls.
    state.settled = state.down === 0 ? { slot, top: state.root.scrollTop } : null;
  }

  const firstSeen = () => {
    const top = state.root.getBoundingClientRect().top;
    const block = state.shown.get(blockAtPixel(state.root.scrollTop));
    const found = block && [...block.querySelectorAll(".reader-token")].find((each) => each.getBoundingClientRect().bottom > top + 4);
    return found ? Number(found.dataset.slot) : state.blocks[blockAtPixel(state.root.scrollTop)].start;
  };

  function where() {
    if (!state.blocks.length) return;
    const first = state.blocks[blockAtPixel(state.root.scrollTop)].start;
    by("text-where").textContent = spelt(first) + " of " + spelt(state.size) + " tokens";
  }

  // The address says where one is, without a step back for every line that was scrolled.
  let later = 0;
  function remember() {
    clearTimeout(later);
    const mine = state;
    later = setTimeout(() => {
      if (mine !== state || !mine.root.isConnected) return;
      const still = mine.settled && Math.abs(mine.root.scrollTop - mine.settled.top) < 2;
      mine.at = still ? mine.settled.slot : mine.root.scrollTop > 0 ? firstSeen() : 0;
      const parts = new URLSearchParams(location.search);
      if (mine.at) parts.set("at", mine.at); else parts.delete("at");
      const text = parts.toString();
      history.replaceState(history.state, "", location.pathname + (text ? "?" + text : ""));
    }, 250);
  }

  // ---- the chosen token, which is the query ----
  let choosing = 0;
  function choose(slot) {
    slot = Math.min(Math.max(0, slot), state.size - 1);
    mark(slot);
    if (!by("text-token-" + slot)) jump(slot); else { state.wanted = slot; reveal(slot); }
    state.root.setAttribute("aria-activedescendant", "text-token-" + slot);
    read();
    clearTimeout(choosing);
    // What was due has no query of its own: it was given, not read in this order.
    if (state.blocks[blockOf(slot)].section === "answer") return;
    choosing = setTimeout(() => {
      if (!state || slot === state.asked.query || slot !== state.chosen) return;
      const parts = new URLSearchParams(location.search);
      parts.set("query", slot);
      window.explorer.go(location.pathname + "?" + parts);
    }, 200);
  }

  function mark(slot) {
    const before = by("text-token-" + state.chosen), now = by("text-token-" + slot);
    if (before) { before.classList.remove("reader-chosen"); before.setAttribute("aria-selected", "false"); }
    if (now) { now.classList.add("reader-chosen"); now.setAttribute("aria-selected", "true"); }
    state.chosen = slot;
  }

  // What is known of the token pointed at, and of the chosen one.
  function read() {
    const panel = by("text-reading");
    if (!panel || !state) return;
    panel.textContent = "";
    if (state.chosen === null && state.pointed === null)
      panel.textContent = "Point at a token to read its value. Click it, or use ← and →, to choose it: what it attends to is one of the colours.";
    if (state.pointed !== null && state.pointed !== state.chosen) panel.append(...card("Pointed at", state.pointed));
    if (state.chosen !== null) panel.append(...card("Chosen: the query", state.chosen));
  }

  function card(title, slot) {
    const rows = make("dl");
    const row = (name, text) => { rows.append(make("dt", "", name), make("dd", "", text)); };
    const block = state.blocks[blockOf(slot)];
    row(block.section === "answer" ? "due token" : "position", spelt(slot - (block.section === "answer" ? block.from : 0)));
    if (state.words.has(Math.floor(slot / RANGE))) {
      row("token", wordAt(slot).replace(/ /g, "␣"));
      if (idAt(slot) >= 0) row("id", String(idAt(slot)));
    }
    if (state.asked.values !== null) {
      const value = valueAt(slot);
      row(state.asked.name, value === undefined ? "…" : value === null ? "none: not seen, or not captured" : String(value));
    }
    const inside = block.section === "answer" ? [] : state.asked.spans.filter(([, start, stop]) => start <= slot && slot < stop);
    if (inside.length) row("in", inside.map(([name]) => name).join(", "));
    const lead = make("button", "explorer-button", "Show it");
    lead.type = "button";
    lead.dataset.jump = slot;
    return [make("h2", "", title), rows, ...(by("text-token-" + slot) ? [] : [lead])];
  }

  // ---- what was found ----
  function go(way) {
    const hits = state && state.asked.hits;
    if (!hits || !hits.length) return;
    state.hit = (state.hit + way + hits.length) % hits.length;
    again();
    jump(hits[state.hit][0]);
    counted();
  }

  function counted() {
    const { hits, numHits, mostHits, find } = state.asked;
    const many = numHits > mostHits ? " (the first " + spelt(mostHits) + " are led to)" : "";
    by("text-hits").textContent = !find || !hits ? "" : numHits === 0 ? "not found" : (state.hit < 0 ? "–" : spelt(state.hit + 1)) + " of " + spelt(numHits) + many;
    ["text-previous", "text-next"].forEach((id) => { by(id).disabled = !numHits; });
  }

  // ---- the view that the server describes ----
  function view(asked) {
    const root = by("text-tokens");
    if (!root) return;
    if (asked === null) {
      root.textContent = "";
      state = null;
      read();
      return;
    }
    const old = state && state.root === root && state.root.isConnected ? state : null;
    const same = old && old.asked.unit === asked.unit;
    if (!same) begin(root, asked);
    const before = state.asked;
    state.asked = asked;
    if (!same || before.values !== asked.values) state.values = new Map();
    root.classList.toggle("reader-numbers", asked.numbers);
    const resized = same && before.numbers !== asked.numbers;
    if (resized) { state.heights.fill(0); state.guessed = false; }
    const looks = asked.find && (!same || before.find !== asked.find);
    const from = same && state.blocks.length ? firstSeen() : asked.at || 0;
    if (!same || before.find !== asked.find) state.hit = -1;
    if (looks && asked.hits && asked.hits.length)
      state.hit = asked.hits.findIndex(([start]) => start >= from) < 0 ? 0 : asked.hits.findIndex(([start]) => start >= from);
    if (!same) listSpans(asked.spans);
    state.chosen = null;
    again();
    if (asked.query !== null) mark(asked.query);
    // A place that the address asks for is gone to, one that this page wrote there itself is not.
    if (looks && state.hit >= 0 && (same || asked.at === null)) jump(asked.hits[state.hit][0]);
    else if (!same || (asked.at !== null && asked.at !== state.at)) jump(asked.at || 0, 0);
    else draw();
    state.at = asked.at === null && same ? state.at : asked.at || 0;
    load(true);
    counted();
    read();
    where();
  }

  function listSpans(spans) {
    const select = by("text-spans");
    select.textContent = "";
    select.appendChild(make("option", "", spans.length ? "go to…" : "none")).value = "";
    spans.forEach(([name, start, stop]) => {
      const words = name + "  " + spelt(start) + (stop - start > 1 ? "–" + spelt(stop - 1) : "");
      select.appendChild(make("option", "", words)).value = start;
    });
    select.disabled = !spans.length;
  }

  function toPosition() {
    const asked = Number(by("text-position").value.replace(/[,\s]/g, ""));
    if (state && Number.isInteger(asked) && asked >= 0) jump(asked);
  }

  // ---- hands on the page ----
  document.addEventListener("click", (event) => {
    if (!state) return;
    const token = event.target.closest(".reader-token"), to = event.target.closest("[data-jump]");
    if (token) choose(Number(token.dataset.slot));
    else if (to) jump(Number(to.dataset.jump));
    else if (event.target.closest("#text-go")) toPosition();
    else if (event.target.closest("#text-previous")) go(-1);
    else if (event.target.closest("#text-next")) go(1);
  });
  document.addEventListener("change", (event) => {
    if (state && event.target.id === "text-spans" && event.target.value !== "") {
      jump(Number(event.target.value));
      event.target.value = "";
    }
  });
  document.addEventListener("pointerover", (event) => {
    const token = state && event.target.closest && event.target.closest(".reader-token");
    if (!token || Number(token.dataset.slot) === state.pointed) return;
    state.pointed = Number(token.dataset.slot);
    read();
  });
  document.addEventListener("keydown", (event) => {
    if (!state || !state.root.isConnected || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    if (target.id === "text-position" && event.key === "Enter") toPosition();
    else if (target.id === "text-find" && event.key === "Enter") {
      if (target.value === state.asked.find) go(event.shiftKey ? -1 : 1);
    } else if (event.key === "/" && !target.closest("input, textarea, select, [contenteditable]")) by("text-find").focus();
    else if (target === state.root && state.blocks.length) {
      const from = state.chosen === null ? firstSeen() : state.chosen;
      const step = state.chosen === null ? 0 : 1;
      if (event.key === "ArrowRight") choose(from + step);
      else if (event.key === "ArrowLeft") choose(from - step);
      else if (event.key === "Home") jump(0);
      else if (event.key === "End") jump(state.size - 1);
      else return;
    } else return;
    event.preventDefault();
  });
  window.addEventListener("resize", () => {
    if (!state || !state.root.isConnected) return;
    state.heights.fill(0);
    state.guessed = false;
    draw();
  });

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    text: {
      // What the page says of the text is among what it shows; where it shows a problem, there is no text.
      show: function (children) {
        const all = [].concat(children || []);
        const find = (one) => {
          if (!one || !one.props) return null;
          if (one.props.id === "text-asked") return one.props.data;
          return [].concat(one.props.children || []).reduce((found, each) => found || find(each), null);
        };
        view(all.reduce((found, each) => found || find(each), null));
        return window.dash_clientside.no_update;
      },
    },
  });
})();
