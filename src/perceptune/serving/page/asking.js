// Questions: sent with what is attached, one at a time, and stopped.

import { at, say, trouble } from "./elements.js";
import { Exchange } from "./exchange.js";
import { lock } from "./lock.js";
import { chosen, state } from "./state.js";

const KEPT = 10; // answers on the page

/** Asks the chosen runs what the form says. */
export async function ask() {
  if (state.busy) return;
  const runs = chosen();
  const question = at("question").value.trim();
  trouble("");
  if (!question && runs.some((run) => run.asks)) {
    trouble("Write a question first.");
    at("question").focus();
    return;
  }
  const exchange = new Exchange(runs, question, Object.values(state.media), state.reference, settings());
  at("answered").hidden = false;
  at("exchanges").prepend(exchange.element);
  while (at("exchanges").children.length > KEPT) at("exchanges").lastChild.remove();
  state.busy = new AbortController();
  busy(true);
  say(`Asking ${runs.map((run) => run.id).join(" and ")}.`);
  const refused = await exchange.run(state.busy.signal);
  const stopped = state.busy.signal.aborted;
  state.busy = null;
  busy(false);
  say(stopped ? "Stopped." : "Done.");
  if (refused === 401) lock("the server asks for another one");
}

function settings() {
  const given = {};
  for (const [id, name] of [["tokens", "max_completion_tokens"], ["temperature", "temperature"], ["seed", "seed"]]) {
    if (at(id).value !== "") given[name] = Number(at(id).value);
  }
  return given;
}

function busy(on) {
  const inside = document.activeElement === at("stop");
  at("stop").hidden = !on;
  at("go").setAttribute("aria-disabled", String(on));
  if (!on && inside) at("question").focus();
}

const stop = () => state.busy?.abort();

at("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("ask").requestSubmit();
});
at("question").addEventListener("input", () => {
  state.reference = null;
});
