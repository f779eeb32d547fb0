// What is under the cursor, in words: positions, token text and the value. Text only: nothing here makes markup.
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  attention: {
    // A figure also says that it has fitted itself to the window: no view is asked for, and none may be overtaken by it.
    zoomed: function (said) {
      const asks = said && Object.keys(said).some((key) => /axis\.(range|autorange)/.test(key));
      return asks ? said : window.dash_clientside.no_update;
    },
    read: function (hover, labels, figure) {
      const meta = figure && figure.layout && figure.layout.meta;
      if (!meta) return "";
      const point = hover && hover.points && hover.points[0];
      if (!point) return "Point at the map to read a cell. Click to zoom in, or drag a box; double click shows all.";
      const axis = (name, range, centre) => {
        const start = Math.round(centre - (meta.cell - 1) / 2);
        if (start < range[0] || start >= range[1]) return null;
        const stop = Math.min(start + meta.cell, range[1]);
        const at = start.toLocaleString("en") + (stop - start > 1 ? "–" + (stop - 1).toLocaleString("en") : "");
        const words = (labels && labels[name]) || [];
        const text = words[Math.round((start - range[0]) / meta.cell)];
        const inside = (meta.spans || []).filter((span) => span[1] < stop && span[2] > start).map((span) => span[0]);
        return at + (text === undefined ? "" : "  " + text) + (inside.length ? "  (" + inside.join(", ") + ")" : "");
      };
      const query = axis("queries", meta.queries, point.y);
      const key = axis("keys", meta.keys, point.x);
      if (query === null || key === null) return "";
      return "query  " + query + "\nkey    " + key + "\nvalue  " + window.dash_clientside.attention.value(point.z, meta.colours);
    },
    value: function (z, colours) {
      if (z === null || z === undefined || Number.isNaN(z)) return "0";
      const short = (number) => (number !== 0 && Math.abs(number) < 1e-3 ? number.toExponential(4) : number.toPrecision(5));
      if (!colours.steps) return short(colours.scale === "log" ? Math.pow(10, z) : z);
      if (z === 0) return "0";
      if (z > colours.last) return "not finite";
      const share = (z - 1) / (colours.last - 1);
      if (colours.scale === "linear") return "≈ " + (share * colours.high).toPrecision(3);
      const value = colours.low * Math.pow(colours.high / colours.low, share);
      return (z === 1 ? "at most " : "≈ ") + value.toPrecision(3);
    },
  },
});
