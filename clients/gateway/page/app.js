// The page: images or the camera in, boxes and rows out.
import { Problem, setApiKey } from "./api.js";
import { Camera } from "./camera.js";
import { Gallery } from "./gallery.js";
import { Live } from "./live.js";
import { Overlay } from "./overlay.js";
import { Panel } from "./panel.js";
import { saveJson, savePicture } from "./save.js";

const $ = (id) => document.getElementById(id);
const photo = $("photo");
const say = (words) => { $("status").textContent = words; };
const camera = new Camera($("video"));
let liveAnswer = null;

const overlay = new Overlay($("overlay"), (index) => {
  point(index);
  panel.reveal(index);
});
const panel = new Panel({ change: draw, point });
const gallery = new Gallery($("gallery"), { select: show, update });
const live = new Live($("video"), { answer: liveFrame, problem: showProblem, state: liveState });

function point(index) {
  overlay.highlight(index);
  panel.highlight(index);
}

function answerShown() {
  return camera.open ? liveAnswer : gallery.selected?.answer ?? null;
}

function draw() {
  overlay.show(panel.shown, answerShown()?.image ?? null);
}

/** Give the frame the picture's shape, so that it fills the stage without bars. */
function shape({ width, height }) {
  const frame = $("frame").style;
  frame.setProperty("--ratio", width / height);
  frame.setProperty("--width", `${width}px`);
}

function showProblem(problem, name = "") {
  $("problem").hidden = !problem;
  if (camera.open) $("start-live").hidden = live.running;
  $("retry").hidden = !problem?.retryable || live.running;
  $("problem-title").textContent = problem?.title ?? "";
  $("problem-detail").textContent = [name, problem?.detail].filter(Boolean).join(": ");
  const locked = problem?.status === 401 || problem?.status === 403;
  $("key-form").hidden = !locked;
  if (locked) $("key").focus();
}

function show(item) {
  if (camera.open) closeCamera();
  $("empty").hidden = $("hint").hidden = true;
  $("viewer").hidden = $("panel").hidden = false;
  photo.hidden = false;
  photo.src = item.url;
  photo.alt = item.name;
  present(item);
}

function update(item) {
  if (item !== gallery.selected || camera.open) return;
  present(item);
  if (item.state === "running") say(`Detecting in ${item.name}.`);
  if (item.state === "done") {
    const count = panel.shown.length;
    say(`${count} ${count === 1 ? "object" : "objects"} in ${item.name}.`);
  }
}

function present(item) {
  const { answer, problem, state } = item;
  $("busy").hidden = state !== "waiting" && state !== "running";
  showProblem(problem, item.name);
  if (answer) shape(answer.image);
  picture(state !== "error" || !photo.complete || photo.naturalWidth > 0);
  const size = answer ? `, ${answer.image.width} × ${answer.image.height}` : "";
  $("caption").textContent = item.name + size;
  $("panel").hidden = state === "error";
  if (answer?.model) $("model").textContent = modelName(answer.model);
  panel.show(answer);
}

/** Show the picture, or the place to drop another where this one cannot be shown. */
function picture(visible) {
  $("viewer").hidden = !visible;
  $("empty").hidden = visible;
}

function modelName({ name, version }) {
  return version ? `${name}, version ${version}` : name;
}

photo.addEventListener("load", () => {
  if (!gallery.selected?.answer) shape({ width: photo.naturalWidth, height: photo.naturalHeight });
  if (!camera.open) picture(true);
});
photo.addEventListener("error", () => {
  // Not every image that the server reads is one that browsers show: TIFF is not.
  if (gallery.selected?.state === "error" && !camera.open) picture(false);
});

function add(files, name) {
  gallery.add(files, name);
  $("files").value = ""; // so that the same file can be chosen again
}
$("files").addEventListener("change", (event) => add(event.target.files));
document.addEventListener("paste", (event) => {
  const { files } = event.clipboardData;
  if (files.length) {
    event.preventDefault();
    add(files);
  }
});

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  $("veil").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("veil").hidden = true;
});
document.addEventListener("drop", (event) => {
  $("veil").hidden = true;
  if (!carriesFiles(event)) return;
  event.preventDefault();
  add(event.dataTransfer.files);
});

$("sample").addEventListener("click", async () => {
  try {
    const blob = await (await fetch("page/sample.jpg")).blob();
    add([new File([blob], "sample.jpg", { type: "image/jpeg" })]);
  } catch {
    showProblem(new Problem({ title: "The server cannot be reached" }));
  }
});
$("retry").addEventListener("click", () => gallery.retry());
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setApiKey($("key").value.trim());
  $("key").value = "";
  showProblem(null);
  gallery.retry(gallery.lockedOut);
});
$("save-json").addEventListener("click", () =>
  saveJson(gallery.selected, panel.shown, panel.thresholds));
$("save-png").addEventListener("click", async () => {
  try {
    await savePicture(gallery.selected, photo, panel.shown);
  } catch (error) {
    showProblem(new Problem({ title: "The picture cannot be saved", detail: error.message }));
  }
});

function cameraMode(on) {
  $("viewer").classList.toggle("camera", on);
  $("video").hidden = !on;
  photo.hidden = on;
  $("live").hidden = !on;
  $("camera").setAttribute("aria-pressed", String(on));
  $("downloads").hidden = on;
  if (on) {
    $("empty").hidden = $("hint").hidden = true;
    $("viewer").hidden = false;
    $("busy").hidden = true;
    $("caption").textContent = "";
    $("panel").hidden = true;
  }
}

function closeCamera() {
  live.stop();
  camera.stop();
  liveAnswer = null;
  cameraMode(false);
  $("rate").textContent = "";
  $("start-live").hidden = false;
  $("viewer").hidden = true;
  panel.show(null);
}

function backFromCamera() {
  closeCamera();
  showProblem(null);
  if (gallery.selected) gallery.select(gallery.selected);
  else {
    $("empty").hidden = $("hint").hidden = false;
    $("panel").hidden = true;
  }
  $("camera").focus();
}

$("camera").addEventListener("click", async () => {
  if (camera.open) return backFromCamera();
  showProblem(null);
  try {
    await camera.start();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    return showProblem(problem);
  }
  cameraMode(true);
  const { videoWidth: width, videoHeight: height } = $("video");
  shape({ width, height });
  overlay.show([], null);
  say("The camera is on.");
  return $("start-live").focus();
});
$("stop").addEventListener("click", backFromCamera);
$("snapshot").addEventListener("click", async () => add([await camera.photo()]));
$("start-live").addEventListener("click", () => {
  showProblem(null);
  $("start-live").hidden = true;
  $("panel").hidden = false;
  $("stop").focus();
  say("Detecting live.");
  live.start();
});

function liveFrame(answer, { fps, latency }) {
  if ($("problem-title").textContent) showProblem(null);
  liveAnswer = answer;
  if (answer.model) $("model").textContent = modelName(answer.model);
  panel.show(answer);
  $("downloads").hidden = true;
  if (!document.hidden) $("rate").textContent = `${fps.toFixed(1)} fps, ${Math.round(latency)} ms`;
}

function liveState(words) {
  $("rate").textContent = words;
  if (words) say(words);
}
