// Frames of the camera over a WebSocket, never more of them than the server answers.
import { apiKey, problemFrom } from "./api.js";
import { WIDE } from "./nms.js";

const MOST_UNANSWERED = 2;
const LONGEST_SIDE = 640;
const JPEG_QUALITY = 0.8;
const WINDOW = 30; // answers that the rate is taken over
const LONGEST_WAIT_MS = 8_000;
const PAUSE_MS = 1_000; // after a frame that the server had no room for
const REFUSED = 1008; // close codes of the gateway's
const BUSY = 1013;

export class Live {
  #video;
  #on;
  #socket = null;
  #sent = []; // when each unanswered frame was sent
  #answered = []; // when the last answers came
  #canvas = document.createElement("canvas");
  #encoding = false;
  #running = false;
  #wait = 0;
  #timer = 0;
  #pausedUntil = 0;
  #loop = 0; // only the newest loop of frames goes on

  /** @param on Callbacks: answer(result, rate), problem(problem), state(words). */
  constructor(video, on) {
    this.#video = video;
    this.#on = on;
    document.addEventListener("visibilitychange", () => this.#visibility());
  }

  get running() {
    return this.#running;
  }

  start() {
    this.#running = true;
    this.#wait = 500;
    this.#connect();
    this.#nextFrame(++this.#loop);
  }

  stop() {
    this.#running = false;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
    this.#socket = null;
    this.#answered = [];
  }

  #connect() {
    const address = new URL("live", document.baseURI);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#sent = [];
    this.#answered = [];
    socket.onopen = () => {
      const key = apiKey();
      socket.send(JSON.stringify(key ? { ...WIDE, api_key: key } : WIDE));
      this.#on.state("");
    };
    socket.onmessage = ({ data }) => {
      if (socket === this.#socket) this.#receive(JSON.parse(data));
    };
    socket.onclose = ({ code, reason }) => {
      if (socket === this.#socket && this.#running) this.#closed(code, reason);
    };
  }

  #closed(code, reason) {
    if (code === REFUSED) {
      this.stop();
      this.#on.problem(problemFrom({ status: 401, detail: reason }));
      return;
    }
    this.#on.state(code === BUSY ? "The server has too many cameras. Trying again…" :
      "Connection lost. Connecting again…");
    this.#timer = setTimeout(() => this.#connect(), this.#wait);
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT_MS);
  }

  #receive(message) {
    const now = performance.now();
    const latency = now - this.#sent.shift();
    if (message.error) {
      this.#pausedUntil = now + PAUSE_MS;
      this.#on.problem(problemFrom(message.error));
      return;
    }
    this.#wait = 500;
    this.#answered.push(now);
    if (this.#answered.length > WINDOW) this.#answered.shift();
    const span = now - this.#answered[0];
    const fps = span > 0 ? ((this.#answered.length - 1) * 1000) / span : 0;
    this.#on.answer({ ...message, round_trip_ms: latency }, { fps, latency });
  }

  #nextFrame(loop) {
    const next = () => {
      if (!this.#running || loop !== this.#loop) return;
      this.#send();
      this.#nextFrame(loop);
    };
    if (this.#video.requestVideoFrameCallback) this.#video.requestVideoFrameCallback(next);
    else requestAnimationFrame(next);
  }

  /** Send the frame that is shown now; where the server lags behind, frames are skipped. */
  #send() {
    const socket = this.#socket;
    const { videoWidth, videoHeight } = this.#video;
    if (document.hidden || this.#encoding || !videoWidth) return;
    if (performance.now() < this.#pausedUntil) return;
    if (socket?.readyState !== WebSocket.OPEN || this.#sent.length >= MOST_UNANSWERED) return;
    const scale = Math.min(1, LONGEST_SIDE / Math.max(videoWidth, videoHeight));
    this.#canvas.width = Math.round(videoWidth * scale);
    this.#canvas.height = Math.round(videoHeight * scale);
    const pen = this.#canvas.getContext("2d", { alpha: false });
    pen.drawImage(this.#video, 0, 0, this.#canvas.width, this.#canvas.height);
    this.#encoding = true;
    this.#canvas.toBlob((blob) => {
      this.#encoding = false;
      if (!blob || socket !== this.#socket || socket.readyState !== WebSocket.OPEN) return;
      this.#sent.push(performance.now());
      socket.send(blob);
    }, "image/jpeg", JPEG_QUALITY);
  }

  #visibility() {
    if (!this.#running) return;
    this.#answered = []; // the pause would count as slowness
    this.#on.state(document.hidden ? "Paused while the tab is hidden." : "");
  }
}
