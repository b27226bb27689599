// A conversation: questions and the answers of one run or two, as they come.

import { Refusal, completion } from "./api.js";
import { made } from "./elements.js";
import { part, shown } from "./media.js";

const same = (a, b) => a.trim().toLowerCase() === b.trim().toLowerCase();

/** A list item that fills itself: one question, or a turn after the other. */
export class Exchange {
  constructor(runs) {
    this.runs = runs;
    this.element = made("li", undefined, "card exchange");
    this.earlier = runs.map(() => []); // messages by run: each has answers of its own
  }

  /** Whether these runs are the ones that answer here. */
  continues(runs) {
    return runs.length === this.runs.length && runs.every((run, i) => run === this.runs[i]);
  }

  /**
   * Asks all runs at the same time. `reference` holds the right answers of an example, or is null. Returns the status
   * of a refusal, if there was one, and whether any run answered.
   */
  async ask(question, media, reference, settings, signal) {
    const parts = this.runs.map((run) => new Answer(run));
    const answers = made("div", undefined, "answers");
    answers.append(...parts.map((one) => one.element));
    this.element.append(asked(question, media, reference), answers);
    const content = media.map(part);
    if (question || !content.length) content.push({ type: "text", text: question });
    const message = { role: "user", content };
    const statuses = await Promise.all(
      parts.map((one, i) => one.run({ model: one.about.id, messages: [...this.earlier[i], message], ...settings }, signal, reference)),
    );
    for (const [i, { said }] of parts.entries()) {
      if (said !== null) this.earlier[i].push(message, { role: "assistant", content: said });
    }
    return { status: statuses.find(Boolean), answered: parts.some((one) => one.said !== null) };
  }
}

function asked(question, media, reference) {
  const whole = made("div", undefined, "asked");
  for (const one of media) whole.append(shown(one, `${one.name}, the ${one.kind} that was asked about`));
  const words = made("div");
  words.append(made("h3", question || "(no question)"));
  if (reference?.length) {
    const line = made("p", "Reference: ", "soft");
    line.append(made("strong", [...new Set(reference)].join(", ")));
    words.append(line);
  }
  whole.append(words);
  return whole;
}

class Answer {
  constructor(about) {
    this.about = about;
    this.said = null; // the answer, as far as there is one
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
    let note = "";
    this.element.classList.add("live");
    try {
      for await (const piece of completion(body, signal)) {
        if (piece.text) {
          this.text.append(piece.text); // as text, whatever it holds
          this.note.textContent = "answering";
        }
        if (piece.note) note = `; ${piece.note}`;
        if (piece.reason) ended = piece.reason === "length" ? " (cut off there)" : "";
        if (piece.usage) tokens = `${piece.usage.completion_tokens} token${piece.usage.completion_tokens === 1 ? "" : "s"}`;
      }
      this.said = this.text.textContent;
      if (!this.said) this.text.append(made("em", "(nothing)"));
      this.note.textContent = `${tokens}${ended}, ${seconds()}${note}`;
      if (reference?.length) this._judge(reference);
    } catch (error) {
      if (signal.aborted) {
        this.said = this.text.textContent || null;
        this.note.textContent = `stopped after ${seconds()}`;
      } else status = this._fail(error);
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
