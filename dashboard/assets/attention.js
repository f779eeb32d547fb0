// The map of attention: what is under the cursor, in words, and where a zoom, a click or a key leads. Text only: nothing
// here makes markup.
(function () {
  const graph = () => document.querySelector("#attention-map .js-plotly-plot");
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  let asked = null;
  let whole = null;

  // Arithmetic of ranges [start, stop) of positions inside of a prompt of `extent` tokens.
  const ranges = {
    // Around a position, `factor` times as wide.
    around: function (range, at, factor, extent, least) {
      const size = clamp(Math.round((range[1] - range[0]) * factor), Math.min(least, extent), extent);
      const start = clamp(Math.round(at - size / 2), 0, extent - size);
      return [start, start + size];
    },
    // As wide as before, moved by a share of that.
    moved: function (range, share, extent) {
      const size = range[1] - range[0];
      const start = clamp(range[0] + Math.sign(share) * Math.max(1, Math.round(Math.abs(share) * size)), 0, extent - size);
      return [start, start + size];
    },
    // What a figure's axis says it shows, in whole positions; the range before where it says nothing.
    said: function (said, axis, before, extent) {
      const ends = [said[axis + ".range[0]"], said[axis + ".range[1]"]].map(Number);
      if (!ends.every(Number.isFinite)) return before;
      const [first, last] = ends.sort((a, b) => a - b);
      const start = clamp(Math.trunc(first + 0.5), 0, extent - 1);
      return [start, Math.max(start + 1, Math.min(extent, Math.trunc(last + 1)))];
    },
  };

  // The parts of the address that show these ranges; what is whole is left out, and detail belongs to its region.
  function address(search, queries, keys, extent) {
    const parts = new URLSearchParams(search);
    for (const [name, range] of [["queries", queries], ["keys", keys]]) {
      if (range[0] === 0 && range[1] === extent) parts.delete(name);
      else parts.set(name, range.join("-"));
    }
    parts.delete("cell");
    const text = parts.toString();
    return text ? "?" + text : "";
  }

  // Draw at once what is there already, enlarged or moved: the level above, until finer cells have come.
  function enlarge(queries, keys) {
    const there = graph();
    if (!there || !there.layout || !there.layout.meta) return;
    const meta = there.layout.meta;
    const inside = (range, drawn) => range[0] >= drawn[0] && range[1] <= drawn[1];
    const view = { xaxis: [keys[0] - 0.5, keys[1] - 0.5], yaxis: [queries[1] - 0.5, queries[0] - 0.5] };
    document.getElementById("attention-focus").dataset.refining = "";
    there.querySelectorAll(".attention-beside").forEach((line) => line.remove());
    if (!(inside(queries, meta.queries) && inside(keys, meta.keys)) && whole && whole.subject === asked.subject) {
      const layout = structuredClone(whole.drawing.layout);
      for (const [axis, range] of Object.entries(view)) layout[axis] = { ...layout[axis], range };
      window.Plotly.react(there, whole.drawing.data, layout);
    } else window.Plotly.relayout(there, { "xaxis.range": view.xaxis, "yaxis.range": view.yaxis });
  }

  function show(queries, keys) {
    if (String([queries, keys]) === String([asked.queries, asked.keys])) return;
    asked = { ...asked, queries, keys };
    enlarge(queries, keys);
    window.explorer.go(location.pathname + address(location.search, queries, keys, asked.extent));
  }

  const centre = (range) => (range[0] + range[1] - 1) / 2;
  const zoom = (factor) => show(
    ...[asked.queries, asked.keys].map((range) => ranges.around(range, centre(range) + 0.5, factor, asked.extent, 1)));
  const keys = {
    "+": () => zoom(0.5),
    "=": () => zoom(0.5),
    "-": () => zoom(2),
    Home: () => show([0, asked.extent], [0, asked.extent]),
    ArrowLeft: () => show(asked.queries, ranges.moved(asked.keys, -0.25, asked.extent)),
    ArrowRight: () => show(asked.queries, ranges.moved(asked.keys, 0.25, asked.extent)),
    ArrowUp: () => show(ranges.moved(asked.queries, -0.25, asked.extent), asked.keys),
    ArrowDown: () => show(ranges.moved(asked.queries, 0.25, asked.extent), asked.keys),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key] || !asked) return;
    if (!event.target.closest("#attention-focus")) return;
    keys[event.key]();
    event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-map-key]");
    if (button && asked) keys[button.dataset.mapKey]();
    // A link to a span or to the whole goes its own way; what is there already goes before it.
    const link = event.target.closest(".attention-ways a:not(.attention-leave)");
    if (!link || !asked || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const parts = new URLSearchParams(new URL(link.href).search);
    const [queries, over] = ["queries", "keys"].map((name) =>
      parts.has(name) ? parts.get(name).split("-").map(Number) : [0, asked.extent]);
    if (String([queries, over]) !== String([asked.queries, asked.keys])) enlarge(queries, over);
  });

  // The data of a store within what the server answered; null where it has none.
  function held(node, id) {
    if (Array.isArray(node)) return node.map((each) => held(each, id)).find((each) => each) || null;
    if (!node || !node.props) return null;
    return node.props.id === id ? node.props.data : held(node.props.children, id);
  }

  const none = () => window.dash_clientside.no_update;

  // A value as its colour or number says it; `about` where a colour says no more than that.
  function value(z, colours) {
    if (z === null || z === undefined || Number.isNaN(z)) return { value: 0, about: "" };
    if (!colours.steps) return { value: colours.scale === "log" ? Math.pow(10, z) : z, about: "" };
    if (z === 0) return { value: 0, about: "" };
    if (z > colours.last) return { value: NaN, about: "" };
    const share = (z - 1) / (colours.last - 1);
    if (colours.scale === "linear") return { value: share * colours.high, about: "≈ " };
    return { value: colours.low * Math.pow(colours.high / colours.low, share), about: z === 1 ? "at most " : "≈ " };
  }

  function said(found, colours) {
    if (Number.isNaN(found.value)) return "not finite";
    if (found.value === 0) return "0";
    if (colours.steps) return found.about + found.value.toPrecision(3);
    return Math.abs(found.value) < 1e-3 ? found.value.toExponential(4) : found.value.toPrecision(5);
  }

  // The row of a query and the column of a key, on the profiles beside the map.
  function beside(row, column, meta) {
    const there = graph();
    if (!there || !there._fullLayout || !there._fullData.length) return;
    there.querySelectorAll(".attention-beside").forEach((line) => line.remove());
    if (row === null) return;
    const z = there._fullData[0].z;
    const layout = there._fullLayout;
    const lines = [
      [Array.from(z[row]), layout.xaxis, layout.yaxis2, meta.keys[0], false],
      [Array.from(z, (cells) => cells[column]), layout.yaxis, layout.xaxis2, meta.queries[0], true],
    ];
    for (const [cells, along, across, first, upright] of lines) {
      let pen = "M";
      const places = cells.map((cell, i) => {
        const height = value(cell, meta.colours).value;
        const at = along._offset + along.d2p(first + (meta.cell - 1) / 2 + i * meta.cell);
        const up = across._offset + across.d2p(height);
        if (!Number.isFinite(at) || !Number.isFinite(up) || (height <= 0 && across.type === "log")) {
          pen = "M";
          return "";
        }
        const inside = clamp(up, across._offset, across._offset + across._length);
        const point = pen + (upright ? inside + "," + at : at + "," + inside);
        pen = "L";
        return point;
      });
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", "attention-beside");
      path.setAttribute("d", places.join(""));
      there.querySelector(".main-svg").appendChild(path);
    }
  }

  window.attention_ranges = { ...ranges, address };
  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    attention: {
      // What was answered holds what is to be drawn: into the graph that is there, in place.
      draw: function (content) {
        const focus = document.getElementById("attention-focus");
        if (focus) delete focus.dataset.refining;
        document.querySelectorAll(".attention-beside").forEach((line) => line.remove());
        const labels = held(content, "attention-words-drawn");
        const drawing = held(content, "attention-map-drawing") || { data: [], layout: {} };
        if (labels) {
          asked = labels.asked;
          const all = [labels.asked.queries, labels.asked.keys].every((range) => range[1] - range[0] === asked.extent);
          if (all) whole = { subject: asked.subject, drawing };
        }
        return [drawing, labels];
      },
      // A figure also says that it has fitted itself to the window: no view is asked for by that.
      zoomed: function (relayout, labels) {
        if (!relayout || !labels || !Object.keys(relayout).some((key) => /^[xy]axis\.(range|autorange)/.test(key))) return none();
        const { extent } = asked;
        if (relayout["xaxis.autorange"] || relayout["yaxis.autorange"]) show([0, extent], [0, extent]);
        else show(ranges.said(relayout, "yaxis", asked.queries, extent), ranges.said(relayout, "xaxis", asked.keys, extent));
        return none();
      },
      clicked: function (click) {
        const point = click && click.points && click.points[0];
        if (point && point.curveNumber === 0) {
          document.getElementById("attention-focus").focus({ preventScroll: true });
          show(ranges.around(asked.queries, point.y, 0.25, asked.extent, 16),
            ranges.around(asked.keys, point.x, 0.25, asked.extent, 16));
        }
        return none();
      },
      // The name of a span leads there, on its own axis.
      jumped: function (click) {
        const [side, place] = String(click && click.annotation && click.annotation.name).split(":");
        if (!place) return none();
        const [start, stop] = place.split("-").map(Number);
        const there = [Math.max(0, start - 4), Math.min(asked.extent, stop + 4)];
        if (side === "x") show(asked.queries, there);
        else show(there, asked.keys);
        return none();
      },
      read: function (hover, labels, figure) {
        const meta = figure && figure.layout && figure.layout.meta;
        if (!meta) return "";
        const point = hover && hover.points && hover.points[0];
        const help = "Point at the map to read a cell, and its row and column beside it (dotted). " +
          "Click to zoom in, or drag a box; double click shows all.";
        if (!point || point.curveNumber !== 0) return help;
        // What is drawn is not what was answered, for a moment.
        if ("refining" in document.getElementById("attention-focus").dataset) return help;
        const axis = (name, range, centre) => {
          const start = Math.round(centre - (meta.cell - 1) / 2);
          if (start < range[0] || start >= range[1]) return null;
          const stop = Math.min(start + meta.cell, range[1]);
          const at = start.toLocaleString("en") + (stop - start > 1 ? "–" + (stop - 1).toLocaleString("en") : "");
          const words = (labels && labels[name]) || [];
          const text = words[Math.round((start - range[0]) / meta.cell)];
          const spans = (labels && labels.spans) || [];
          const inside = spans.filter((span) => span[1] < stop && span[2] > start).map((span) => span[0]);
          return at + (text === undefined ? "" : "  " + text) + (inside.length ? "  (" + inside.join(", ") + ")" : "");
        };
        const query = axis("queries", meta.queries, point.y);
        const key = axis("keys", meta.keys, point.x);
        if (query === null || key === null) return help;
        beside(Math.round((point.y - (meta.cell - 1) / 2 - meta.queries[0]) / meta.cell),
          Math.round((point.x - (meta.cell - 1) / 2 - meta.keys[0]) / meta.cell), meta);
        return "query  " + query + "\nkey    " + key + "\nvalue  " + said(value(point.z, meta.colours), meta.colours);
      },
    },
  });
})();
