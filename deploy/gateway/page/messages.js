// The list of messages. What people and models write is text here, never HTML.

import { readAgain, seen } from "./attention.js";

const ol = document.getElementById("messages");
const scroll = document.getElementById("scroll");
const NAMES = { user: "You", assistant: "Model", system: "System prompt" };
const NOTES = {
  incomplete: "The answer reached its greatest length.",
  cancelled: "The answer was stopped.",
};
const HIDDEN = { out: "no longer seen by the model", part: "seen in part by the model" };

/**
 * Show `messages`. `on` has what can be done with them: edit(message), save(message, text), regenerate(message),
 * choose(id). `editing` is the message that is edited. `versions(message)` are the responses among which one can choose.
 */
export function render(messages, { tokens, size, recalled, editing, busy, versions, on }) {
  const stays = isAtEnd();
  const states = messages.map((message) => (size && message.range ? seen(message.range, tokens, size) : "in"));
  const lastHidden = states.findLastIndex((state) => state !== "in");
  const nodes = messages.flatMap((message, i) => {
    const again = Boolean(message.range) && readAgain(message.range, recalled);
    const node = editing === message ? editor(message, on) : item(message, states[i], { again, busy, versions, on });
    return i === lastHidden ? [node, divider()] : [node];
  });
  ol.replaceChildren(...nodes);
  if (stays) scrollToEnd();
  editing && ol.querySelector("textarea")?.focus();
}

/** Add text to the last message. */
export function append(text) {
  const stays = isAtEnd();
  ol.lastElementChild.querySelector(".text").append(text);
  if (stays) scrollToEnd();
}

export function setBusy(busy) {
  ol.setAttribute("aria-busy", busy);
}

export function scrollToEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}

/** Do `change`, which puts messages before the others, without moving what is on the screen. */
export function keepingPlace(change) {
  const fromEnd = scroll.scrollHeight - scroll.scrollTop;
  change();
  scroll.scrollTop = scroll.scrollHeight - fromEnd;
}

function isAtEnd() {
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
}

function item(message, state, { again, busy, versions, on }) {
  const li = make("li", `message ${message.role}`);
  li.dataset.seen = state;
  const who = make("div", "who", NAMES[message.role]);
  const tags = [HIDDEN[state], again && "read again for the last answer"].filter(Boolean);
  if (tags.length) who.append(make("span", "tag", tags.join(", ")));
  const text = make("div", "text", message.text);
  if (message.live) li.classList.add("live");
  li.append(who, text);
  if (NOTES[message.status] && message.role === "assistant") li.append(make("p", "note", NOTES[message.status]));
  if (message.role !== "system" && !message.live) li.append(actions(message, { busy, versions, on }));
  return li;
}

function actions(message, { busy, versions, on }) {
  const row = make("div", "actions");
  const ids = message.role === "user" ? [] : versions(message);
  if (ids.length > 1) {
    const at = ids.indexOf(message.turn);
    const count = make("span", "count", `${at + 1} of ${ids.length}`);
    row.append(
      button("‹", "Earlier version", () => on.choose(ids[at - 1]), busy || at === 0),
      count,
      button("›", "Later version", () => on.choose(ids[at + 1]), busy || at === ids.length - 1),
    );
  }
  row.append(button("Copy", "Copy the message", () => navigator.clipboard?.writeText(message.text)));
  if (message.role === "user") row.append(button("Edit", "Edit the message", () => on.edit(message), busy));
  else row.append(button("Regenerate", "Make another answer", () => on.regenerate(message), busy));
  return row;
}

function editor(message, on) {
  const li = make("li", "message user editing");
  const form = make("form", "");
  const area = make("textarea", "");
  area.value = message.text;
  area.rows = Math.min(message.text.split("\n").length + 1, 12);
  area.setAttribute("aria-label", "The message, edited");
  const row = make("menu", "");
  const send = make("button", "button strong", "Send");
  row.append(button("Cancel", "Leave the message as it was", () => on.edit(null), false, "button"), send);
  form.append(area, row);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (area.value.trim()) on.save(message, area.value);
  });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") on.edit(null);
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
    event.stopPropagation();
  });
  li.append(form);
  return li;
}

function divider() {
  return make("li", "divider", "The model sees what is below, and the sinks");
}

function button(text, label, act, disabled = false, kind = "link") {
  const node = make("button", kind, text);
  node.type = "button";
  node.title = label;
  node.setAttribute("aria-label", label);
  node.disabled = disabled;
  node.addEventListener("click", act);
  return node;
}

function make(tag, kind, text = "") {
  const node = document.createElement(tag);
  node.className = kind;
  node.textContent = text;
  return node;
}
