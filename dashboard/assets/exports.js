// Ways out of a figure: a picture as it would be printed, and the lines that make it in Python.
(function () {
  const save = (href, name) => {
    const link = document.createElement("a");
    link.href = href;
    link.download = name;
    link.click();
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-export], [data-python]");
    if (!button) return;
    if (button.dataset.python !== undefined) {
      showLines(button);
      return;
    }
    const graph = document.getElementById(button.dataset.place).querySelector(".js-plotly-plot");
    if (!graph) return;
    const kind = button.dataset.export;
    // On white, whatever the page's colours are: a picture goes where nobody knows of them.
    const figure = { data: graph.data, layout: { ...graph.layout, paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff" } };
    const size = { width: Math.max(graph.clientWidth, 640), height: Math.max(graph.clientHeight, 320) };
    const picture = await window.Plotly.toImage(figure, { format: kind, scale: kind === "png" ? 2 : 1, ...size });
    save(picture, button.dataset.place + "." + kind);
    window.explorer.say(kind.toUpperCase() + " saved");
  });

  // Shown as well as copied: a clipboard is not always to be had, and what was copied wants to be seen.
  function showLines(button) {
    const section = button.closest("section");
    let lines = section.querySelector("pre.explorer-lines");
    if (lines) {
      lines.remove();
      return;
    }
    lines = document.createElement("pre");
    lines.className = "explorer-lines";
    lines.tabIndex = 0;
    lines.textContent = button.dataset.python;
    section.querySelector(".explorer-panel-head").after(lines);
    const copied = navigator.clipboard ? navigator.clipboard.writeText(lines.textContent) : Promise.reject();
    copied.then(() => window.explorer.say("Copied"), () => {
      const all = document.createRange();
      all.selectNodeContents(lines);
      getSelection().removeAllRanges();
      getSelection().addRange(all);
      window.explorer.say("The lines are marked: copy them");
    });
  }
})();
