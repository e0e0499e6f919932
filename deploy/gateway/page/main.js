// The page: which conversation is shown, and what its buttons do.

import { Problem, json, key, setKey } from "./api.js";
import { cancel, follow } from "./answer.js";
import { turnToAsk } from "./asking.js";
import * as attention from "./attention.js";
import * as composer from "./composer.js";
import * as conversations from "./conversations.js";
import { confirmed } from "./dialogs.js";
import * as drawers from "./drawers.js";
import * as latency from "./latency.js";
import * as messages from "./messages.js";
import { say, showProblem, tell } from "./notices.js";
import * as settings from "./settings.js";
import * as sidebar from "./sidebar.js";
import * as transcript from "./transcript.js";

const $ = (id) => document.getElementById(id);
const HASH = "#chat=";
const runs = new Map(); // answers that are being made, by conversation
let models = [];
let shown = blank(); // the conversation on the screen

/** Nothing said yet. `list` are the messages before the pending question, `sinks` null where they are not known. */
function blank() {
  return { conversation: null, list: [], more: false, sinks: null, points: [], firstToken: null, editing: null };
}

// Start.

async function start() {
  try {
    models = (await json("v1/models")).data;
  } catch (problem) {
    if (problem.status === 401) return askForKey(start);
    return showProblem(problem, start);
  }
  showProblem(null);
  settings.show(models);
  await openFromAddress();
}

async function openFromAddress() {
  const id = location.hash.startsWith(HASH) ? location.hash.slice(HASH.length) : "";
  if (location.hash && !id) return;
  await open(conversations.find(id));
}

/** Show a conversation, or null for a new one. */
async function open(conversation) {
  shown = { ...blank(), conversation };
  showProblem(null);
  drawers.close();
  const address = conversation ? HASH + conversation.id : location.pathname;
  if (conversation ? location.hash !== address : location.hash) history.pushState(null, "", address);
  if (conversation) shown.points = latency.read(conversation.id);
  draw();
  const end = conversation?.pending ? conversation.pending.parent : conversation?.head;
  if (end) await load(end);
  messages.scrollToEnd();
  if (conversation?.pending && !runs.has(conversation.id)) await run(conversation);
  composer.focus();
}

async function load(head) {
  const view = shown;
  view.loading = true;
  draw();
  try {
    const { messages: list, sinks, more } = await transcript.latest(head);
    Object.assign(view, { list, sinks, more });
  } catch (problem) {
    if (view === shown) showProblem(problem, () => open(view.conversation));
  }
  view.loading = false;
  if (view === shown) draw();
}

async function loadEarlier() {
  const view = shown;
  try {
    const page = await transcript.before(view.list.at(-1).turn, view.list[0]);
    view.list.unshift(...page.messages);
    view.more = page.more;
    if (view === shown) messages.keepingPlace(draw);
  } catch (problem) {
    showProblem(problem, loadEarlier);
  }
}

// Questions and answers.

/** Ask `text` behind the response `parent`; null begins the conversation. */
async function ask(text, parent) {
  let { conversation } = shown;
  if (!conversation) {
    conversation = shown.conversation = conversations.create(text, $("instructions").value.trim(), settings.model());
    history.pushState(null, "", HASH + conversation.id);
  }
  const at = parent === null ? 0 : shown.list.findIndex((m) => m.turn === parent && m.role === "assistant") + 1;
  shown.list = shown.list.slice(0, at);
  shown.editing = null;
  conversation.pending = conversations.question(text, parent);
  conversations.save(conversation);
  await run(conversation);
}

/** The model of a conversation stays the same: no other one can continue it. */
function modelOf(conversation) {
  return conversation?.model ?? settings.model();
}

function body(conversation) {
  const { pending, instructions } = conversation;
  const first = instructions ? { instructions } : {};
  return {
    ...settings.parameters(),
    model: modelOf(conversation),
    input: pending.text,
    ...(pending.parent === null ? first : { previous_response_id: pending.parent }),
  };
}

/** Make, or go on with, the answer to a conversation's pending question. */
async function run(conversation) {
  const { pending } = conversation;
  const controller = new AbortController();
  const points = latency.read(conversation.id);
  const answer = { id: pending.id, text: "", tokens: null, controller, lost: false };
  const begun = performance.now();
  let before = null; // when the last token came, to measure the next
  let caughtUp = pending.id === null;
  let asked = () => {}; // lets other tabs follow
  const isShown = () => shown.conversation?.id === conversation.id;
  const on = {
    begun(response) {
      answer.id = pending.id = response.id;
      answer.tokens = response.input_tokens ?? null;
      while (caughtUp && points.at(-1)?.[0] > answer.tokens) points.pop(); // another branch's
      conversations.save(conversation);
      asked();
    },
    pieces(texts) {
      const now = performance.now();
      if (caughtUp && before === null && !answer.text && isShown()) shown.firstToken = now - begun;
      answer.lost = false;
      answer.text += texts.join("");
      texts.forEach(() => {
        if (answer.tokens === null) return;
        answer.tokens += 1;
        if (caughtUp && before !== null) points.push([answer.tokens, (now - before) / texts.length]);
      });
      before = now;
      caughtUp = true;
      if (isShown()) {
        say("");
        messages.append(texts.join(""));
        shown.points = points;
        drawSoon();
      }
    },
    lost() {
      before = null;
      caughtUp = false;
      answer.lost = true;
      if (isShown()) draw();
    },
  };
  runs.set(conversation.id, answer);
  if (isShown()) {
    showProblem(null);
    draw();
    messages.scrollToEnd();
  }
  let response = null;
  let problem = null;
  try {
    if (pending.id === null) {
      asked = await turnToAsk(pending.key, controller.signal);
      const kept = conversations.find(conversation.id); // another tab may have asked meanwhile
      if (!kept || kept.over === pending.key) {
        runs.delete(conversation.id);
        return isShown() ? open(kept) : drawList();
      }
      if (kept.pending?.key === pending.key) answer.id = pending.id = kept.pending.id;
      caughtUp = pending.id === null;
    }
    const question = pending.id === null ? body(conversation) : null;
    response = await follow({ body: question, id: pending.id, signal: controller.signal, on });
    if (response.status === "failed") problem = new Problem(response.error.message, 500);
  } catch (error) {
    problem = error;
  } finally {
    asked();
  }
  runs.delete(conversation.id);
  latency.keep(conversation.id, points);
  if (problem) failed(conversation, problem);
  else ended(conversation, response);
}

function ended(conversation, response) {
  const { text, parent } = conversation.pending;
  conversation.parents[response.id] = parent;
  conversation.head = response.id;
  conversations.settle(conversation);
  conversations.save(conversation);
  if (shown.conversation?.id !== conversation.id) return drawList();
  const view = shown;
  const { usage } = response;
  const fed = usage?.input_tokens_details.cached_tokens;
  const range = usage && [fed ? fed + 1 : 0, usage.input_tokens];
  const said = { turn: response.id, role: "user", text, status: "completed", range };
  const answer = transcript.answer(response);
  view.list.push(said, answer);
  draw();
  tell(`Answer: ${answer.text}`);
  if (view.sinks === null) json(`v1/responses/${response.id}/input_items?limit=1`).then(
    (page) => {
      view.sinks = page.sink_tokens;
      if (view === shown) draw();
    },
    () => {}, // a server that keeps nothing: the model's own number stays
  );
}

function failed(conversation, problem) {
  const { pending } = conversation;
  if (problem.name === "AbortError") { // stopped before its first token
    conversations.settle(conversation);
    composer.giveBack(pending.text);
    if (conversation.head) conversations.save(conversation);
    else conversations.remove(conversation.id);
    if (shown.conversation?.id === conversation.id) open(conversation.head ? conversation : null);
    return;
  }
  if (pending.id !== null && problem.status === 404) {
    problem = new Problem("The server was stopped, and has kept nothing of this answer.", 404);
  }
  if (!problem.passes) pending.id = null; // it is over: asked again, the question gets another answer
  conversations.save(conversation);
  if (shown.conversation?.id !== conversation.id) return drawList();
  draw();
  if (problem.status === 401) askForKey(() => run(conversation));
  else showProblem(problem, () => run(conversation));
}

async function stop() {
  const answer = runs.get(shown.conversation?.id);
  if (!answer) return;
  say("Stopping.");
  if (answer.id === null) return answer.controller.abort(new DOMException("stopped", "AbortError"));
  await cancel(answer.id).catch((problem) => say(problem.message));
}

function choose(id) {
  const { conversation } = shown;
  conversation.head = conversations.tip(conversation, id);
  conversations.save(conversation);
  open(conversation);
}

async function removeConversation(conversation) {
  if (!(await confirmed($("delete-dialog"), "delete"))) return;
  const responses = Object.keys(conversation.parents).reverse();
  if (conversation.pending?.id) await cancel(conversation.pending.id).catch(() => {});
  try {
    for (const id of [...new Set([conversation.pending?.id, ...responses])].filter(Boolean)) {
      await json(`v1/responses/${id}`, { method: "DELETE" }).catch((problem) => {
        if (problem.status !== 404) throw problem;
      });
    }
  } catch (problem) {
    return showProblem(problem, () => removeConversation(conversation));
  }
  conversations.remove(conversation.id);
  latency.forget(conversation.id);
  if (shown.conversation?.id === conversation.id) await open(null);
  else drawList();
  tell("The conversation was deleted.");
}

/** Another tab has kept something: follow it, if its conversation is on the screen and nothing is under way in this tab. */
function changedElsewhere() {
  const { conversation, editing } = shown;
  if (!conversation || conversation.pending || editing) return drawList();
  const kept = conversations.find(conversation.id);
  if (!kept) return open(null);
  const { pending, head } = kept;
  const follows = pending?.id && pending.parent === conversation.head;
  if (follows) return open(kept);
  if (head !== conversation.head && conversations.continues(kept, head, conversation.head)) {
    return open({ ...kept, pending: null });
  }
  conversation.parents = kept.parents;
  draw();
}

// The screen.

function draw() {
  const { conversation, list, more, points } = shown;
  const answer = runs.get(conversation?.id);
  const pending = conversation?.pending;
  const all = [...list];
  if (conversation?.instructions && !more) all.unshift({ role: "system", text: conversation.instructions });
  if (pending) all.push({ turn: null, role: "user", text: pending.text, parent: pending.parent });
  if (answer) all.push({ turn: null, role: "assistant", text: answer.text, live: true });
  const on = {
    edit(message) {
      shown.editing = message;
      draw();
    },
    save: (message, text) => ask(text, message.turn ? conversation.parents[message.turn] : message.parent),
    regenerate: (message) => ask(questionOf(message), conversation.parents[message.turn]),
    choose,
  };
  const versions = (message) => conversations.versions(conversation, message.turn);
  const { tokens, size, recalled } = drawPanel();
  messages.render(all, { tokens, size, recalled, editing: shown.editing, busy: Boolean(answer), versions, on });
  messages.setBusy(Boolean(answer));
  $("welcome").hidden = Boolean(conversation) || shown.loading;
  $("earlier").hidden = !more;
  $("title").textContent = conversation?.title ?? "New chat";
  document.title = conversation ? `${conversation.title} · trtstream` : "trtstream";
  $("choose-model").hidden = models.length < 2 || Boolean(conversation);
  $("model-name").textContent = conversation || models.length === 1 ? modelOf(conversation) : "";
  $("instructions").readOnly = Boolean(conversation);
  if (conversation) $("instructions").value = conversation.instructions;
  $("stop").hidden = !answer;
  $("send").hidden = Boolean(answer);
  if (shown.loading) say("Loading the conversation …");
  else if (answer?.lost) say("The connection was lost; trying again …");
  else if (answer && !answer.text) say("Reading the message …");
  else if (answer) say("");
  else if (/…$/.test($("status").textContent)) say("");
  drawList();
}

function drawPanel() {
  const model = models.find((m) => m.id === modelOf(shown.conversation));
  const answer = runs.get(shown.conversation?.id);
  const tokens = answer?.tokens ?? shown.list.at(-1)?.range?.[1] ?? 0;
  const known = model?.max_attention_window !== undefined;
  const size = known ? attention.sizes(model, shown.sinks ?? model.sink_token_length) : null;
  const recalled = (answer ? null : shown.list.at(-1)?.recalled) ?? [];
  if (size) attention.draw(tokens, size, recalled);
  latency.draw(shown.points, size?.window ?? 0);
  $("first-token").textContent = shown.firstToken === null ? "–" : latency.format(shown.firstToken);
  return { tokens, size, recalled };
}

let drawing = 0;

function drawSoon() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    drawPanel();
  });
}

function drawList() {
  sidebar.draw(conversations.list(), { shown: shown.conversation?.id, running: runs, address: (id) => HASH + id, removeConversation });
}

function questionOf(message) {
  return shown.list.find((m) => m.turn === message.turn && m.role === "user").text;
}

async function askForKey(then) {
  $("key").value = key();
  if (!(await confirmed($("key-dialog"), "save"))) {
    return then && showProblem(new Problem("This server needs an API key."), then);
  }
  setKey($("key").value.trim());
  then?.();
}

// The rest of the page.

composer.whenSent((text) => {
  if (runs.has(shown.conversation?.id) || shown.loading) return false;
  const { conversation } = shown;
  ask(text, conversation ? (conversation.pending ? conversation.pending.parent : conversation.head) : null);
  return true;
});
addEventListener("keydown", (event) => event.key === "Escape" && !document.querySelector("dialog[open]") && stop());
$("stop").addEventListener("click", stop);
$("earlier").addEventListener("click", loadEarlier);
$("new").addEventListener("click", () => open(null));
$("change-key").addEventListener("click", () => askForKey(start));
$("settings").elements.model.addEventListener("change", draw);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  composer.focus();
});
addEventListener("popstate", openFromAddress);
conversations.whenChangedElsewhere(changedElsewhere);
start();
