// The page: it begins as soon as the server tells its runs. Text of a model is only ever set as text.

import "./capture.js";
import { Refusal, get, key } from "./api.js";
import { offerRuns } from "./choice.js";
import { at, trouble } from "./elements.js";
import { attempt, unlockWith } from "./lock.js";
import { state } from "./state.js";

async function begin() {
  const data = await listed();
  state.runs = await Promise.all(data.map((run) => get(`v1/runs/${encodeURIComponent(run.id)}`)));
  at("lock").hidden = true;
  at("forget").hidden = !key.get();
  offerRuns();
}

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

unlockWith(begin);
attempt(begin);
