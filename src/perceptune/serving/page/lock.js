// The key: asked for where the server wants one, and what else a request may fail of.

import { Refusal, key } from "./api.js";
import { at, trouble } from "./elements.js";

/** Runs something that may fail in words. */
export async function attempt(work) {
  trouble("");
  try {
    await work();
  } catch (error) {
    if (error instanceof Refusal && error.status === 401) lock(error.message);
    else trouble(error instanceof Refusal && error.status ? `${error.message} (status ${error.status})` : error.message);
  }
}

/** Nothing but a field for the key. */
export function lock(message) {
  for (const id of ["ask", "answered", "shown", "inside"]) at(id).hidden = true;
  at("lock").hidden = false;
  at("forget").hidden = true;
  if (key.get()) trouble(`That key was not taken: ${message} (status 401)`);
  key.set("");
  at("key").value = "";
  at("key").focus();
}

/** Calls `begin` with every key that is given. */
export function unlockWith(begin) {
  at("unlock").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = at("key").value.trim();
    if (!/^[!-~]+$/.test(given)) {
      trouble("A key is plain letters, digits and signs, without blanks.");
      return;
    }
    key.set(given);
    attempt(async () => {
      await begin();
      at("question").focus();
    });
  });
}

at("forget").addEventListener("click", () => {
  key.set("");
  location.reload();
});
