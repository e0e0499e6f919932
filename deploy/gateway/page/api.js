// Requests to the gateway: with the key, with errors as sentences, and with streams of events.

const KEY = "trtstream.key";

/** What went wrong, as a sentence. `status` is 0 where the server did not answer. */
export class Problem extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** Whether the same request may go well in a moment. */
  get passes() {
    return [0, 429, 502, 503, 504].includes(this.status);
  }
}

export function key() {
  return localStorage.getItem(KEY) ?? "";
}

export function setKey(value) {
  if (value) localStorage.setItem(KEY, value);
  else localStorage.removeItem(KEY);
}

/** The response, if it is a good one. Throws a Problem, or an AbortError. */
export async function request(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (key()) headers.authorization = `Bearer ${key()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached. It may be restarting.");
  }
  if (response.ok) return response;
  const error = (await response.json().catch(() => ({})))?.error ?? {};
  throw new Problem(sentence(error.message ?? `The server answered with status ${response.status}`), response.status, error.code);
}

export async function json(path, options) {
  return (await request(path, options)).json();
}

/** The events of a stream, in lists of those that came together. Throws a Problem if the connection is lost. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      const data = blocks.flatMap((block) => block.split("\n").filter((line) => line.startsWith("data: ")));
      yield data.map((line) => JSON.parse(line.slice("data: ".length)));
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The connection was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}
