// Downloads: what is shown, as JSON or drawn into the picture at its full size.
import { classColor, percent, textColor } from "./colors.js";
import { placeLabels } from "./overlay.js";

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const stem = (name) => name.replace(/\.[^.]*$/, "") || "image";

/** Save the detections that are shown, with the thresholds that they were chosen by. */
export function saveJson({ name, answer }, detections, thresholds) {
  const { image, model } = answer;
  const text = JSON.stringify({ name, image, model, ...thresholds, detections }, null, 2);
  download(new Blob([text], { type: "application/json" }), `${stem(name)}.detections.json`);
}

/** Save the picture at its full size with the boxes drawn in; lines and letters grow with it. */
export async function savePicture({ name, answer }, photo, detections) {
  const { width, height } = answer.image;
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff"; // a PNG's transparent parts: the detector sees them white too
  pen.fillRect(0, 0, width, height);
  if (photo.naturalWidth) pen.drawImage(photo, 0, 0, width, height);
  draw(pen, detections, { width, height });
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new Error("this browser cannot write a picture of this size");
  download(blob, `${stem(name)}.detections.png`);
}

function draw(pen, detections, size) {
  const shortSide = Math.min(size.width, size.height);
  const line = Math.max(1, Math.round(shortSide / 200));
  const fontSize = Math.max(10, Math.round(shortSide / 30));
  const padding = Math.round(fontSize * 0.4);
  const labelHeight = Math.round(fontSize * 1.5);
  pen.font = `600 ${fontSize}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  const boxes = detections.map(({ box_xyxy: [x1, y1, x2, y2] }) =>
    ({ x: x1, y: y1, width: x2 - x1, height: y2 - y1 }));
  const texts = detections.map(({ label, score }) => `${label} ${percent(score)}`);
  const widths = texts.map((text) => Math.ceil(pen.measureText(text).width) + 2 * padding);
  const spots = placeLabels(boxes, widths, labelHeight, size);
  for (let i = boxes.length - 1; i >= 0; i--) { // the best one on top
    const { x, y, width, height } = boxes[i];
    const inner = [x + line / 2, y + line / 2, Math.max(1, width - line), Math.max(1, height - line)];
    pen.strokeStyle = "rgb(0 0 0 / 45%)";
    pen.lineWidth = line * 1.7;
    pen.strokeRect(...inner);
    pen.strokeStyle = classColor(detections[i].class_id);
    pen.lineWidth = line;
    pen.strokeRect(...inner);
  }
  for (let i = boxes.length - 1; i >= 0; i--) {
    if (!spots[i] || spots[i].crowded) continue;
    pen.fillStyle = classColor(detections[i].class_id);
    pen.fillRect(spots[i].x, spots[i].y, widths[i], labelHeight);
    pen.fillStyle = textColor(detections[i].class_id);
    pen.fillText(texts[i], spots[i].x + padding, spots[i].y + labelHeight / 2);
  }
}
