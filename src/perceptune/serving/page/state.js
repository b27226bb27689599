// What the parts of the page share: the runs, and what is asked of them next.

import { at } from "./elements.js";

export const state = {
  runs: [], // as `v1/runs/…` describes them
  media: [], // in the order in which they were attached
  thread: null, // the conversation that the next question continues
  reference: null, // right answers of an example, until the question or a medium changes
  busy: null, // ends the answers under way
};

export const named = (id) => state.runs.find((run) => run.id === id);
export const takes = () => [...new Set(state.runs.flatMap((run) => run.takes))];

/** The run that is asked, and the one it is compared with. */
export const chosen = () => [at("run").value, at("other").value].filter(Boolean).map(named);

/** How many media of a kind a question to the chosen runs may have. */
export const room = (kind) => Math.max(1, Math.min(...chosen().map((run) => run.max_media[kind] ?? 1)));
