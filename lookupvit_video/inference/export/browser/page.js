// The page: camera or file -> clips -> the model's answers. Pixels stay in this browser.

import { clipOf, clipTimes, cropBoxes, resizedPlanes } from "./preprocess.js";

const $ = (id) => document.getElementById(id);
const video = $("video"), canvas = document.createElement("canvas");
const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
const TOP = 5;

// What the page is doing, for those who test it or build on it.
export const state = { facts: null, ready: false, threads: 0, backend: "", decisions: 0, last: null, answer: null, error: "" };

let worker, waiting = new Map(), nextId = 0, source = 0; // a new source ends the loops of the one before

// Messages --------------------------------------------------------------------------------------------------------

function say(text, failed = false) {
  $("status").textContent = text;
  $("status").className = failed ? "failed" : "";
  state.error = failed ? text : "";
}

function show(probabilities) {
  const { classes, thresholds } = state.facts;
  const best = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, TOP);
  $("classes").replaceChildren(
    ...best.map((label) => {
      const row = document.createElement("tr"), meter = document.createElement("meter");
      meter.value = probabilities[label];
      const present = thresholds && probabilities[label] >= thresholds[label] ? "✓ " : "";
      for (const content of [present + classes[label], meter, `${(100 * probabilities[label]).toFixed(0)} %`]) {
        const cell = document.createElement("td");
        cell.append(content);
        row.append(cell);
      }
      return row;
    }),
  );
  return classes[best[0]];
}

// The model -------------------------------------------------------------------------------------------------------

function startWorker() {
  worker?.terminate();
  for (const { reject } of waiting.values()) reject(new Error("another model was chosen"));
  waiting = new Map();
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => {
    const asked = waiting.get(data.loaded ? "load" : (data.id ?? "load"));
    waiting.delete(data.loaded ? "load" : (data.id ?? "load"));
    if (data.error) asked?.reject(new Error(data.error));
    else asked?.resolve(data);
  };
  worker.onerror = (event) => {
    for (const { reject } of waiting.values()) reject(new Error(event.message || "the model's thread ended"));
  };
}

function ask(key, message, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(key, { resolve, reject });
    worker.postMessage(message, transfer);
  });
}

// Load the chosen weights; where WebGPU fails, WebAssembly takes its place.
export async function loadModel() {
  state.ready = false;
  const file = $("weights").value, [, channels, frames, height, width] = state.facts.input.shape;
  const input = [1, channels, frames, height, width];
  const chosen = $("backend").value;
  for (const backend of chosen === "wasm" ? ["wasm"] : [chosen, "wasm"]) {
    startWorker();
    try {
      const found = await ask("load", { load: file, backend, input });
      Object.assign(state, { ready: true, threads: found.threads, backend });
      $("backend").value = backend;
      $("camera").disabled = $("file").disabled = false;
      return;
    } catch (error) {
      if (backend === "wasm") throw error;
    }
  }
}

// Probabilities of a clip, and the clip itself.
export function answerClip(clip) {
  const id = nextId++;
  return ask(id, { run: clip, id }, [clip.buffer]);
}

// Frames ----------------------------------------------------------------------------------------------------------

// The picture that the video shows now, as planes of each crop.
function grab(count) {
  const rules = state.facts.preprocessing;
  return cropBoxes(video.videoWidth, video.videoHeight, rules, count).map(({ left, top, side }) => {
    if (canvas.width !== side) canvas.width = canvas.height = side;
    context.drawImage(video, left, top, side, side, 0, 0, side, side);
    return resizedPlanes(context.getImageData(0, 0, side, side).data, side, rules.size);
  });
}

// The last frame that is shown at a time, of frames [{second, planes}] in order.
function shownAt(frames, second, tolerance) {
  let found = frames[0];
  for (const frame of frames) {
    if (frame.second > second + tolerance) break;
    found = frame;
  }
  return found;
}

// Camera ----------------------------------------------------------------------------------------------------------

export async function startCamera() {
  const mine = ++source;
  const stream = await navigator.mediaDevices.getUserMedia({ video: true, audio: false });
  if (mine !== source) return stream.getTracks().forEach((track) => track.stop());
  stop();
  video.srcObject = stream;
  await video.play();
  watch(mine);
}

function stop() {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  if (video.src) URL.revokeObjectURL(video.src);
  video.removeAttribute("src");
}

// Keep the frames of a window, and answer the newest window whenever the model is free.
function watch(mine) {
  const { preprocessing: rules, live } = state.facts;
  const began = performance.now();
  let frames = [], busy = false;
  const onFrame = (now, metadata) => {
    if (mine !== source) return;
    video.requestVideoFrameCallback(onFrame);
    frames.push({ second: (metadata.captureTime ?? now) / 1000, planes: grab(1)[0] });
    const newest = frames[frames.length - 1].second;
    while (frames.length > 1 && frames[1].second <= newest - live.window_seconds) frames.shift();
    if (!busy && state.ready && newest - frames[0].second >= live.window_seconds - 0.5 * live.window_seconds / rules.num_frames) decide();
  };
  const decide = async () => {
    busy = true;
    const end = frames[frames.length - 1].second, start = end - live.window_seconds;
    const chosen = live.offsets.map((offset) => shownAt(frames, start + offset, rules.time_tolerance_seconds).planes);
    const asked = performance.now();
    try {
      const found = await answerClip(clipOf(chosen, rules.size));
      if (mine !== source) return;
      state.decisions++;
      state.last = { ...found, at: performance.now() };
      const label = show(found.probabilities), seconds = (performance.now() - began) / 1000;
      say(`${label} (${found.ms.toFixed(0)} ms in the model, ${(performance.now() - asked).toFixed(0)} ms in all; ` +
        `${(state.decisions / seconds).toFixed(1)} decisions/s)`);
    } catch (error) {
      if (mine === source) say(error.message, true);
    }
    busy = false;
  };
  state.decisions = 0;
  video.requestVideoFrameCallback(onFrame);
}

// Files -----------------------------------------------------------------------------------------------------------

const shown = () => new Promise((resolve) => video.requestVideoFrameCallback(resolve));
const after = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Browsers say "seeked" before the element has the new picture, so wait for that too. A page in the background is
// shown no pictures: it goes on after a second.
async function seek(second) {
  if (Math.abs(video.currentTime - second) < 1e-6) return; // no new picture would come
  const picture = shown(), sought = new Promise((resolve) => video.addEventListener("seeked", resolve, { once: true }));
  video.currentTime = second;
  if (await Promise.race([sought, after(20000).then(() => "late")]) === "late") throw new Error("this browser cannot seek in the video");
  await Promise.race([picture, after(1000)]);
}

// Answer a file as `lookupvit predict` does: the mean over the views of the checkpoint's test.
export async function answerFile(file) {
  const mine = ++source, rules = state.facts.preprocessing;
  stop();
  say(`${file.name}: reading …`);
  const first = shown();
  video.src = URL.createObjectURL(file);
  await new Promise((resolve, reject) => {
    video.addEventListener("loadeddata", resolve, { once: true });
    video.addEventListener("error", () => reject(new Error(`${file.name}: not a video that this browser plays`)), { once: true });
  });
  await Promise.race([first, after(1000)]); // or it would be taken for the first one sought
  const found = [];
  for (const seconds of clipTimes(video.duration, rules)) {
    const frames = [];
    for (const second of seconds) {
      // a frame begins where the one before ends: a moment later, so that rounding does not show that one
      await seek(Math.min(second + 1e-3, Math.max(video.duration - 1e-3, 0)));
      if (mine !== source) return;
      frames.push(grab(rules.views_in_space));
    }
    for (let crop = 0; crop < rules.views_in_space; crop++)
      found.push((await answerClip(clipOf(frames.map((planes) => planes[crop]), rules.size))).probabilities);
  }
  if (mine !== source) return;
  const mean = found[0].map((_, label) => found.reduce((sum, one) => sum + one[label], 0) / found.length);
  state.answer = { file: file.name, probabilities: mean };
  say(`${file.name}: ${show(mean)}`);
  video.loop = true;
  video.play().catch(() => {}); // only to look at
}

// Start -----------------------------------------------------------------------------------------------------------

function guarded(action) {
  return (...given) => Promise.resolve(action(...given)).catch((error) => say(error.message, true));
}

// Several threads need two headers: where the host does not send them, a service worker adds them.
async function isolate() {
  if (self.crossOriginIsolated || !("serviceWorker" in navigator) || sessionStorage.getItem("isolated")) return;
  sessionStorage.setItem("isolated", "tried"); // once: some browsers have no threads whatever the headers
  await navigator.serviceWorker.register("isolation.js");
  await navigator.serviceWorker.ready;
  location.reload();
  await new Promise(() => {});
}

async function start() {
  await isolate().catch(() => {});
  state.facts = await (await fetch("model.json")).json();
  const { facts } = state, { size, num_frames: frames } = facts.preprocessing;
  const weights = facts.live.files.map(({ file, weights, bytes }) => [`${weights}, ${(bytes / 1e6).toFixed(1)} MB`, file]);
  const gpu = await navigator.gpu?.requestAdapter().catch(() => null);
  $("weights").append(...weights.map(([text, file]) => new Option(text, file)));
  $("backend").append(...(gpu ? [new Option("WebGPU", "webgpu")] : []), new Option("WebAssembly", "wasm"));
  for (const id of ["weights", "backend"]) $(id).addEventListener("change", guarded(loadModel));
  $("camera").addEventListener("click", guarded(startCamera));
  $("file").addEventListener("change", guarded(() => $("file").files[0] && answerFile($("file").files[0])));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", guarded((event) => {
    event.preventDefault();
    if (!state.ready) throw new Error("the model is not loaded yet");
    if (event.dataTransfer.files[0]) return answerFile(event.dataTransfer.files[0]);
  }));
  await loadModel();
  $("about").textContent =
    `${facts.classes.length} classes; clips of ${frames} frames of ${size} x ${size} pixels over ` +
    `${facts.live.window_seconds.toFixed(1)} s; ${state.threads} ${state.threads === 1 ? "thread" : "threads"}`;
}

guarded(start)();
