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

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !event.target.matches || !event.target.matches(".ag-cell")) return;
    const link = event.target.querySelector("a[href]");
    if (link) link.click();
  });
})();
