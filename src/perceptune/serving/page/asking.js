// Questions: sent with what is attached, one at a time, and stopped.

import { showMedia } from "./attached.js";
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
  const talks = runs.every((run) => run.takes_history);
  const exchange = talks && state.thread?.continues(runs) ? state.thread : begun(runs);
  state.thread = talks ? exchange : null;
  const media = [...state.media];
  const { reference } = state;
  if (talks) fill("", []);
  state.busy = new AbortController();
  busy(true);
  say(`Asking ${runs.map((run) => run.id).join(" and ")}.`);
  const { status, answered } = await exchange.ask(question, media, reference, settings(), state.busy.signal);
  const stopped = state.busy.signal.aborted;
  state.busy = null;
  busy(false);
  if (talks && !answered && !at("question").value && !state.media.length) fill(question, media); // to be asked again
  say(stopped ? "Stopped." : "Done.");
  if (status === 401) lock("the server asks for another one");
}

function begun(runs) {
  const exchange = new Exchange(runs);
  at("answered").hidden = false;
  at("exchanges").prepend(exchange.element);
  while (at("exchanges").children.length > KEPT) at("exchanges").lastChild.remove();
  return exchange;
}

function fill(question, media) {
  at("question").value = question;
  state.media = media;
  state.reference = null;
  showMedia();
  offerFresh();
}

/** Offers to begin a new conversation where the next question would continue one. */
export function offerFresh() {
  at("fresh").hidden = !state.thread?.continues(chosen());
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

at("fresh").addEventListener("click", () => {
  state.thread = null;
  offerFresh();
  at("question").focus();
});
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
