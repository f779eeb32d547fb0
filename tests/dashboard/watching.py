"""What is put into every page of a test's browser: how many answers it waits for, and when it last changed."""

WATCH = """
window.watched = {open: 0, last: performance.now(), bytes: []};
const touch = () => { window.watched.last = performance.now(); };
const ask = window.fetch;
window.fetch = async (...all) => {
  window.watched.open += 1; touch();
  try {
    const answer = await ask(...all);
    const asked = String(all[0].url || all[0]);
    answer.clone().arrayBuffer().then((body) => window.watched.bytes.push([body.byteLength, asked]));
    return answer;
  } finally { window.watched.open -= 1; touch(); }
};
document.addEventListener('DOMContentLoaded', () =>
  new MutationObserver(touch).observe(document.body, {childList: true, subtree: true, characterData: true,
    attributes: true, attributeFilter: ['d', 'href', 'transform', 'data-steps']}));
"""
"""`window.watched`: `open` requests, the time of the `last` change in ms, and the `bytes` of every answer."""
