// Which runs are asked, and what follows from them: what they take, what is shown of them.

import { offerFresh } from "./asking.js";
import { at } from "./elements.js";
import { showExamples } from "./examples.js";
import { showInside } from "./inside.js";
import { NAMES } from "./media.js";
import { chosen, room, state, takes } from "./state.js";

/** Fills the form with the runs that there are. */
export function offerRuns() {
  at("run").replaceChildren(...state.runs.map((run) => new Option(run.id, run.id)));
  at("second").hidden = state.runs.length < 2;
  at("ask").hidden = false;
  describeInputs();
  changedRun();
}

function describeInputs() {
  const kinds = takes();
  const title = listed(kinds, "or");
  at("medium-title").textContent = title.charAt(0).toUpperCase() + title.slice(1);
  at("invitation").textContent = `Drop ${listed(kinds.map((kind) => NAMES[kind]), "or")} here or paste one`;
  const senses = { image: "sees", video: "watches", audio: "hears" };
  at("senses").textContent = listed(Object.keys(senses).filter((kind) => kinds.includes(kind)).map((kind) => senses[kind]), "and");
  at("file").accept = kinds.map((kind) => `${kind}/*`).join(",");
  at("camera-open").hidden = !kinds.includes("image") && !kinds.includes("video");
  at("snap").hidden = !kinds.includes("image");
  at("film").hidden = !kinds.includes("video");
  at("record").hidden = !kinds.includes("audio");
}

const listed = (words, last) => words.join(", ").replace(/, ([^,]*)$/, ` ${last} $1`);

function changedRun() {
  const before = at("other").value;
  at("other").replaceChildren(new Option("nothing", ""));
  for (const run of state.runs) {
    if (run.id !== at("run").value) at("other").append(new Option(run.id, run.id));
  }
  if (before !== at("run").value) at("other").value = before;
  changed();
  showExamples();
}

function changed() {
  const runs = chosen();
  showInside(at("insides"), runs);
  at("inside").hidden = !runs.length;
  at("tokens").max = Math.min(...runs.map((run) => run.limits.tokens));
  at("file").multiple = takes().some((kind) => room(kind) > 1);
  offerFresh();
  const asks = runs.some((run) => run.asks);
  at("question-label").textContent = asks ? "Question" : "Question (these runs need none)";
}

at("run").addEventListener("change", changedRun);
at("other").addEventListener("change", changed);
