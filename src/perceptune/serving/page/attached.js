// The media that are asked about: chosen, pasted, dropped, shown, removed.

import { at, made, say, trouble } from "./elements.js";
import { attempt } from "./lock.js";
import { MANY, medium, shown, size } from "./media.js";
import { room, state, takes } from "./state.js";

/** Attaches files, as far as the runs take them. */
export async function take(files) {
  await attempt(async () => {
    for (const file of files) attach(await medium(file, state.runs[0].limits, takes()));
  });
}

function attach(one) {
  const most = room(one.kind);
  const same = state.media.filter((other) => other.kind === one.kind);
  if (same.length >= most && most > 1) throw new Error(`${one.name} is not attached: a question has ${most} ${MANY[one.kind]} at most here.`);
  if (same.length >= most) state.media[state.media.indexOf(same[0])] = one;
  else state.media.push(one);
  state.reference = null;
  showMedia();
  say(`${one.name} is attached.`);
}

/** What is attached, unless the camera is open. */
export function showMedia() {
  const all = state.media;
  at("empty").hidden = all.length > 0 || !at("camera").hidden;
  at("drop").classList.toggle("full", at("empty").hidden);
  at("tiles").hidden = !all.length || !at("camera").hidden;
  at("tiles").replaceChildren(...all.map(tile));
}

function tile(one) {
  const item = made("li", undefined, "tile");
  const row = made("div", undefined, "row");
  const remove = made("button", "Remove", "quiet");
  remove.type = "button";
  remove.setAttribute("aria-label", `Remove ${one.name}`);
  remove.addEventListener("click", () => {
    state.media = state.media.filter((other) => other !== one);
    state.reference = null;
    showMedia();
    say(`${one.name} is removed.`);
    at("file").focus();
  });
  row.append(made("span", `${one.name}, ${size(one.size)}`, "soft small"), remove);
  item.append(shown(one, `${one.name}, the ${one.kind} that is asked about`), row);
  return item;
}

at("file").addEventListener("change", async () => {
  await take(at("file").files);
  at("file").value = ""; // so that the same file can be chosen again
});

const ready = () => !at("ask").hidden;

document.addEventListener("paste", (event) => {
  if (!ready() || !event.clipboardData.files.length) return;
  event.preventDefault();
  take([...event.clipboardData.files]);
});

for (const kind of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(kind, (event) => {
    if (kind !== "dragleave") event.preventDefault(); // or the browser leaves the page for the file
    at("drop").classList.toggle("over", kind === "dragover" && ready());
    if (kind !== "drop" || !ready()) return;
    if (event.dataTransfer.files.length) take([...event.dataTransfer.files]);
    else trouble("That is no file but an address or a text: save the image first, then drop the file.");
  });
}
