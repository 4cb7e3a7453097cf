// The network in plain JavaScript: a photograph's pixels in, probabilities and the reasons for "not sure" out.
"use strict";

const model = JSON.parse(document.getElementById("model").textContent);
const SIZE = 64;

// ------------------------------------------------------------------ the weights

function decodeFloat16(bits) {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
}

const decodeBytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)).buffer;
const float16Array = (base64) => Float32Array.from(new Uint16Array(decodeBytes(base64)), decodeFloat16);

// Kernels are in one array, biases and other vectors in another; each step of the network takes its own from them.
const kernels = { all: float16Array(model.kernels), taken: 0 };
const vectors = { all: new Float32Array(decodeBytes(model.vectors)), taken: 0 };
for (const step of model.steps) {
  step.weights = step.shapes.map((shape) => {
    const row = shape.length > 1 ? kernels : vectors;
    const length = shape.reduce((product, side) => product * side, 1);
    return row.all.subarray(row.taken, (row.taken += length));
  });
}
const bank = model.bank && { images: float16Array(model.bank.images), directions: float16Array(model.bank.directions) };

// -------------------------------------------------------------------- the image

function lanczos(x) {
  if (x === 0) return 1;
  const angle = Math.PI * x;
  return Math.abs(x) < 3 ? (3 * Math.sin(angle) * Math.sin(angle / 3)) / (angle * angle) : 0;
}

// For each of SIZE pixels along one side of the square: the first pixel of the photograph to read, and the weights.
function lanczosFilters(length, start, side) {
  const scale = side / SIZE, spread = Math.max(scale, 1);
  return Array.from({ length: SIZE }, (_, index) => {
    const center = start + (index + 0.5) * scale;
    const first = Math.max(Math.trunc(center - 3 * spread + 0.5), 0);
    const last = Math.min(Math.trunc(center + 3 * spread + 0.5), length);
    const factors = Array.from({ length: last - first }, (_, i) => lanczos((first + i + 0.5 - center) / spread));
    const sum = factors.reduce((total, factor) => total + factor, 0);
    return { first, factors: factors.map((factor) => factor / sum) };
  });
}

// Cut the largest square out of the middle and scale it to SIZE x SIZE as Pillow does: first along the rows, then
// along the columns, rounded after each. Takes the RGBA bytes of a canvas and returns RGB bytes.
function centerSquare({ width, height, data }) {
  const side = Math.min(width, height);
  const columns = lanczosFilters(width, (width - side) / 2, side);
  const rows = lanczosFilters(height, (height - side) / 2, side);
  const narrow = new Uint8ClampedArray(height * SIZE * 3);
  for (let y = 0, out = 0; y < height; y++) {
    for (const { first, factors } of columns) {
      let red = 0, green = 0, blue = 0;
      for (let i = 0, at = (y * width + first) * 4; i < factors.length; i++, at += 4) {
        red += factors[i] * data[at];
        green += factors[i] * data[at + 1];
        blue += factors[i] * data[at + 2];
      }
      narrow[out++] = red;
      narrow[out++] = green;
      narrow[out++] = blue;
    }
  }
  const square = new Uint8ClampedArray(SIZE * SIZE * 3), stride = SIZE * 3;
  rows.forEach(({ first, factors }, y) => {
    for (let x = 0; x < stride; x++) {
      let sum = 0;
      for (let i = 0; i < factors.length; i++) sum += factors[i] * narrow[(first + i) * stride + x];
      square[y * stride + x] = sum;
    }
  });
  return square;
}

// ------------------------------------------------------------------ the network

// What passes from step to step: `data` holds height x width x channels numbers, the channels of one position together.

function conv({ height, width, channels, data }, { padding, shapes: [[rows, columns, , filters]], weights: [kernel, bias] }) {
  const same = padding === "same", top = same ? (rows - 1) >> 1 : 0, left = same ? (columns - 1) >> 1 : 0;
  const newHeight = same ? height : height - rows + 1, newWidth = same ? width : width - columns + 1;
  const result = new Float32Array(newHeight * newWidth * filters), sums = new Float32Array(filters);
  for (let y = 0, out = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++, out += filters) {
      sums.set(bias);
      for (let row = Math.max(0, top - y); row < Math.min(rows, height + top - y); row++) {
        for (let column = Math.max(0, left - x); column < Math.min(columns, width + left - x); column++) {
          const from = ((y + row - top) * width + x + column - left) * channels;
          const at = (row * columns + column) * channels * filters;
          for (let channel = 0; channel < channels; channel++) {
            const value = data[from + channel], k = at + channel * filters;
            if (value === 0) continue; // half of the numbers, thanks to ReLU
            for (let filter = 0; filter < filters; filter++) sums[filter] += value * kernel[k + filter];
          }
        }
      }
      result.set(sums, out);
    }
  }
  return { height: newHeight, width: newWidth, channels: filters, data: result };
}

function pool({ height, width, channels, data }, size, start, add) {
  const newHeight = Math.floor(height / size), newWidth = Math.floor(width / size);
  const result = new Float32Array(newHeight * newWidth * channels).fill(start);
  for (let y = 0; y < newHeight * size; y++) {
    for (let x = 0; x < newWidth * size; x++) {
      const from = (y * width + x) * channels;
      const to = (Math.floor(y / size) * newWidth + Math.floor(x / size)) * channels;
      for (let channel = 0; channel < channels; channel++) {
        result[to + channel] = add(result[to + channel], data[from + channel]);
      }
    }
  }
  return { height: newHeight, width: newWidth, channels, data: result };
}

function dense({ channels, data }, { weights: [kernel, bias] }) {
  const result = Float32Array.from(bias);
  for (let i = 0; i < channels; i++) {
    for (let j = 0; j < bias.length; j++) result[j] += data[i] * kernel[i * bias.length + j];
  }
  return row(result);
}

function softmax(values) {
  const largest = Math.max(...values), powers = values.map((value) => Math.exp(value - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

const row = (data) => ({ height: 1, width: 1, channels: data.length, data });
const change = (x, change) => ({ ...x, data: x.data.map(change) });
const mean = (x, size) => pool(x, size, 0, (sum, value) => sum + value / (size * size));

const STEPS = {
  rescale: (x, { scale, offset }) => change(x, (value) => value * scale + offset),
  normalise: (x, { weights: [scale, shift] }) =>
    change(x, (value, index) => value * scale[index % x.channels] + shift[index % x.channels]),
  relu: (x) => change(x, (value) => Math.max(value, 0)),
  sigmoid: (x) => change(x, (value) => 1 / (1 + Math.exp(-value))),
  softmax: (x) => row(softmax(x.data)),
  max_pool: (x, { size }) => pool(x, size, -Infinity, Math.max),
  average_pool: (x, { size }) => mean(x, size),
  global_average: (x) => row(mean(x, x.height).data),
  flatten: (x) => row(x.data),
  conv,
  dense,
};

// The cosine distance to the tenth nearest training image; the bank is stored as a product of two small matrices.
function distanceToTraining(features) {
  const { rank, neighbours } = model.bank, { images, directions } = bank;
  const length = Math.max(Math.hypot(...features), 1e-6), width = features.length;
  const projected = new Float32Array(rank);
  for (let i = 0; i < rank; i++) {
    for (let j = 0; j < width; j++) projected[i] += (directions[i * width + j] * features[j]) / length;
  }
  const similarity = new Float32Array(images.length / rank);
  for (let i = 0; i < similarity.length; i++) {
    for (let j = 0; j < rank; j++) similarity[i] += images[i * rank + j] * projected[j];
  }
  similarity.sort();
  return 1 - similarity[similarity.length - Math.min(neighbours, similarity.length)];
}

// Classify SIZE x SIZE x 3 bytes. `reasons` is empty if the network is sure.
function classify(pixels) {
  let x = { height: SIZE, width: SIZE, channels: 3, data: Float32Array.from(pixels) }, features;
  for (const step of model.steps) {
    if (step.type === "dense") features = x.data; // the last dense layer's input remains
    x = STEPS[step.type](x, step);
  }
  const probabilities = x.data.length === 1 ? [1 - x.data[0], x.data[0]] : Array.from(x.data);
  const confidence = Math.max(...probabilities), label = probabilities.indexOf(confidence), reasons = [];
  if (confidence < model.confidence) reasons.push(`confidence below ${percent(model.confidence)}`);
  const distance = bank && distanceToTraining(features);
  if (bank && distance > model.bank.threshold) {
    const numbers = `distance ${distance.toFixed(2)}, usually up to ${model.bank.threshold.toFixed(2)}`;
    reasons.push(`unlike the training images (${numbers})`);
  }
  return { probabilities, label, distance, reasons };
}

const percent = (share) => `${Math.round(share * 100)} %`;
