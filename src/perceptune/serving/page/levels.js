// Which layer of an encoder enters which layers of the language model: a drawing, and the same as a table.

import { made } from "./elements.js";

const SPACE = "http://www.w3.org/2000/svg";

function drawn(name, attributes, text) {
  const element = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Runs of layers that are given the same: `[{from, to, level}]`. */
function spans(enters) {
  const found = [];
  for (const [key, level] of Object.entries(enters)) {
    const layer = Number(key);
    const last = found.at(-1);
    if (last && last.level === level && last.to === layer - 1) last.to = layer;
    else found.push({ from: layer, to: layer, level });
  }
  return found;
}

const range = (one) => (one.from === one.to ? `${one.from}` : `${one.from} to ${one.to}`);

/** In words. */
export function said(kind, about, names) {
  const parts = spans(about.inputs.media[kind].enters).map((one) => `layer ${one.level} enters ${range(one)}`);
  const entered = `Of ${names.encoder}'s ${about.inputs.media[kind].layers} layers, ${parts.join(", ")}`;
  return `${entered} of the ${about.lm_layers} layers of ${names.lm}.`;
}

/** A drawing that lies (`across`) or stands; the bands lead from encoder layers to the LM's. */
export function drawing(kind, about, names, across) {
  const { layers, enters } = about.inputs.media[kind];
  const prompt = about.inputs.prompt;
  const long = across ? 720 : 480;
  const [first, second] = across ? [38, 150] : [40, 190];
  const thick = across ? 26 : 34;
  const size = across ? [long, second + thick + 46] : [280, long + 34];
  const figure = drawn("svg", { viewBox: `0 0 ${size.join(" ")}`, role: "img", class: across ? "across" : "down" });
  figure.setAttribute("aria-label", said(kind, about, names));
  const at = (main, cross) => (across ? [main, cross] : [cross, main + 30]);
  // Equally large cells, each row in the middle.
  const step = Math.min(across ? 40 : 28, long / Math.max(layers, about.lm_layers));
  const start = (count) => (long - step * count) / 2;
  const wide = Math.min(across ? 40 : 28, Math.max(step, (0.7 * long) / layers));
  const encoderStart = (long - wide * layers) / 2;
  const bands = drawn("g", { class: "bands" });
  for (const one of spans(enters)) {
    const corners = [
      at(encoderStart + one.level * wide + 1, first + thick), at(encoderStart + (one.level + 1) * wide - 1, first + thick),
      at(start(about.lm_layers) + (one.to + 1) * step - 1, second), at(start(about.lm_layers) + one.from * step + 1, second),
    ];
    const bend = (first + thick + second) / 2;
    const [a, b, c, d] = corners;
    const main = (point) => (across ? point[0] : point[1] - 30);
    const path = `M${a} L${b} C${at(main(b), bend)} ${at(main(c), bend)} ${c} L${d} C${at(main(d), bend)} ${at(main(a), bend)} ${a} Z`;
    bands.append(drawn("path", { d: path.replaceAll(",", " ") }));
  }
  figure.append(bands);
  const used = new Set(Object.values(enters));
  cells(figure, layers, wide, encoderStart, first, (layer) => used.has(layer));
  cells(figure, about.lm_layers, step, start(about.lm_layers), second, (layer) => layer in enters);
  for (const layer of prompt.layers) {
    const [x, y] = at(start(about.lm_layers) + (layer + 0.5) * step, second + thick + 7);
    figure.append(drawn("circle", { cx: x, cy: y, r: 3.5, class: "prompt" }));
  }
  captions();
  return figure;

  function cells(into, count, width, from, cross, filled) {
    for (let layer = 0; layer < count; layer += 1) {
      const [x, y] = at(from + layer * width + 1, cross);
      const extent = across ? [width - 2, thick] : [thick, width - 2];
      const [w, h] = extent.map((value) => Math.max(1, value));
      into.append(drawn("rect", { x, y, width: w, height: h, rx: Math.min(4, w / 3, h / 3), class: filled(layer) ? "used" : "bare" }));
      if (width >= 15 || layer === 0 || layer === count - 1) {
        into.append(drawn("text", { x: x + w / 2, y: y + h / 2 + 4, class: filled(layer) ? "number on" : "number" }, layer));
      }
    }
  }

  function captions() {
    if (across) {
      figure.append(drawn("text", { x: long / 2, y: 22, class: "caption" }, `layers of ${names.encoder}, the ${kind} encoder`));
      figure.append(drawn("text", { x: long / 2, y: second + thick + 36, class: "caption" }, `layers of ${names.lm}, the language model`));
      return;
    }
    figure.append(drawn("text", { x: first + thick / 2, y: 18, class: "caption" }, "encoder"));
    figure.append(drawn("text", { x: second + thick / 2, y: 18, class: "caption" }, "language model"));
  }
}

/** The same as a table. */
export function table(kind, about) {
  const whole = made("table");
  const head = made("tr");
  for (const name of ["Encoder layer", "enters language model layers"]) {
    const cell = made("th", name);
    cell.scope = "col";
    head.append(cell);
  }
  whole.append(made("thead"), made("tbody"));
  whole.tHead.append(head);
  for (const one of spans(about.inputs.media[kind].enters)) {
    const row = made("tr");
    const cell = made("th", one.level);
    cell.scope = "row";
    row.append(cell, made("td", range(one)));
    whole.tBodies[0].append(row);
  }
  return whole;
}
