// Cells of tables that lead somewhere: links, by mouse and by the Enter key. What a cell says is text alone.
(function () {
  const renderers = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});

  renderers.ExplorerLink = function (props) {
    const href = props.data && props.data["to_" + props.colDef.field];
    const go = (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      window.explorer.go(href);
    };
    return window.React.createElement("a", { href: href, onClick: go, tabIndex: -1 }, String(props.value ?? ""));
  };

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    later: { made: (_, component) => component },
  });

  // A table is made when its place comes near to what is seen, once; where it is empty again, since what is shown was
  // made anew, once more.
  let times = 0;
  const seen = new IntersectionObserver((places) => {
    for (const { isIntersecting, target } of places) {
      if (!isIntersecting || target.firstChild || target.dataset.asked) continue;
      target.dataset.asked = "yes";
      window.dash_clientside.set_props(JSON.parse(target.id), { n_clicks: ++times });
    }
  }, { rootMargin: "40px" });
  const look = () => {
    for (const place of document.querySelectorAll(".explorer-later")) {
      if (place.firstChild) delete place.dataset.asked;
      else if (!place.dataset.asked) {
        seen.unobserve(place);
        seen.observe(place);
      }
    }
  };
  document.addEventListener("DOMContentLoaded", () =>
    new MutationObserver(look).observe(document.body, { childList: true, subtree: true }));

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !event.target.matches || !event.target.matches(".ag-cell")) return;
    const link = event.target.querySelector("a[href]");
    if (link) link.click();
  });
})();
