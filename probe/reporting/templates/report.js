"use strict";
(() => {
  // The figures are drawn for white paper; on a dark page the same hues are lifted and the ink turned.
  const DARK = {
    "#1f2937": "#e6e8eb", "#6b7280": "#a3abb6", "#e5e7eb": "#333a44", "#9ca3af": "#6b7480", "#ffffff": "#171b21",
    "#0b62a4": "#5fb0ee", "#d1560f": "#f08a4b", "#0a8f6c": "#3fc79f", "#8a4fa3": "#c08ad8", "#b8860b": "#dfb445",
    "#4b5563": "#aab3bf", "#c43c73": "#ee7ba8",
  };
  const KEEP = new Set(["colorscale", "bdata", "text", "x", "y", "z", "customdata"]);
  const turned = (value, key) => {
    if (KEEP.has(key)) return value;
    if (Array.isArray(value)) return value.map((item) => turned(item, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, turned(v, k)]));
    }
    if (typeof value !== "string" || value[0] !== "#") return value;
    const hue = value.slice(0, 7).toLowerCase();
    return hue in DARK ? DARK[hue] + value.slice(7) : value;
  };

  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const draw = (inDark) => {
    for (const place of document.querySelectorAll("[data-figure]")) {
      const figure = figures[Number(place.dataset.figure)];
      const { data, layout } = JSON.parse(JSON.stringify(inDark ? turned(figure) : figure));
      Plotly.react(place, data, layout, config);
    }
  };
  if (figures.length) {
    draw(dark.matches);
    dark.addEventListener("change", () => draw(dark.matches));
  }
  window.addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
    if (figures.length && dark.matches) draw(false);
  });
  window.addEventListener("afterprint", () => {
    if (figures.length && dark.matches) draw(true);
  });
  document.documentElement.dataset.drawn = "true";
})();
