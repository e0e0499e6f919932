// One answer, from the question to its end, whatever happens to the connection meanwhile.

import { events, json, request } from "./api.js";

const ENDS = ["response.completed", "response.incomplete", "response.failed"];
const ATTEMPTS = 12;
const LONGEST_PAUSE = 4000; // ms

/**
 * Ask for an answer (`body`), or go on with the one that has `id`; returns the response once it is over.
 *
 * The server makes the answer in the background, so that a lost connection costs nothing: its events are asked for again,
 * from the next one on. A question is asked again only where no token of its answer has come.
 *
 * `on.begun(response)` is called once, `on.pieces(texts)` for texts that came together, `on.lost()` when the
 * connection was lost and is tried again.
 */
export async function follow({ body, id = null, signal, on }) {
  let last = -1; // the number of the last event
  for (let attempt = 0; ; attempt++) {
    try {
      const response = await (id === null ? ask(body, signal) : listen(id, last, signal));
      for await (const batch of events(response)) {
        attempt = 0;
        const pieces = [];
        let end = null;
        for (const event of batch) {
          last = event.sequence_number;
          if (event.type === "response.created") {
            id = event.response.id;
            on.begun(event.response);
          } else if (event.type === "response.output_text.delta") pieces.push(event.delta);
          else if (ENDS.includes(event.type)) end = event.response;
        }
        if (pieces.length) on.pieces(pieces);
        if (end) return end;
      }
      if (id !== null) { // a server that was restarted has the text, but not the events in which it came
        const response = await json(`v1/responses/${id}`, { signal });
        if (response.status !== "in_progress") return response;
      }
    } catch (problem) {
      if (!problem.passes || attempt === ATTEMPTS) throw problem;
    }
    on.lost();
    await pause(Math.min(250 * 2 ** attempt, LONGEST_PAUSE), signal);
  }
}

export function cancel(id) {
  return request(`v1/responses/${id}/cancel`, { method: "POST" });
}

export function textOf(response) {
  return response.output.flatMap((item) => item.content).map((part) => part.text).join("");
}

function ask(body, signal) {
  return request("v1/responses", { method: "POST", signal, body: { ...body, stream: true, background: true } });
}

function listen(id, last, signal) {
  const after = last < 0 ? "" : `&starting_after=${last}`;
  return request(`v1/responses/${id}?stream=true${after}`, { signal });
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => reject(signal.reason);
    if (signal.aborted) return stop();
    signal.addEventListener("abort", stop, { once: true });
    setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
  });
}
