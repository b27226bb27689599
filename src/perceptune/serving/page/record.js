// Camera and microphone.

const WORDS = { video: "camera", audio: "microphone" };

/** A stream of the camera or the microphone. Throws an `Error` in words. */
export async function open(kind) {
  const name = WORDS[kind];
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error(`Browsers lend the ${name} only to pages of this machine (localhost) or behind https.`);
  }
  // As it is, without what telephones do to voices.
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  try {
    return await navigator.mediaDevices.getUserMedia({ [kind]: kind === "audio" ? plain : true });
  } catch (error) {
    throw new Error(refused(error.name, name));
  }
}

function refused(why, name) {
  if (why === "NotAllowedError" || why === "SecurityError") {
    return `The browser was not allowed to use the ${name}. Allow it beside the page's address, then try again.`;
  }
  if (why === "NotFoundError" || why === "OverconstrainedError") return `There is no ${name} here.`;
  return `The ${name} does not answer. Another program may be using it.`;
}

export function close(stream) {
  for (const track of stream.getTracks()) track.stop();
}

/** Records until `stop` is called or `seconds` have passed; `ended` is the recorded file. */
export function recording(stream, seconds, tick) {
  const recorder = new MediaRecorder(stream);
  const pieces = [];
  const started = performance.now();
  const stop = () => recorder.state !== "inactive" && recorder.stop();
  const clock = setInterval(() => {
    const passed = (performance.now() - started) / 1000;
    tick(passed);
    // A little less, so that what the server counts is not more.
    if (passed > seconds - 0.5) stop();
  }, 200);
  const ended = new Promise((resolve, reject) => {
    recorder.ondataavailable = (event) => pieces.push(event.data);
    recorder.onerror = () => reject(new Error("The recording failed."));
    recorder.onstop = () => resolve(new Blob(pieces, { type: recorder.mimeType }));
  }).finally(() => clearInterval(clock));
  recorder.start();
  return { stop, ended };
}

/** The image that the camera shows now. */
export function snapshot(video) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve, reject) => {
    canvas.toBlob(
      (blob) => (blob ? resolve(new File([blob], "camera.png", { type: "image/png" })) : reject(new Error("The camera shows nothing yet."))),
      "image/png",
    );
  });
}

/** Recorded audio as WAV, one channel of 16 bits, which every server reads. */
export async function wav(blob) {
  const rate = 48000;
  const audio = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await blob.arrayBuffer());
  const channels = Array.from({ length: audio.numberOfChannels }, (_, number) => audio.getChannelData(number));
  const data = new DataView(new ArrayBuffer(44 + 2 * audio.length));
  const text = (place, word) => [...word].forEach((letter, i) => data.setUint8(place + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  data.setUint32(4, 36 + 2 * audio.length, true);
  text(8, "WAVEfmt ");
  data.setUint32(16, 16, true);
  data.setUint16(20, 1, true); // PCM
  data.setUint16(22, 1, true);
  data.setUint32(24, rate, true);
  data.setUint32(28, 2 * rate, true);
  data.setUint16(32, 2, true);
  data.setUint16(34, 16, true);
  text(36, "data");
  data.setUint32(40, 2 * audio.length, true);
  for (let i = 0; i < audio.length; i += 1) {
    const mean = channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length;
    data.setInt16(44 + 2 * i, Math.round(Math.max(-1, Math.min(1, mean)) * 32767), true);
  }
  return new File([data.buffer], "recording.wav", { type: "audio/wav" });
}
