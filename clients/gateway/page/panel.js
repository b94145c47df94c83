// The panel beside the picture: sliders, class chips, the table, and times.
import { classColor, percent } from "./colors.js";
import { DEFAULTS, select } from "./nms.js";

const $ = (id) => document.getElementById(id);

function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function swatch(classId) {
  const made = make("span", { className: "swatch" });
  made.style.background = classColor(classId);
  return made;
}

const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

export class Panel {
  #hidden = new Set(); // class ids that a chip has switched off
  #answer = null;
  #shown = [];
  #rows = [];
  #on;

  /** @param on Callbacks: change() when another selection is to be shown, point(index). */
  constructor(on) {
    this.#on = on;
    for (const id of ["score", "iou"]) {
      $(id).value = DEFAULTS[id];
      $(id).addEventListener("input", () => this.#refresh());
    }
    const body = $("rows");
    const index = (event) => this.#rows.indexOf(event.target.closest("tr"));
    body.addEventListener("pointerover", (event) => on.point(index(event)));
    body.addEventListener("pointerleave", ({ pointerType }) => {
      if (pointerType !== "touch") on.point(this.#focused());
    });
    body.addEventListener("focusin", (event) => on.point(index(event)));
    body.addEventListener("focusout", () => on.point(-1));
    body.addEventListener("keydown", (event) => this.#step(event));
    this.#label();
  }

  get thresholds() {
    return { score_threshold: Number($("score").value), iou_threshold: Number($("iou").value) };
  }

  /** What is shown now: over the thresholds, not suppressed, of a class that is switched on. */
  get shown() {
    return this.#shown;
  }

  /** Show an answer of the server's, or null for none yet. */
  show(answer) {
    this.#answer = answer;
    $("timing").hidden = $("downloads").hidden = !answer;
    if (answer) this.#time(answer);
    this.#refresh();
  }

  highlight(index) {
    this.#rows.forEach((row, i) => row.classList.toggle("on", i === index));
  }

  /** Scroll the table, and only the table, to a row. */
  reveal(index) {
    const row = this.#rows[index];
    const area = $("rows").closest(".rows");
    if (!row || area.scrollHeight <= area.clientHeight) return;
    const top = row.offsetTop - area.clientHeight / 2;
    area.scrollTo({ top });
  }

  #refresh() {
    this.#label();
    const found = this.#answer?.detections ?? [];
    const { score_threshold: score, iou_threshold: iou } = this.thresholds;
    const selected = select(found, { score, iou });
    this.#shown = selected.filter(({ class_id: id }) => !this.#hidden.has(id));
    this.#chips(selected);
    this.#table();
    $("nothing").hidden = this.#shown.length > 0;
    $("nothing").textContent = this.#words(found, selected);
    this.#on.change();
  }

  #words(found, selected) {
    if (!this.#answer) return "Nothing to list yet.";
    if (selected.length) return "Every class is switched off.";
    if (!found.length) return "Nothing was found in this picture.";
    return `Nothing scores ${$("score-value").value}. Lower the score to see more.`;
  }

  #label() {
    $("score-value").value = percent($("score").value);
    $("iou-value").value = percent($("iou").value);
    for (const id of ["score", "iou"]) {
      $(id).setAttribute("aria-valuetext", percent($(id).value));
    }
  }

  #chips(selected) {
    const counts = new Map();
    for (const { class_id: id, label } of selected) {
      const { count = 0 } = counts.get(id) ?? {};
      counts.set(id, { label, count: count + 1 });
    }
    const chips = $("chips");
    const focused = document.activeElement?.closest("#chips button")?.dataset.class;
    chips.replaceChildren(...[...counts].map(([id, { label, count }]) => {
      const chip = make("button", { type: "button", className: "chip" }, swatch(id), label);
      chip.append(make("span", { className: "count", textContent: count }));
      chip.dataset.class = id;
      chip.setAttribute("aria-pressed", String(!this.#hidden.has(id)));
      chip.addEventListener("click", () => {
        if (!this.#hidden.delete(id)) this.#hidden.add(id);
        this.#refresh();
      });
      return chip;
    }));
    if (focused) chips.querySelector(`[data-class="${focused}"]`)?.focus();
  }

  #table() {
    const focused = this.#focused();
    this.#rows = this.#shown.map((found) => {
      const [x1, y1, x2, y2] = found.box_xyxy;
      const row = make("tr", { tabIndex: -1 },
        make("td", {}, swatch(found.class_id), found.label),
        make("td", { className: "number", textContent: percent(found.score) }),
        make("td", {
          className: "number", textContent: `${Math.round(x2 - x1)} × ${Math.round(y2 - y1)}`,
        }));
      return row;
    });
    if (this.#rows.length) this.#rows[0].tabIndex = 0; // one stop for Tab, arrows for the rest
    $("rows").replaceChildren(...this.#rows);
    $("rows").closest("table").hidden = !this.#rows.length;
    if (focused >= 0) this.#rows[Math.min(focused, this.#rows.length - 1)]?.focus();
  }

  #focused() {
    return this.#rows.indexOf(document.activeElement);
  }

  #step(event) {
    const now = this.#focused();
    const last = this.#rows.length - 1;
    const to = { ArrowDown: now + 1, ArrowUp: now - 1, Home: 0, End: last }[event.key];
    if (to === undefined || now < 0) return;
    event.preventDefault();
    const row = this.#rows[Math.min(Math.max(to, 0), last)];
    this.#rows[now].tabIndex = -1;
    row.tabIndex = 0;
    row.focus();
  }

  #time({ timing, round_trip_ms: trip, cached }) {
    const times = [
      ["Inference", timing?.inference_ms],
      ["Server", timing?.total_ms],
      ["Round trip", trip],
    ].filter(([, value]) => Number.isFinite(value));
    $("timing").replaceChildren(...times.map(([name, value]) =>
      make("div", {}, make("dt", { textContent: name }),
        make("dd", { textContent: milliseconds(value) }))));
    if (cached) {
      $("timing").append(make("div", {}, make("dt", { textContent: "Answer" }),
        make("dd", { textContent: "from the cache" })));
    }
  }
}
