// The camera: opened, shown, photographed, closed.
import { Problem } from "./api.js";

const WHY = {
  NotAllowedError: ["The camera is not allowed", "Allow it for this site in the browser."],
  NotFoundError: ["No camera was found", "Connect one, or choose images instead."],
  NotReadableError: ["The camera is in use", "Close the program that uses it."],
};

export class Camera {
  #video;
  #stream = null;

  constructor(video) {
    this.#video = video;
  }

  get open() {
    return this.#stream !== null;
  }

  /** @throws {Problem} There is no camera, or it is not ours to use. */
  async start() {
    if (!navigator.mediaDevices) {
      throw new Problem({
        title: "The camera cannot be used here",
        detail: "Browsers allow it on https pages and on localhost only.",
      });
    }
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({
        audio: false,
        video: { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 720 } },
      });
    } catch (error) {
      const [title, detail] = WHY[error.name] ?? ["The camera cannot be opened", error.message];
      throw new Problem({ title, detail });
    }
    this.#video.srcObject = this.#stream;
    await this.#video.play();
  }

  stop() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    this.#video.srcObject = null;
  }

  /** The picture of now, at the camera's full size, as a JPEG file. */
  async photo() {
    const canvas = document.createElement("canvas");
    canvas.width = this.#video.videoWidth;
    canvas.height = this.#video.videoHeight;
    canvas.getContext("2d").drawImage(this.#video, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
    return new File([blob], `photo ${time}.jpg`, { type: "image/jpeg" });
  }
}
