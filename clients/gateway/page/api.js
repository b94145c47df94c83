// Talking to the gateway, and its errors in words.
import { WIDE } from "./nms.js";

const KEY = "detserve-api-key";
const CLIENT_TIMEOUT_MS = 60_000;

export function apiKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setApiKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** What went wrong, for people: a title, a detail, and whether trying again makes sense. */
export class Problem extends Error {
  constructor({ title, detail = "", status = 0, retryable = false }) {
    super(title);
    Object.assign(this, { title, detail, status, retryable });
  }
}

const TITLES = {
  400: "This is not an image the server can read",
  401: "This server asks for an API key",
  403: "This API key is not accepted",
  408: "The upload took too long",
  413: "This image is too large",
  415: "This kind of file is not supported",
  422: "The server did not understand the request",
  429: "Too many requests at once",
  503: "The server is busy",
  504: "The server took too long",
};
const RETRYABLE = new Set([408, 429, 500, 502, 503, 504]);

/** Turn a problem document and its response into words. */
export function problemFrom({ status = 0, detail = "", title = "" } = {}, retryAfter = null) {
  const words = [detail || title].filter(Boolean);
  const seconds = Number.parseInt(retryAfter ?? "", 10);
  if (seconds > 0) words.push(`Try again in ${seconds} ${seconds === 1 ? "second" : "seconds"}.`);
  return new Problem({
    title: TITLES[status] ?? title ?? "Something went wrong",
    detail: words.join(" "),
    status,
    retryable: RETRYABLE.has(status),
  });
}

export const GONE = {
  title: "The server cannot be reached",
  detail: "Check the connection, or that the service is running.",
  retryable: true,
};

/**
 * Ask for every candidate in one image.
 *
 * @param {Blob} blob The encoded image as it is: nothing is resized or re-encoded.
 * @returns The server's answer with `round_trip_ms` added.
 * @throws {Problem}
 */
export async function detect(blob) {
  const type = blob.type || "application/octet-stream";
  if (blob.type && !blob.type.startsWith("image/")) {
    throw new Problem({ title: "This is not an image", detail: `It is a file of type ${type}.` });
  }
  if (blob.size === 0) throw new Problem({ title: "This file is empty" });
  const headers = { "Content-Type": type, Accept: "application/json" };
  if (apiKey()) headers["X-API-Key"] = apiKey();
  const started = performance.now();
  let response;
  try {
    response = await fetch(`detect?${new URLSearchParams(WIDE)}`, {
      method: "POST", body: blob, headers, signal: AbortSignal.timeout(CLIENT_TIMEOUT_MS),
    });
  } catch (error) {
    if (error.name === "TimeoutError") throw problemFrom({ status: 504 });
    throw new Problem(GONE);
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const { title = "", detail = "" } = answer;
    throw problemFrom({ title, detail, status: response.status }, response.headers.get("Retry-After"));
  }
  return { ...answer, round_trip_ms: performance.now() - started };
}
