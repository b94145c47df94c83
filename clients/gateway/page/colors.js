// A class has the same colour here as in the pictures that the Python client draws.

const SHADES = [[0.8, 0.95], [0.95, 0.7], [0.5, 0.95]]; // saturation, value
const GOLDEN_RATIO = 0.618034;

function rgb(classId) {
  const [saturation, value] = SHADES[classId % SHADES.length];
  const hue = ((classId * GOLDEN_RATIO) % 1) * 6;
  return [5, 3, 1].map((offset) => {
    const k = (offset + hue) % 6;
    return Math.round(255 * (value - value * saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  });
}

export function classColor(classId) {
  return `rgb(${rgb(classId).join(" ")})`;
}

/** Black or white, whichever reads better on the class's colour. */
export function textColor(classId) {
  const [r, g, b] = rgb(classId).map((channel) => {
    const c = channel / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

export function percent(score) {
  return `${Math.round(score * 100)}%`;
}
