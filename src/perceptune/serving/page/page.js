// The page: what is asked, of which runs, and what comes back. Text of a model is only ever set as text.

import { Refusal, get, key } from "./api.js";
import { Exchange } from "./exchange.js";
import { showInside } from "./inside.js";
import { NAMES, medium, shown, size } from "./media.js";
import { close, open, recording, snapshot, wav } from "./record.js";

const at = (id) => document.getElementById(id);
const KEPT = 10; // answers on the page
const state = { runs: [], media: {}, reference: null, busy: null, stream: null, recorder: null, examples: 0 };

function made(name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function say(words) {
  at("status").textContent = words;
}

function trouble(words) {
  at("trouble").textContent = words;
  at("trouble").hidden = !words;
}

/** Runs something that may fail in words. */
async function attempt(work) {
  trouble("");
  try {
    await work();
  } catch (error) {
    if (error instanceof Refusal && error.status === 401) lock(error.message);
    else trouble(error instanceof Refusal && error.status ? `${error.message} (status ${error.status})` : error.message);
  }
}

// The key

function lock(message) {
  for (const id of ["ask", "answered", "shown", "inside"]) at(id).hidden = true;
  at("lock").hidden = false;
  at("forget").hidden = true;
  if (key.get()) trouble(`That key was not taken: ${message} (status 401)`);
  key.set("");
  at("key").value = "";
  at("key").focus();
}

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

at("forget").addEventListener("click", () => {
  key.set("");
  location.reload();
});

// Runs

/** The list of runs, as soon as their models are loaded. */
async function listed() {
  for (;;) {
    try {
      const { data } = await get("v1/models");
      trouble("");
      return data;
    } catch (error) {
      if (!(error instanceof Refusal) || error.status !== 503) throw error;
      trouble("The models are being loaded. This page goes on by itself.");
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }
}

async function begin() {
  const data = await listed();
  state.runs = await Promise.all(data.map((run) => get(`v1/runs/${encodeURIComponent(run.id)}`)));
  at("lock").hidden = true;
  at("forget").hidden = !key.get();
  at("run").replaceChildren(...state.runs.map((run) => new Option(run.id, run.id))); // not twice after another key
  at("second").hidden = state.runs.length < 2;
  at("ask").hidden = false;
  at("ask").classList.toggle("blind", !takes().length);
  describeInputs();
  changedRun();
}

const named = (id) => state.runs.find((run) => run.id === id);
const takes = () => [...new Set(state.runs.flatMap((run) => run.takes))];

function chosen() {
  return [at("run").value, at("other").value].filter(Boolean).map(named);
}

function describeInputs() {
  const kinds = takes();
  const words = kinds.map((kind) => NAMES[kind]);
  const title = words.join(", ").replace(/, ([^,]*)$/, " or $1");
  at("medium-title").textContent = title[0].toUpperCase() + title.slice(1);
  at("invitation").textContent = `Drop a ${title} here or paste one`;
  at("senses").textContent = [kinds.includes("audio") && "hears", kinds.includes("video") && "watches", kinds.includes("image") && "sees"]
    .filter(Boolean).reverse().join(", ").replace(/, ([^,]*)$/, " and $1");
  at("file").accept = kinds.map((kind) => `${kind}/*`).join(",");
  at("camera-open").hidden = !kinds.includes("image") && !kinds.includes("video");
  at("snap").hidden = !kinds.includes("image");
  at("film").hidden = !kinds.includes("video");
  at("record").hidden = !kinds.includes("audio");
}

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
  const asks = runs.some((run) => run.asks);
  at("question-label").textContent = asks ? "Question" : "Question (these runs need none)";
}

at("run").addEventListener("change", changedRun);
at("other").addEventListener("change", changed);

// Media

function attach(one) {
  state.media[one.kind] = one;
  state.reference = null;
  showMedia();
  say(`${one.name} is attached.`);
}

function showMedia() {
  const all = Object.values(state.media);
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
    delete state.media[one.kind];
    state.reference = null;
    showMedia();
    say(`${one.name} is removed.`);
    at("file").focus();
  });
  row.append(made("span", `${one.name}, ${size(one.size)}`, "soft small name"), remove);
  item.append(shown(one, `${one.name}, the ${NAMES[one.kind]} that is asked about`), row);
  return item;
}

async function take(files) {
  await attempt(async () => {
    for (const file of files) attach(await medium(file, state.runs[0].limits, takes()));
  });
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
    else trouble("That is no file but an address or a text: save the picture first, then drop the file.");
  });
}

// Camera and microphone

at("camera-open").addEventListener("click", () =>
  attempt(async () => {
    const stream = await open("video");
    if (state.stream) close(state.stream); // pressed twice: nobody could switch the first one off any more
    state.stream = stream;
    at("live").srcObject = state.stream;
    at("camera").hidden = false;
    showMedia();
    await at("live").play();
    (at("snap").hidden ? at("film") : at("snap")).focus();
  }),
);

function closeCamera() {
  state.recorder?.stop();
  if (state.stream) close(state.stream);
  state.stream = null;
  at("live").srcObject = null;
  at("camera").hidden = true;
  showMedia();
  at("camera-open").focus();
}

at("camera-close").addEventListener("click", closeCamera);

at("snap").addEventListener("click", () =>
  attempt(async () => {
    const file = await snapshot(at("live"));
    closeCamera();
    await take([file]);
  }),
);

at("film").addEventListener("click", () =>
  record(at("film"), "Record a clip", state.runs[0].limits.video_seconds, async () => state.stream, async (blob) => {
    closeCamera();
    await take([new File([blob], `camera.${blob.type.includes("mp4") ? "mp4" : "webm"}`, { type: blob.type })]);
  }),
);

at("record").addEventListener("click", () =>
  record(at("record"), "Record a sound", state.runs[0].limits.audio_seconds, () => open("audio"), async (blob, stream) => {
    close(stream);
    await take([await wav(blob)]);
  }),
);

/** The button begins, and ends when it is pressed again or the time is over. */
async function record(button, words, seconds, source, done) {
  if (state.recorder) {
    state.recorder.stop();
    return;
  }
  await attempt(async () => {
    const stream = await source();
    try {
      state.recorder = recording(stream, seconds, (passed) => {
        button.textContent = `Stop recording (${Math.floor(passed / 60)}:${String(Math.floor(passed % 60)).padStart(2, "0")})`;
      });
      button.textContent = "Stop recording";
      button.classList.add("on");
      say("Recording.");
      await done(await state.recorder.ended, stream);
    } finally {
      state.recorder = null;
      button.textContent = words;
      button.classList.remove("on");
    }
  });
}

// Questions and answers

function settings() {
  const given = {};
  for (const [id, name] of [["tokens", "max_completion_tokens"], ["temperature", "temperature"], ["seed", "seed"]]) {
    if (at(id).value !== "") given[name] = Number(at(id).value);
  }
  return given;
}

async function ask() {
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

// Examples

async function showExamples() {
  const run = named(at("run").value);
  state.examples += 1;
  const turn = state.examples;
  at("shown").hidden = !run?.examples;
  if (!run?.examples) return;
  await attempt(async () => {
    const { data } = await get(`v1/examples/${encodeURIComponent(run.id)}`);
    if (turn !== state.examples) return; // another run was chosen meanwhile
    at("shown-run").textContent = run.id;
    at("examples").replaceChildren(...data.map(example));
  });
}

function example(row) {
  const item = made("li");
  const button = made("button", undefined, "example");
  button.type = "button";
  const media = Object.entries(row.media).map(([kind, url]) => ({
    kind, url, name: `example ${row.id + 1}`, size: Math.floor((url.length - url.indexOf(",") - 1) * 0.75),
  }));
  const picture = media.find((one) => one.kind === "image");
  if (picture) button.append(shown(picture, ""));
  for (const one of media) {
    if (one !== picture) button.append(made("span", NAMES[one.kind], "chip"));
  }
  button.append(made("span", row.prompt || "what is it?", "question"));
  button.addEventListener("click", () => {
    if (state.busy) return;
    state.media = Object.fromEntries(media.map((one) => [one.kind, one]));
    at("question").value = row.prompt;
    state.reference = row.targets;
    showMedia();
    ask();
    at("answered").scrollIntoView({ block: "nearest" });
  });
  item.append(button);
  return item;
}

attempt(begin);
