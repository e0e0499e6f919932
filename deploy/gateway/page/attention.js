// What the model still sees of a conversation: its sinks and its latest tokens.

const bar = document.getElementById("bar");

/** `window` and `sinks` in tokens, `ring` of the window for the latest tokens. */
export function sizes(model, sinks) {
  const ring = model.max_attention_window - model.sink_token_length;
  return { sinks, ring, window: sinks + ring };
}

/** Whether tokens [first, end) of a conversation of `tokens` are seen: "in", "part" or "out". */
export function seen(range, tokens, { sinks, ring }) {
  const from = tokens - ring; // the oldest token that the ring has
  const [first, end] = range;
  if (end <= sinks || first >= from || from <= sinks) return "in";
  return end <= from && first >= sinks ? "out" : "part";
}

/** Whether any of tokens [first, end) was read again: is in one of the `spans`, [turn, first, end). */
export function readAgain([first, end], spans) {
  return spans.some(([, begin, behind]) => begin < end && first < behind);
}

/** Show the figures and the bar, in which the whole conversation has the width. `recalled` are spans of the last answer. */
export function draw(tokens, size, recalled) {
  const kept = Math.min(tokens, size.sinks);
  const latest = Math.min(tokens - kept, size.ring);
  const out = tokens - kept - latest;
  set("tokens", tokens);
  set("window-size", size.window);
  set("sink-size", size.sinks);
  set("out-size", out);
  set("again-size", recalled.reduce((sum, [, first, end]) => sum + end - first, 0));
  const parts = [["sinks", kept], ["out", out], ["seen", latest], ["free", tokens ? 0 : 1]];
  if (!out) parts.push(["free", size.window - tokens]);
  bar.replaceChildren(...parts.filter(([, count]) => count > 0).map(([kind, count]) => part(kind, count)));
  bar.setAttribute(
    "aria-label",
    `Of ${tokens} tokens the model sees the first ${kept} and the latest ${latest}; ${out} are no longer seen.`,
  );
}

function part(kind, count) {
  const node = document.createElement("span");
  node.className = kind;
  node.style.flexGrow = count;
  return node;
}

function set(id, value) {
  document.getElementById(id).textContent = value.toLocaleString("en");
}
