// The same selection as the server's (detserve/nms.py), so that sliders need no request.

/** The thresholds of a request whose answer holds every candidate that the sliders can show. */
export const WIDE = { score_threshold: 0.05, iou_threshold: 1, max_detections: 300 };

/** What the server takes when a request says nothing. */
export const DEFAULTS = { score: 0.3, iou: 0.5, max: 100 };

/**
 * Intersection over union of two boxes [x1, y1, x2, y2].
 * In single precision, as the server: an overlap of just the threshold must fall the same way.
 */
export function iou(a, b) {
  const f = Math.fround;
  const width = f(Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const height = f(Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  if (width <= 0 || height <= 0) return 0;
  const intersection = f(width * height);
  const areaA = f(f(a[2] - a[0]) * f(a[3] - a[1]));
  const areaB = f(f(b[2] - b[0]) * f(b[3] - b[1]));
  return f(intersection / f(f(areaA + areaB) - intersection));
}

/**
 * Score threshold, then greedy suppression within each class, then the best `max`.
 *
 * A box goes if a kept box of its class before it overlaps it by more than the threshold.
 * The server sees boxes before they are clipped to the image, the page after: where an object
 * leaves the image, two overlaps close to the threshold can come out differently.
 *
 * @param detections By descending score, as the server sends them.
 */
export function select(detections, { score, iou: limit, max = DEFAULTS.max }) {
  const kept = [];
  const keptOfClass = new Map();
  const lowest = Math.fround(score);
  for (const found of detections) {
    if (kept.length === max) break;
    if (Math.fround(found.score) < lowest) continue;
    const rivals = keptOfClass.get(found.class_id) ?? [];
    if (rivals.some((rival) => iou(rival.box_xyxy, found.box_xyxy) > limit)) continue;
    rivals.push(found);
    keptOfClass.set(found.class_id, rivals);
    kept.push(found);
  }
  return kept;
}
