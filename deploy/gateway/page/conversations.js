// Which conversations there are: ids and titles in this browser. What was said in them is on the server.
//
// A conversation is a tree of responses, as an edited question or another answer continues an earlier response:
// `parents` has each response's parent (null for a first one), the oldest first. `head` is the response that is shown as
// the last. `pending` is the question whose answer is being made: {key, text, parent, id}, its id null before the first
// token; `over` is the key of the one before it.
//
// Several tabs may show one conversation, each at a branch of its own and with a question of its own.

const CONVERSATIONS = "trtstream.conversations";
const TITLE_LENGTH = 60;

/** All of them, the one that was used last first. */
export function list() {
  return Object.values(read()).sort((a, b) => b.updated - a.updated);
}

export function find(id) {
  return read()[id] ?? null;
}

export function create(question, instructions, model) {
  const title = question.trim().replace(/\s+/g, " ").slice(0, TITLE_LENGTH);
  return { id: newId(), title, instructions, model, parents: {}, head: null, pending: null, updated: 0 };
}

export function question(text, parent) {
  return { key: newId(), text, parent, id: null };
}

/** The pending question has its answer, or was taken back. */
export function settle(conversation) {
  conversation.over = conversation.pending.key;
  conversation.pending = null;
}

/** Keep a conversation, with what other tabs have added to it, unless one of them has deleted it. */
export function save(conversation) {
  const all = read();
  const kept = all[conversation.id];
  if (!kept && conversation.updated) return;
  conversation.parents = { ...kept?.parents, ...conversation.parents };
  conversation.updated = Date.now();
  const others = kept?.pending?.key === conversation.over ? null : kept?.pending;
  write({ ...all, [conversation.id]: { ...conversation, pending: conversation.pending ?? others ?? null } });
}

export function remove(id) {
  const { [id]: _, ...others } = read();
  write(others);
}

/** The responses that continue the same one as `id`, itself included. */
export function versions(conversation, id) {
  return children(conversation, conversation.parents[id] ?? null);
}

/** The response at the end of the branch that was continued last, from `id` on. */
export function tip(conversation, id) {
  for (let next; (next = children(conversation, id).at(-1)); ) id = next;
  return id;
}

/** Whether the response `id` comes after `earlier` in its branch. */
export function continues(conversation, id, earlier) {
  while (id && id !== earlier) id = conversation.parents[id];
  return id === earlier;
}

export function whenChangedElsewhere(tell) {
  addEventListener("storage", (event) => event.key === CONVERSATIONS && tell());
}

function newId() { // crypto.randomUUID is for secure origins alone
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function children(conversation, parent) {
  return Object.keys(conversation.parents).filter((id) => conversation.parents[id] === parent);
}

function read() {
  return JSON.parse(localStorage.getItem(CONVERSATIONS) ?? "{}");
}

function write(conversations) {
  localStorage.setItem(CONVERSATIONS, JSON.stringify(conversations));
}
