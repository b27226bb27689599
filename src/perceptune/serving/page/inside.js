// What the chosen runs are made of, and where what they see enters the language model.

import { made } from "./elements.js";
import { drawing, said, table } from "./levels.js";

const narrow = matchMedia("(max-width: 44rem)");
let last = null;
narrow.addEventListener("change", () => last && showInside(...last));

/** Fills `place` with a card for each run. */
export function showInside(place, runs) {
  last = [place, runs];
  place.replaceChildren(...runs.map(card));
}

function card(run) {
  const whole = made("article", undefined, "card");
  const facts = made("dl");
  const add = (name, value) => {
    const pair = made("div");
    pair.append(made("dt", name), made("dd", value));
    facts.append(pair);
  };
  add("Method", run.method);
  add("Language model", run.lm);
  for (const [kind, name] of Object.entries(run.encoders)) add(`${kind} encoder`, name);
  add("Trained", `${run.trained.toLocaleString("en")} parameters, ${(100 * run.share).toPrecision(2)} %`);
  whole.append(made("h3", run.id), facts);
  for (const kind of Object.keys(run.inputs?.media ?? {})) whole.append(figure(run, kind));
  return whole;
}

function figure(run, kind) {
  const names = { lm: run.lm, encoder: run.encoders[kind] };
  const whole = made("figure");
  const caption = made("figcaption", undefined, "soft small");
  caption.textContent = `Filled: layers that give or are given the ${kind}'s token.`;
  const { layers, vectors } = run.inputs.prompt;
  if (layers.length) {
    const where = layers.length === 1 ? `layer ${layers[0]}` : `layers ${layers[0]} to ${layers.at(-1)}`;
    caption.textContent += ` Dot: ${vectors} trained vectors enter ${where} as well.`;
  }
  const more = made("details", undefined, "more");
  more.append(made("summary", "As a table"), made("p", said(kind, run, names), "small"), table(kind, run));
  whole.append(drawing(kind, run, names, !narrow.matches), caption, more);
  return whole;
}
