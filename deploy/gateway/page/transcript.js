// What was said in a conversation, from the server, the latest first and a page at a time.

import { json } from "./api.js";
import { textOf } from "./answer.js";

const PAGE = 60; // messages

/**
 * The branch that ends with the response `head`: its latest messages, {turn, role, text, range, status, recalled}, the
 * oldest first; how many sink tokens it has; and whether earlier messages are `more`.
 *
 * `range` is where a message's tokens are in the conversation: [first, end). `recalled` are an answer's spans of earlier
 * tokens that were read again for it: [turn, first, end).
 */
export async function latest(head) {
  const [response, page] = await Promise.all([json(`v1/responses/${head}`), items(head)]);
  return { messages: [...page.messages, answer(response)], sinks: page.sinks, more: page.more };
}

/** The messages before this one. */
export async function before(head, message) {
  const suffix = message.role === "user" ? "_in" : "";
  return items(head, message.turn.replace("resp_", "msg_") + suffix);
}

/** A response's answer as a message. */
export function answer(response) {
  const { usage } = response;
  return {
    turn: response.id,
    role: "assistant",
    text: textOf(response),
    status: response.status,
    range: usage && [usage.input_tokens, usage.total_tokens],
    recalled: response.recalled ?? [],
  };
}

async function items(head, after) {
  const from = after ? `&after=${after}` : "";
  const page = await json(`v1/responses/${head}/input_items?limit=${PAGE}${from}`);
  return { messages: page.data.map(message).reverse(), sinks: page.sink_tokens, more: page.has_more };
}

function message(item) {
  return {
    turn: item.id.replace("msg_", "resp_").replace("_in", ""),
    role: item.role,
    text: item.content.map((part) => part.text).join(""),
    status: item.status,
    range: item.token_range,
  };
}
