// The buttons of camera and microphone: what they take is attached like a file.

import { showMedia, take } from "./attached.js";
import { at, say } from "./elements.js";
import { attempt } from "./lock.js";
import { close, open, recording, snapshot, wav } from "./record.js";
import { state } from "./state.js";

let stream = null; // of the camera
let recorder = null;

at("camera-open").addEventListener("click", () =>
  attempt(async () => {
    const opened = await open("video");
    if (stream) close(stream); // pressed twice: nobody could switch the first one off any more
    stream = opened;
    at("live").srcObject = stream;
    at("camera").hidden = false;
    showMedia();
    await at("live").play();
    (at("snap").hidden ? at("film") : at("snap")).focus();
  }),
);

function closeCamera() {
  recorder?.stop();
  if (stream) close(stream);
  stream = null;
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
  record(at("film"), "Record a video", state.runs[0].limits.video_seconds, async () => stream, async (blob) => {
    closeCamera();
    await take([new File([blob], `camera.${blob.type.includes("mp4") ? "mp4" : "webm"}`, { type: blob.type })]);
  }),
);

at("record").addEventListener("click", () =>
  record(at("record"), "Record audio", state.runs[0].limits.audio_seconds, () => open("audio"), async (blob, source) => {
    close(source);
    await take([await wav(blob)]);
  }),
);

/** The button begins, and ends when it is pressed again or the time is over. */
async function record(button, words, seconds, from, done) {
  if (recorder) {
    recorder.stop();
    return;
  }
  await attempt(async () => {
    const source = await from();
    try {
      recorder = recording(source, seconds, (passed) => {
        button.textContent = `Stop recording (${Math.floor(passed / 60)}:${String(Math.floor(passed % 60)).padStart(2, "0")})`;
      });
      button.textContent = "Stop recording";
      button.classList.add("on");
      say("Recording.");
      await done(await recorder.ended, source);
    } finally {
      recorder = null;
      button.textContent = words;
      button.classList.remove("on");
    }
  });
}
