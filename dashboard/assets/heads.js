// Heads are chosen in the atlas and its scatter: a box or a lasso sets the part `heads` of the address, with Shift it
// adds to it; a click opens the head's page, or chooses it, as the address says.
(function () {
  let shift = false;
  for (const name of ["pointerdown", "pointerup", "mouseup"]) {
    window.addEventListener(name, (event) => { shift = event.shiftKey; }, true);
  }

  const none = () => window.dash_clientside.no_update;
  // A cell of the map says its head by where it lies, a point by what it carries.
  const named = (point) => (point.customdata || [point.y, point.x]).slice(0, 2).join(":");
  const chosen = (parts) => (parts.get("heads") || "").split(",").map((head) => head.trim()).filter(Boolean);
  const order = (head) => head.split(":").map(Number);
  const written = (search, heads) => {
    const parts = new URLSearchParams(search || "");
    const before = chosen(parts).join(",");
    const after = [...new Set(heads)].sort((a, b) => order(a)[0] - order(b)[0] || order(a)[1] - order(b)[1]).join(",");
    if (after === before) return none();
    if (after) parts.set("heads", after);
    else parts.delete("heads");
    window.explorer.say(after ? "Chosen: " + after.split(",").length + " heads" : "None chosen");
    const text = parts.toString();
    return text ? "?" + text : "";
  };

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    heads: {
      dragged: function (said, search) {
        if (!said || !said.points || !(said.range || said.lassoPoints)) return none();
        const heads = said.points.map(named);
        return written(search, shift ? [...chosen(new URLSearchParams(search || "")), ...heads] : heads);
      },
      clicked: function (said, search) {
        const point = said && said.points && said.points[0];
        if (!point) return none();
        const parts = new URLSearchParams(search || "");
        const [layer, head] = named(point).split(":");
        if (shift || parts.get("click") === "chooses it") {
          const before = chosen(parts);
          const mine = layer + ":" + head;
          return written(search, before.includes(mine) ? before.filter((each) => each !== mine) : [...before, mine]);
        }
        const kept = [...parts].filter(([name]) => name === "run" || name === "unit");
        window.explorer.go("/head?" + new URLSearchParams([...kept, ["layer", layer], ["head", head]]));
        return none();
      },
    },
  });
})();
