// Buttons that copy the lines beside them; where there is no clipboard the lines are marked, to be copied by hand.
document.addEventListener("click", (event) => {
  const button = event.target.closest(".explorer-copy");
  if (!button) return;
  const lines = button.parentElement.querySelector("pre");
  const copied = navigator.clipboard ? navigator.clipboard.writeText(lines.textContent) : Promise.reject();
  copied.then(() => window.explorer.say("Copied"), () => {
    const all = document.createRange();
    all.selectNodeContents(lines);
    getSelection().removeAllRanges();
    getSelection().addRange(all);
    window.explorer.say("The lines are marked: copy them");
  });
});
