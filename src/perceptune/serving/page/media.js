// Media of a question: what kind a file is, whether the server would take it, how it is shown.

export const NAMES = { image: "an image", audio: "an audio file", video: "a video" };
export const MANY = { image: "images", audio: "audio files", video: "videos" };
const SUFFIXES = {
  image: ["png", "jpg", "jpeg", "webp", "gif", "bmp"],
  audio: ["wav", "flac", "ogg", "oga", "opus", "mp3", "m4a", "aac", "aiff", "aif"],
  video: ["mp4", "mov", "webm", "mkv", "avi", "mpg", "mpeg", "m4v", "ogv"],
};
const MIB = 2 ** 20;

/** `image`, `audio`, `video`, or nothing. */
export function kindOf(file) {
  const [kind] = file.type.split("/");
  if (kind in NAMES) return kind;
  const suffix = file.name.split(".").pop().toLowerCase();
  return Object.keys(SUFFIXES).find((one) => SUFFIXES[one].includes(suffix));
}

/** A file as `{kind, name, url, size}`, `url` being a data: address. Throws an `Error` in words. */
export async function medium(file, limits, takes) {
  const kind = kindOf(file);
  if (!kind) throw new Error(`${file.name} is not an image, audio or video file.`);
  if (!takes.includes(kind)) throw new Error(`${file.name} is ${NAMES[kind]}, and no run here takes one.`);
  if (!file.size) throw new Error(`${file.name} is empty.`);
  const most = Math.min(limits.bytes[kind], Math.floor((limits.body * 3) / 4) - 65536);
  if (file.size > most) {
    throw new Error(`${file.name} has ${size(file.size)}; this server takes ${NAMES[kind]} of ${size(most)} at most.`);
  }
  return { kind, name: file.name, size: file.size, url: await dataUrl(file) };
}

function dataUrl(file) {
  // Parameters of a type may hold commas, which end the head of a data: address.
  const plain = new Blob([file], { type: file.type.split(";")[0] });
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(plain);
  });
}

export function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < MIB ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / MIB).toFixed(1)} MiB`;
}

/** An element that shows or plays it. */
export function shown(one, description) {
  if (one.kind === "image") {
    const image = document.createElement("img");
    image.alt = description;
    image.src = one.url;
    return image;
  }
  const player = document.createElement(one.kind);
  player.controls = true;
  player.preload = "metadata";
  player.setAttribute("aria-label", description);
  player.src = one.url;
  return player;
}

/** The part of a message. */
export function part(one) {
  return { type: `${one.kind}_url`, [`${one.kind}_url`]: { url: one.url } };
}
