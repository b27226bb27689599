// The server's routes, as any client of it would ask them.

const PLACE = "perceptune-key";
let held = "";

/** The API key: in the tab's own storage, or only in memory where there is none. */
export const key = {
  get() {
    try {
      return sessionStorage.getItem(PLACE) ?? held;
    } catch {
      return held;
    }
  },
  set(value) {
    held = value;
    try {
      if (value) sessionStorage.setItem(PLACE, value);
      else sessionStorage.removeItem(PLACE);
    } catch {
      // Storage is switched off: the key lives as long as the page.
    }
  },
};

/** What the server said instead of an answer; status 0 if it said nothing. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw new Refusal(response.status, await reason(response));
  return response;
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return response.statusText || "The server gave no reason.";
  }
}

export async function get(path) {
  return (await ask(path)).json();
}

/** Pieces of an answer as they come: `{note}` of the server, `{text}`, at the end `{reason}` and `{usage}`. Throws `Refusal`. */
export async function* completion(body, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const note = response.headers.get("X-Perceptune-Note");
  if (note) yield { note };
  for await (const event of events(response, signal)) {
    if (event.error) throw new Refusal(503, event.error.message);
    const choice = event.choices[0];
    if (choice?.delta.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { reason: choice.finish_reason };
    if (event.usage) yield { usage: event.usage };
  }
}

async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Refusal(0, "The server ended the answer early.");
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } catch (error) {
    if (error instanceof Refusal || signal.aborted) throw error;
    throw new Refusal(0, "The connection broke before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
