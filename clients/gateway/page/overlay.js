// Boxes over the picture, as SVG in CSS pixels: crisp at every size and pixel ratio.
import { classColor, percent, textColor } from "./colors.js";

const SVG = "http://www.w3.org/2000/svg";
const FONT = '600 13px system-ui, sans-serif';
const LABEL_HEIGHT = 20;
const PADDING = 6;
const measure = document.createElement("canvas").getContext("2d");

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/**
 * Where labels go: above the box, else inside its top, else below; inside the picture always,
 * and off the labels already placed. One without room is crowded: better left out than smeared.
 *
 * @param boxes {x, y, width, height} in the picture's shown pixels, the best first.
 * @returns {x, y, crowded} for each, or null where the picture is smaller than the label.
 */
export function placeLabels(boxes, widths, height, size) {
  const taken = [];
  return boxes.map((box, i) => {
    const width = widths[i];
    if (width > size.width || height > size.height) return null;
    const x = Math.min(Math.max(box.x, 0), size.width - width);
    const right = Math.min(Math.max(box.x + box.width - width, 0), size.width - width);
    const tops = [box.y - height, box.y, box.y + box.height - height, box.y + box.height];
    const spots = tops.flatMap((y) => [{ x, y }, { x: right, y }])
      .filter(({ y }) => y >= 0 && y + height <= size.height);
    spots.push({ x, y: Math.min(Math.max(box.y, 0), size.height - height) });
    const free = spots.find((spot) => !taken.some((other) =>
      spot.x < other.x + other.width && other.x < spot.x + width &&
      spot.y < other.y + height && other.y < spot.y + height));
    if (!free) return { ...spots[0], crowded: true };
    taken.push({ ...free, width });
    return { ...free, crowded: false };
  });
}

export class Overlay {
  #svg;
  #shown = { detections: [], image: null };
  #boxes = [];
  #labels = []; // in a layer of their own: no line crosses a label

  /**
   * @param svg The SVG element that lies over the picture.
   * @param onPoint Called with the index of the box pointed at, or -1.
   */
  constructor(svg, onPoint) {
    this.#svg = svg;
    new ResizeObserver(() => this.#draw()).observe(svg);
    const point = ({ target }) => {
      const group = target.closest("g[data-class], g.label");
      onPoint(Math.max(this.#boxes.indexOf(group), this.#labels.indexOf(group)));
    };
    svg.addEventListener("pointerover", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", ({ pointerType }) => {
      if (pointerType !== "touch") onPoint(-1); // a lifted finger has not gone elsewhere
    });
  }

  /** Draw detections of an image of `image.width` by `image.height` pixels. */
  show(detections, image) {
    this.#shown = { detections, image };
    this.#draw();
  }

  /** Bring one box to the front and fade the others; -1 is none. */
  highlight(index) {
    this.#svg.classList.toggle("pointed", index >= 0);
    this.#boxes.forEach((box, i) => box.classList.toggle("on", i === index));
    this.#labels.forEach((label, i) => label?.classList.toggle("on", i === index));
  }

  #draw() {
    const { detections, image } = this.#shown;
    const { width, height } = this.#svg.getBoundingClientRect();
    this.#boxes = [];
    this.#labels = [];
    this.#svg.replaceChildren();
    if (!image || !width || !height) return;
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const boxes = detections.map(({ box_xyxy: [x1, y1, x2, y2] }) => ({
      x: (x1 * width) / image.width,
      y: (y1 * height) / image.height,
      width: ((x2 - x1) * width) / image.width,
      height: ((y2 - y1) * height) / image.height,
    }));
    measure.font = FONT;
    const texts = detections.map(({ label, score }) => `${label} ${percent(score)}`);
    const widths = texts.map((text) => Math.ceil(measure.measureText(text).width) + 2 * PADDING);
    const spots = placeLabels(boxes, widths, LABEL_HEIGHT, { width, height });
    this.#boxes = detections.map((found, i) => drawBox(found, boxes[i], { width, height }));
    this.#labels = detections.map((found, i) =>
      spots[i] && drawLabel(found, spots[i], texts[i], widths[i]));
    // Small boxes over large ones, so that each can be pointed at.
    const area = (i) => boxes[i].width * boxes[i].height;
    const order = [...this.#boxes.keys()].sort((a, b) => area(b) - area(a));
    this.#svg.append(...order.map((i) => this.#boxes[i]), ...this.#labels.filter(Boolean).reverse());
  }
}

function drawBox(found, box, size) {
  // The line is drawn inside the picture: half of it would be cut off at the edge.
  const left = Math.max(box.x, 1.5);
  const top = Math.max(box.y, 1.5);
  const outline = {
    x: left, y: top, rx: 2,
    width: Math.max(1, Math.min(box.x + box.width, size.width - 1.5) - left),
    height: Math.max(1, Math.min(box.y + box.height, size.height - 1.5) - top),
  };
  const group = element("g", { "data-class": found.class_id });
  group.append(element("rect", { ...outline, class: "rim" }));
  const stroke = classColor(found.class_id);
  group.append(element("rect", { ...outline, class: "box", stroke }));
  return group;
}

function drawLabel(found, { x, y, crowded }, text, width) {
  const group = element("g", { class: crowded ? "label crowded" : "label" });
  const fill = classColor(found.class_id);
  group.append(element("rect", { x, y, width, height: LABEL_HEIGHT, rx: 3, fill }));
  const words = element("text", { x: x + PADDING, y: y + 14.5, fill: textColor(found.class_id) });
  words.textContent = text;
  group.append(words);
  return group;
}
