// The images of this visit, each with its state, asked for two at a time.
import { detect, Problem } from "./api.js";

const AT_ONCE = 2;
const WORDS = {
  waiting: "waiting", running: "detecting", done: "done", error: "failed",
};

export class Gallery {
  #list;
  #items = [];
  #running = 0;
  #selected = null;
  #on;

  /**
   * @param list The list element of the thumbnails.
   * @param on Callbacks: select(item), update(item).
   */
  constructor(list, on) {
    this.#list = list;
    this.#on = on;
  }

  get selected() {
    return this.#selected;
  }

  /** Add files, or blobs with a name, and show the first of them. */
  add(blobs, fallbackName = "pasted image") {
    const added = [...blobs].map((blob) => this.#item(blob, blob.name ?? fallbackName));
    if (!added.length) return;
    this.#items.push(...added);
    this.#list.hidden = this.#items.length < 2;
    this.select(added[0]);
    this.#work();
  }

  select(item) {
    this.#selected = item;
    for (const other of this.#items) {
      other.button.toggleAttribute("aria-current", other === item);
    }
    if (item) {
      item.button.scrollIntoView?.({ block: "nearest", inline: "nearest" });
      this.#on.select(item);
    }
  }

  /** Ask again for an image that failed, or for all that lacked a key. */
  retry(items = [this.#selected]) {
    for (const item of items) if (item?.state === "error") this.#state(item, "waiting");
    this.#work();
  }

  /** The images that a missing or wrong key held up. */
  get lockedOut() {
    return this.#items.filter(({ problem }) => [401, 403].includes(problem?.status));
  }

  #item(blob, name) {
    const item = { blob, name, url: URL.createObjectURL(blob), state: "", answer: null };
    const button = document.createElement("button");
    button.type = "button";
    button.title = name;
    const picture = new Image();
    Object.assign(picture, { src: item.url, alt: "", loading: "lazy", decoding: "async" });
    picture.addEventListener("error", () => { picture.hidden = true; });
    const badge = document.createElement("span");
    badge.className = "badge";
    button.append(picture, badge);
    button.addEventListener("click", () => this.select(item));
    const entry = document.createElement("li");
    entry.append(button);
    Object.assign(item, { button, badge });
    this.#list.append(entry);
    this.#state(item, "waiting");
    return item;
  }

  #state(item, state, { answer = null, problem = null } = {}) {
    Object.assign(item, { state, answer, problem });
    item.button.dataset.state = state;
    item.button.setAttribute("aria-label", `${item.name}, ${WORDS[state]}`);
    item.badge.textContent = state === "error" ? "!" : "";
    this.#on.update(item);
  }

  #work() {
    while (this.#running < AT_ONCE) {
      const item = this.#items.find(({ state }) => state === "waiting");
      if (!item) return;
      this.#running += 1;
      this.#state(item, "running");
      this.#ask(item).finally(() => {
        this.#running -= 1;
        this.#work();
      });
    }
  }

  async #ask(item) {
    try {
      this.#state(item, "done", { answer: await detect(item.blob) });
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      this.#state(item, "error", { problem });
    }
  }
}
