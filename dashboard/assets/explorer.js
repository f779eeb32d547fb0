// The address is the view: controls change it, clicks and keys change it, and what is shown follows from it alone.
(function () {
  const none = () => window.dash_clientside.no_update;
  const encode = (parts) => {
    const text = new URLSearchParams(parts).toString();
    return text ? "?" + text : "";
  };
  const shared = ["run", "unit", "layer", "head"];

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    address: {
      // A control says something that the view does not: the address takes it over. Values that the server has just
      // filled in are those of the view, and change nothing.
      changed: function (...said) {
        const [, view, controls] = said.slice(-3);
        if (!view) return none();
        // The address itself: where a page has scrolled to is written there without a step back for each line.
        const parts = Object.fromEntries(new URLSearchParams(location.search));
        let changed = false;
        for (const each of window.dash_clientside.callback_context.triggered) {
          const [id] = each.prop_id.split(".");
          const control = controls.find((one) => id.endsWith("-" + one.name));
          if (!control) continue;
          const value = each.value === true ? "on" : each.value === false ? "off" : String(each.value ?? "");
          if (value === (view[control.name] ?? "")) continue;
          changed = true;
          control.resets.forEach((name) => delete parts[name]);
          if (value === control.default) delete parts[control.name];
          else parts[control.name] = value;
        }
        return changed ? encode(parts) : none();
      },
      // Links to the other pages take along what those pages have too.
      links: function (pathname, search, pages) {
        const parts = new URLSearchParams(search || "");
        const here = (pathname || "/").replace(/^\/|\/$/g, "") || Object.keys(pages)[0];
        const hrefs = Object.entries(pages).map(([name, takes]) =>
          "/" + name + encode([...parts].filter(([part]) => takes.includes(part))));
        return [...hrefs, ...Object.keys(pages).map((name) => (name === here ? "active" : ""))];
      },
      // A click on a point leads where its figure says; run, unit and what else is shared go along.
      follow: function (clicks, figures, pages) {
        const fired = window.dash_clientside.callback_context.triggered_id;
        const at = window.dash_clientside.callback_context.inputs_list[0].findIndex(
          (one) => fired && one.id.figure === fired.figure);
        const point = at >= 0 && clicks[at] && clicks[at].points && clicks[at].points[0];
        const template = point && figures[at] && figures[at].layout.meta && figures[at].layout.meta.follow;
        if (!template) return none();
        const own = point.customdata === undefined ? "" : point.customdata;
        const filled = template.replace(/\{(x|y|customdata)\}/g, (_, name) =>
          encodeURIComponent(name === "customdata" ? own : point[name]));
        const [path, search] = filled.split("?");
        const parts = Object.fromEntries([...new URLSearchParams(location.search)].filter(([name]) => shared.includes(name)));
        const asked = Object.fromEntries(new URLSearchParams(search || ""));
        const takes = pages[path.replace(/^\//, "")] || [];
        const kept = Object.fromEntries(Object.entries(parts).filter(([name]) => takes.includes(name)));
        window.explorer.go(path + encode({ ...kept, ...asked }));
        return none();
      },
    },
  });

  window.explorer = {
    // Go to an address as if a person had typed it, without loading anything anew.
    go: function (href) {
      history.pushState({}, "", href);
      window.dispatchEvent(new PopStateEvent("popstate"));
    },
    // Say something to whoever sees or hears the page.
    say: function (words) {
      const said = document.getElementById("said");
      if (said) said.textContent = words;
    },
  };
})();
