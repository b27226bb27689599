// Elements of the document: found, made, and the two lines that talk to who reads it.

export const at = (id) => document.getElementById(id);

export function made(name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

/** What a screen reader is told in passing. */
export function say(words) {
  at("status").textContent = words;
}

/** What went wrong, above everything; no words take it away. */
export function trouble(words) {
  at("trouble").textContent = words;
  at("trouble").hidden = !words;
}
