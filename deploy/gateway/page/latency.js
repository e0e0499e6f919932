// How long each token took, over the whole conversation: a line that stays flat.

const POINTS = 600; // kept for a conversation
const BUCKETS = 48; // of the line, each with the median of its points
const WIDTH = 280;
const HEIGHT = 104;
const TOP = 8; // above the highest point
const SVG = "http://www.w3.org/2000/svg";
const chart = document.getElementById("chart");

/** The points of a conversation: [its tokens by then, milliseconds since the token before]. */
export function read(conversation) {
  return JSON.parse(sessionStorage.getItem(name(conversation)) ?? "[]");
}

export function keep(conversation, points) {
  while (points.length > POINTS) { // each second one stands for two
    points.splice(0, points.length, ...points.filter((_, i) => i % 2));
  }
  try {
    sessionStorage.setItem(name(conversation), JSON.stringify(points));
  } catch {
    // No room: then a reload begins a new line.
  }
}

export function forget(conversation) {
  sessionStorage.removeItem(name(conversation));
}

/** Draw the points; `full` is the number of tokens that fill the window. */
export function draw(points, full) {
  const times = points.map(([, time]) => time).sort((a, b) => a - b);
  const median = times[times.length >> 1];
  document.getElementById("median").textContent = median === undefined ? "–" : format(median);
  chart.replaceChildren();
  if (points.length < 2) {
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "A line, once an answer has come.";
    chart.append(hint);
    return;
  }
  const top = niceAbove(Math.max(2 * median, 1.2 * times[Math.floor(times.length * 0.98)]));
  const first = points[0][0];
  const last = Math.max(points.at(-1)[0], first + 1);
  const x = (tokens) => (WIDTH * (tokens - first)) / (last - first);
  const y = (time) => TOP + (HEIGHT - TOP) * (1 - Math.min(time / top, 1));
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + 16}`, role: "img" });
  svg.setAttribute("aria-label", `Half of the tokens took less than ${format(median)}, at every length so far.`);
  for (const part of [0, 0.5, 1]) {
    const at = y(top * part);
    svg.append(element("line", { class: "grid", x1: 0, x2: WIDTH, y1: at, y2: at }));
    if (part) svg.append(label(2, at - 3, format(top * part)));
  }
  if (full > first && full < last) {
    svg.append(element("line", { class: "full", x1: x(full), x2: x(full), y1: TOP, y2: HEIGHT }));
    const left = x(full) > WIDTH / 2;
    svg.append(label(x(full) + (left ? -4 : 4), TOP + 8, "window full", left ? "end" : "start"));
  }
  const path = (some) => some.map(([tokens, time]) => `${x(tokens).toFixed(1)},${y(time).toFixed(1)}`).join(" ");
  svg.append(element("polyline", { class: "each", points: path(points) }));
  svg.append(element("polyline", { class: "line", points: path(medians(points)) }));
  svg.append(label(0, HEIGHT + 13, `${first.toLocaleString("en")}`));
  svg.append(label(WIDTH, HEIGHT + 13, `${last.toLocaleString("en")} tokens`, "end"));
  chart.append(svg);
}

export function format(milliseconds) {
  if (milliseconds >= 2000) return `${(milliseconds / 1000).toFixed(1)} s`;
  return `${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`;
}

function medians(points) {
  const size = Math.ceil(points.length / BUCKETS);
  const middle = (some, at) => some.map((point) => point[at]).sort((a, b) => a - b)[some.length >> 1];
  const buckets = [];
  for (let i = 0; i < points.length; i += size) buckets.push(points.slice(i, i + size));
  return buckets.map((some) => [middle(some, 0), middle(some, 1)]);
}

function niceAbove(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= value);
}

function label(x, y, text, anchor = "start") {
  const node = element("text", { x, y, "text-anchor": anchor });
  node.textContent = text;
  return node;
}

function element(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function name(conversation) {
  return `trtstream.latency.${conversation}`;
}
