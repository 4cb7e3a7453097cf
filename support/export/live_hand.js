
// ---------------------------------------------------------------------- the hand

// Find a hand as the command line does. The steps and their reasons are those of support/prediction/detection.py.

// Takes RGB bytes; returns the center and the side of the square to crop to, { x, y, side }, or null.
function findHand({ width, height, data }) {
  const count = width * height, raw = new Float32Array(count);
  for (let i = 0; i < count; i++) raw[i] = Math.log((data[3 * i] + 8) / (data[3 * i + 2] + 8));
  const redness = blurred(raw, width, height, Math.max(width, height) / 250);
  const low = least(redness), high = most(redness);
  if (high - low < 0.2) return null;
  const threshold = otsuThreshold(redness, low, high);
  const wall = median(redness.filter((value) => value <= threshold));
  const skin = median(redness.filter((value) => value > threshold));
  const red = Uint8Array.from(redness, (value) => value > 0.6 * wall + 0.4 * skin);
  const { part, size } = largestPart(red, width);
  const onBorder = borderPixels(width, height);
  const border = onBorder.reduce((sum, pixel) => sum + part[pixel], 0) / onBorder.length;
  const total = red.reduce((sum, value) => sum + value, 0);
  if (skin - wall < 0.2 || size < 0.6 * total || border > 0.3 || size <= 0.005 * count || size >= 0.65 * count) return null;
  const { left, top, right, bottom } = withoutArm(filled(part, width, height), width, height);
  const side = model.hand_margin * Math.max(right - left, bottom - top);
  return { x: (left + right) / 2, y: (top + bottom) / 2 - 0.03 * side, side };
}

const least = (values) => values.reduce((one, other) => Math.min(one, other), Infinity);
const most = (values) => values.reduce((one, other) => Math.max(one, other), -Infinity);

function median(values) {
  values.sort();
  const middle = values.length >> 1;
  return values.length % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// Gaussian blur along the columns, then along the rows; beyond the border, the image is reflected.
function blurred(values, width, height, sigma) {
  const radius = Math.trunc(4 * sigma + 0.5);
  const kernel = Array.from({ length: 2 * radius + 1 }, (_, i) => Math.exp(-0.5 * ((i - radius) / sigma) ** 2));
  const sum = kernel.reduce((total, value) => total + value, 0);
  for (const [length, step, lines, stride] of [[height, width, width, 1], [width, 1, height, width]]) {
    const result = new Float32Array(values.length);
    const reflected = Int32Array.from({ length: length + 2 * radius }, (_, i) => {
      const place = (((i - radius) % (2 * length)) + 2 * length) % (2 * length);
      return (place < length ? place : 2 * length - 1 - place) * step;
    });
    for (let line = 0; line < lines; line++) {
      for (let i = 0; i < length; i++) {
        let value = 0;
        for (let k = 0; k < kernel.length; k++) value += kernel[k] * values[line * stride + reflected[i + k]];
        result[line * stride + i * step] = value / sum;
      }
    }
    values = result;
  }
  return values;
}

function otsuThreshold(values, low, high) {
  const bins = 256, counts = new Float64Array(bins), edge = (bin) => low + (bin * (high - low)) / bins;
  for (const value of values) counts[Math.min(Math.floor(((value - low) / (high - low)) * bins), bins - 1)]++;
  const total = counts.reduce((sum, count, bin) => sum + (count * (edge(bin) + edge(bin + 1))) / 2, 0) / values.length;
  let best = -1, threshold = low, fraction = 0, mean = 0;
  for (let bin = 0; bin < bins - 1; bin++) {
    fraction += counts[bin] / values.length;
    mean += (counts[bin] / values.length) * (edge(bin) + edge(bin + 1)) / 2;
    const between = (total * fraction - mean) ** 2 / Math.max(fraction * (1 - fraction), 1e-9);
    if (between > best) [best, threshold] = [between, edge(bin + 1)];
  }
  return threshold;
}

// Mark with `mark` what is 0 in `marks`, 1 in `mask` and connected to a pixel; return the number of pixels marked.
function flood(marks, mask, width, pixel, mark) {
  if (marks[pixel] || !mask[pixel]) return 0;
  const stack = [pixel];
  let size = 1;
  marks[pixel] = mark;
  while (stack.length) {
    const at = stack.pop(), column = at % width;
    for (const next of [at - width, at + width, column > 0 ? at - 1 : at, column < width - 1 ? at + 1 : at]) {
      if (mask[next] && !marks[next]) { // beyond the image, mask is undefined
        marks[next] = mark;
        stack.push(next);
        size++;
      }
    }
  }
  return size;
}

// The largest connected part of a mask, as a mask, and its number of pixels.
function largestPart(mask, width) {
  const marks = new Int32Array(mask.length);
  let best = { mark: 0, size: 0 };
  for (let pixel = 0, mark = 1; pixel < mask.length; pixel++) {
    const size = flood(marks, mask, width, pixel, mark);
    if (size > best.size) best = { mark, size };
    if (size) mark++;
  }
  return { part: Uint8Array.from(marks, (mark) => mark === best.mark), size: best.size };
}

// The pixels of the four edges; a corner belongs to two of them.
function borderPixels(width, height) {
  const columns = Array.from({ length: width }, (_, x) => x), rows = Array.from({ length: height }, (_, y) => y * width);
  const last = (height - 1) * width;
  return [...columns, ...columns.map((x) => x + last), ...rows, ...rows.map((y) => y + width - 1)];
}

// A mask without holes: everything but what is connected to the border from outside.
function filled(mask, width, height) {
  const outside = new Uint8Array(mask.length), empty = mask.map((value) => 1 - value);
  for (const pixel of borderPixels(width, height)) flood(outside, empty, width, pixel, 1);
  return outside.map((value) => 1 - value);
}

// The bounding box of a hand without what lies below the wrist.
function withoutArm(hand, width, height) {
  const points = [];
  const depths = depthsOf(hand, width, height), depth = [];
  hand.forEach((inside, pixel) => {
    if (!inside) return;
    points.push([Math.floor(pixel / width), pixel % width]);
    depth.push(depths[pixel]);
  });
  const distanceTo = ([y, x]) => (point) => Math.sqrt((point[0] - y) ** 2 + (point[1] - x) ** 2);
  const argmax = (values) => values.reduce((best, value, index) => (value > values[best] ? index : best), 0);
  const edge = points.filter(([y, x]) => y === 0 || x === 0 || y === height - 1 || x === width - 1);
  const middle = [0, 1].map((axis) => edge.reduce((sum, point) => sum + point[axis], 0) / edge.length);
  const fromBorder = edge.length ? points.map(distanceTo(middle)) : depth;
  const deepest = 0.8 * most(depth);
  let palm = argmax(fromBorder.map((value, i) => (depth[i] > deepest ? value : 0)));
  const near = distanceTo(points[palm]), reach = depth[palm];
  palm = argmax(depth.map((value, i) => (near(points[i]) < reach ? value : 0)));
  const center = points[palm], radius = depth[palm], fromPalm = points.map(distanceTo(center));
  const thick = fromPalm.map((value, i) => (depth[i] > 0.55 * radius ? value : 0)), end = argmax(thick);
  let kept = points;
  if (thick[end] > 1.5 * radius) {
    const arm = [0, 1].map((axis) => (points[end][axis] - center[axis]) / thick[end]);
    kept = points.filter(([y, x]) => (y - center[0]) * arm[0] + (x - center[1]) * arm[1] < 1.6 * radius);
  }
  const rows = kept.map(([y]) => y), columns = kept.map(([, x]) => x);
  return { left: least(columns), top: least(rows), right: most(columns) + 1, bottom: most(rows) + 1 };
}

// The distance of each pixel of a mask to the nearest one outside of it; beyond the border, all is outside. Distances
// are exact: Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled Functions", 2012.
function depthsOf(mask, width, height) {
  const squares = new Float64Array(mask.length);
  for (let x = 0; x < width; x++) {
    for (let y = 0, distance = 0; y < height; y++) {
      distance = mask[y * width + x] ? distance + 1 : 0;
      squares[y * width + x] = distance;
    }
    for (let y = height - 1, distance = 0; y >= 0; y--) {
      distance = mask[y * width + x] ? distance + 1 : 0;
      squares[y * width + x] = Math.min(squares[y * width + x], distance) ** 2;
    }
  }
  const result = new Float64Array(mask.length);
  for (let y = 0; y < height; y++) {
    // The lower envelope of a parabola over each pixel of the row, and over one pixel beyond either end.
    const heightAt = (x) => (x < 0 || x >= width ? 0 : squares[y * width + x]);
    const places = [-1], starts = [-Infinity];
    for (let x = 0; x <= width; x++) {
      const meets = (place) => (heightAt(x) + x * x - heightAt(place) - place * place) / (2 * (x - place));
      while (meets(places.at(-1)) <= starts.at(-1)) {
        places.pop();
        starts.pop();
      }
      starts.push(meets(places.at(-1)));
      places.push(x);
    }
    for (let x = 0, k = 0; x < width; x++) {
      while (k + 1 < places.length && starts[k + 1] < x) k++;
      result[y * width + x] = Math.sqrt((x - places[k]) ** 2 + heightAt(places[k]));
    }
  }
  return result;
}
