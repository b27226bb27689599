// One question and the answers of one run or two, as they come.

import { Refusal, completion } from "./api.js";
import { made } from "./elements.js";
import { part, shown } from "./media.js";

const same = (a, b) => a.trim().toLowerCase() === b.trim().toLowerCase();

/** A list item that fills itself. `reference` holds the right answers of an example, or is null. */
export class Exchange {
  constructor(runs, question, media, reference, settings) {
    this.question = question;
    this.media = media;
    this.reference = reference;
    this.settings = settings;
    this.element = made("li", undefined, "card exchange");
    const asked = made("div", undefined, "asked");
    for (const one of media) asked.append(shown(one, `${one.name}, the ${one.kind} that was asked about`));
    const words = made("div");
    words.append(made("h3", question || "(no question)"));
    if (reference?.length) {
      const line = made("p", "Reference: ", "soft");
      line.append(made("strong", [...new Set(reference)].join(", ")));
      words.append(line);
    }
    asked.append(words);
    const answers = made("div", undefined, "answers");
    this.parts = runs.map((run) => new Answer(run));
    answers.append(...this.parts.map((one) => one.element));
    this.element.append(asked, answers);
  }

  /** Asks all runs at the same time; the status of a refusal, if there was one. */
  async run(signal) {
    const statuses = await Promise.all(
      this.parts.map((one) => one.run(this._body(one.about.id), signal, this.reference)),
    );
    return statuses.find(Boolean);
  }

  _body(model) {
    const content = this.media.map(part);
    if (this.question || !content.length) content.unshift({ type: "text", text: this.question });
    return { model, messages: [{ role: "user", content }], ...this.settings };
  }
}

class Answer {
  constructor(about) {
    this.about = about;
    this.element = made("article", undefined, "answer");
    const title = made("h4", about.id);
    title.id = `answer-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
    this.element.setAttribute("aria-labelledby", title.id);
    this.text = made("p", "", "text");
    this.text.setAttribute("aria-live", "polite");
    this.text.setAttribute("aria-atomic", "true");
    this.text.setAttribute("aria-busy", "true"); // read out when it is complete, not piece by piece
    this.note = made("p", "waiting", "soft small note");
    this.element.append(title, this.text, this.note);
  }

  async run(body, signal, reference) {
    const started = performance.now();
    const seconds = () => `${((performance.now() - started) / 1000).toFixed(1)} s`;
    let ended = "";
    let tokens = "";
    let status = 0;
    this.element.classList.add("live");
    try {
      for await (const piece of completion(body, signal)) {
        if (piece.text) {
          this.text.append(piece.text); // as text, whatever it holds
          this.note.textContent = "answering";
        }
        if (piece.reason) ended = piece.reason === "length" ? " (cut off there)" : "";
        if (piece.usage) tokens = `${piece.usage.completion_tokens} token${piece.usage.completion_tokens === 1 ? "" : "s"}`;
      }
      if (!this.text.textContent) this.text.append(made("em", "(nothing)"));
      this.note.textContent = `${tokens}${ended}, ${seconds()}`;
      if (reference?.length) this._judge(reference);
    } catch (error) {
      if (signal.aborted) this.note.textContent = `stopped after ${seconds()}`;
      else status = this._fail(error);
    }
    this.element.classList.remove("live");
    this.text.setAttribute("aria-busy", "false");
    return status;
  }

  _judge(reference) {
    const right = reference.some((one) => same(one, this.text.textContent));
    this.note.append(made("span", right ? "✓ as the reference" : "≠ unlike the reference", right ? "chip good" : "chip"));
  }

  _fail(error) {
    if (!(error instanceof Refusal)) throw error;
    const line = made("p", error.message, "refusal");
    line.setAttribute("role", "alert");
    if (error.status) line.prepend(made("strong", `Refused with status ${error.status}: `));
    this.note.replaceWith(line);
    return error.status;
  }
}
