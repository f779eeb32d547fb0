// The keys that the dialog lists. None acts while somebody types, or with a modifier that belongs to the browser.
(function () {
  const steps = { j: ["head", 1], k: ["head", 0], J: ["layer", 1], K: ["layer", 0], n: ["unit", 1], p: ["unit", 0],
    r: ["run", 1], R: ["run", 0], c: ["condition", 1], C: ["condition", 0] };

  function toggle() {
    const dialog = document.getElementById("keys");
    if (!dialog) return;
    if (dialog.open) dialog.close();
    else dialog.showModal();
  }

  function step(name, way) {
    const shown = document.querySelector("[data-steps]");
    const around = shown && JSON.parse(shown.dataset.steps)[name];
    const value = around && around[way];
    if (value === null || value === undefined) return;
    const parts = new URLSearchParams(location.search);
    (JSON.parse(shown.dataset.resets || "{}")[name] || []).forEach((part) => parts.delete(part));
    parts.set(name, value);
    window.explorer.go(location.pathname + "?" + parts);
  }

  document.addEventListener("click", (event) => {
    if (event.target.closest("#keys-open, #keys-close")) toggle();
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    if (typing) {
      if (event.key === "Escape") typing.blur();
      return;
    }
    if (event.key === "?") toggle();
    else if (/^[0-9]$/.test(event.key)) {
      const links = document.querySelectorAll(".explorer-nav a");
      const link = links[event.key === "0" ? 9 : Number(event.key) - 1];
      if (link) link.click();
    } else if (event.key === "d") {
      const button = document.querySelector(".explorer-header .mantine-ActionIcon-root, .explorer-scheme");
      if (button) button.click();
    } else if (steps[event.key]) step(...steps[event.key]);
    else return;
    event.preventDefault();
  });
})();
