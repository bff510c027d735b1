// From pixels to the model's input, as preprocessing.steps of model.json describes it; the same numbers as the package.

const FIXED_POINT_BITS = 15;

// Round half to even, as Python does.
export function roundEven(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

// The squares {left, top, side} of a picture: one in the middle, or three along the longer side.
export function cropBoxes(width, height, rules, count) {
  const side = Math.max(1, roundEven((Math.min(width, height) * rules.size) / rules.short_side));
  const left = width - side, top = height - side;
  const middle = { left: Math.floor(left / 2), top: Math.floor(top / 2), side };
  if (count === 1) return [middle];
  if (height > width) return [0, middle.top, top].map((y) => ({ ...middle, top: y }));
  return [0, middle.left, left].map((x) => ({ ...middle, left: x }));
}

// Fixed-point weights of an antialiased bilinear resize: for each output its first input, and integers.
export function resizeWeights(before, after) {
  const scale = before / after, support = Math.max(scale, 1), rows = [];
  let largest = 0;
  for (let n = 0; n < after; n++) {
    const center = scale * (n + 0.5);
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), before);
    const weights = [];
    let sum = 0;
    for (let i = first; i < end; i++) {
      weights.push(Math.max(1 - Math.abs((i - center + 0.5) / support), 0));
      sum += weights[weights.length - 1];
    }
    for (let i = 0; i < weights.length; i++) largest = Math.max(largest, (weights[i] /= sum));
    rows.push({ first, weights });
  }
  let bits = 0;
  while (bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** FIXED_POINT_BITS) bits++;
  for (const row of rows) row.weights = Int32Array.from(row.weights, (w) => Math.floor(w * 2 ** bits + 0.5));
  return { rows, bits };
}

const known = new Map(); // weights by "before after"

function weightsFor(before, after) {
  const key = `${before} ${after}`;
  if (!known.has(key)) known.set(key, resizeWeights(before, after));
  return known.get(key);
}

function limited(sum, bits) {
  const value = bits ? (sum + (1 << (bits - 1))) >> bits : sum;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

// RGBA pixels of a square (side x side) -> RGB planes (3, size, size): columns first, then rows, 8 bits in between.
export function resizedPlanes(rgba, side, size) {
  const wide = new Uint8Array(3 * side * size), planes = new Uint8Array(3 * size * size);
  if (side === size) {
    for (let i = 0; i < size * size; i++)
      for (let c = 0; c < 3; c++) planes[c * size * size + i] = rgba[4 * i + c];
    return planes;
  }
  const { rows, bits } = weightsFor(side, size);
  for (let y = 0; y < side; y++)
    for (let x = 0; x < size; x++) {
      const { first, weights } = rows[x];
      let r = 0, g = 0, b = 0;
      for (let i = 0, at = 4 * (y * side + first); i < weights.length; i++, at += 4) {
        r += weights[i] * rgba[at];
        g += weights[i] * rgba[at + 1];
        b += weights[i] * rgba[at + 2];
      }
      const at = y * size + x;
      wide[at] = limited(r, bits);
      wide[side * size + at] = limited(g, bits);
      wide[2 * side * size + at] = limited(b, bits);
    }
  for (let c = 0; c < 3; c++)
    for (let y = 0; y < size; y++) {
      const { first, weights } = rows[y];
      for (let x = 0; x < size; x++) {
        let sum = 0;
        for (let i = 0, at = c * side * size + first * size + x; i < weights.length; i++, at += size)
          sum += weights[i] * wide[at];
        planes[c * size * size + y * size + x] = limited(sum, bits);
      }
    }
  return planes;
}

// T frames of planes (3, size, size) -> a clip (3, T, size, size).
export function clipOf(frames, size) {
  const area = size * size, clip = new Uint8Array(3 * frames.length * area);
  frames.forEach((planes, t) => {
    for (let c = 0; c < 3; c++)
      clip.set(planes.subarray(c * area, (c + 1) * area), (c * frames.length + t) * area);
  });
  return clip;
}

// Seconds of the frames of each clip in time: views_in_time rows of num_frames.
export function clipTimes(duration, rules) {
  const T = rules.num_frames, V = rules.views_in_time;
  return Array.from({ length: V }, (_, k) => {
    const c = (k + 0.5) / V;
    const second = (i) =>
      rules.sampling === "clip"
        ? c * Math.max(duration - T * rules.step_seconds, 0) + i * rules.step_seconds
        : ((i + c) * duration) / T;
    return Array.from({ length: T }, (_, i) => second(rules.single_frame ? T >> 1 : i));
  });
}
