// Rows of the data that a run is evaluated on, which ask at one click.

import { get } from "./api.js";
import { ask } from "./asking.js";
import { showMedia } from "./attached.js";
import { at, made } from "./elements.js";
import { attempt } from "./lock.js";
import { shown } from "./media.js";
import { named, state } from "./state.js";

let turns = 0;

/** Those of the run that is asked. */
export async function showExamples() {
  const run = named(at("run").value);
  turns += 1;
  const turn = turns;
  at("shown").hidden = !run?.examples;
  if (!run?.examples) return;
  await attempt(async () => {
    const { data } = await get(`v1/examples/${encodeURIComponent(run.id)}`);
    if (turn !== turns) return; // another run was chosen meanwhile
    at("shown-run").textContent = run.id;
    at("examples").replaceChildren(...data.map(example));
  });
}

function example(row) {
  const item = made("li");
  const button = made("button", undefined, "example");
  button.type = "button";
  const urls = Object.entries(row.media).flatMap(([kind, own]) => [own].flat().map((url) => [kind, url]));
  const media = urls.map(([kind, url]) => ({
    kind, url, name: `example ${row.id + 1}`, size: Math.floor((url.length - url.indexOf(",") - 1) * 0.75),
  }));
  const image = media.find((one) => one.kind === "image");
  if (image) button.append(shown(image, ""));
  for (const one of media) {
    if (one !== image) button.append(made("span", one.kind, "chip"));
  }
  button.append(made("span", row.prompt || "what is it?", "question"));
  button.addEventListener("click", () => {
    if (state.busy) return;
    state.media = [...media];
    state.thread = null; // an example is a question of its own
    at("question").value = row.prompt;
    state.reference = row.targets;
    showMedia();
    ask();
    at("answered").scrollIntoView({ block: "nearest" });
  });
  item.append(button);
  return item;
}
