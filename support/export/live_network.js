// The network in plain JavaScript: a photograph's pixels in, probabilities and the reasons for "not sure" out.
"use strict";

const model = JSON.parse(document.getElementById("model").textContent);
const SIZE = model.size;

// ------------------------------------------------------------------ the weights

function decodeFloat16(bits) {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
}

const decodeBytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)).buffer;
const float16Array = (base64) => Float32Array.from(new Uint16Array(decodeBytes(base64)), decodeFloat16);

// Whole numbers from 0 to 4095, two in three bytes; 2047 stands for 0.
function steps(base64) {
  const bytes = new Uint8Array(decodeBytes(base64)), numbers = new Float32Array((bytes.length / 3) * 2);
  for (let i = 0, n = 0; i < bytes.length; i += 3) {
    numbers[n++] = (bytes[i] | ((bytes[i + 1] & 15) << 8)) - 2047;
    numbers[n++] = ((bytes[i + 1] >> 4) | (bytes[i + 2] << 4)) - 2047;
  }
  return numbers;
}

// Kernels are in one array, biases and other vectors in another; each layer takes its own from them.
const kernels = { all: model.steps ? steps(model.kernels) : float16Array(model.kernels), taken: 0 };
const vectors = { all: new Float32Array(decodeBytes(model.vectors)), taken: 0 };
const take = (row, length) => row.all.subarray(row.taken, (row.taken += length));
for (const layer of model.layers) {
  layer.weights = layer.shapes.map((shape) => {
    const length = shape.reduce((product, side) => product * side, 1);
    return take(shape.length > 1 ? kernels : vectors, length);
  });
}
// Last come the sizes of the steps, one for each channel of each kernel.
for (const { shapes, weights } of model.steps ? model.layers : []) {
  shapes.forEach((shape, number) => {
    if (shape.length === 1) return;
    const sizes = take(vectors, shape.at(-1) > 1 ? shape.at(-1) : shape.at(-2)), kernel = weights[number];
    for (let i = 0; i < kernel.length; i++) kernel[i] *= sizes[i % sizes.length];
  });
}
const bank = model.bank && { images: float16Array(model.bank.images), directions: float16Array(model.bank.directions) };

// -------------------------------------------------------------------- the image

function lanczos(x) {
  if (x === 0) return 1;
  const angle = Math.PI * x;
  return Math.abs(x) < 3 ? (3 * Math.sin(angle) * Math.sin(angle / 3)) / (angle * angle) : 0;
}

// For each of `size` pixels along one side of a part of the photograph: the first pixel to read, and the weights.
function lanczosFilters(length, start, end, size) {
  const scale = (end - start) / size, spread = Math.max(scale, 1);
  return Array.from({ length: size }, (_, index) => {
    const center = start + (index + 0.5) * scale;
    const first = Math.max(Math.trunc(center - 3 * spread + 0.5), 0);
    const last = Math.min(Math.trunc(center + 3 * spread + 0.5), length);
    const factors = Array.from({ length: last - first }, (_, i) => lanczos((first + i + 0.5 - center) / spread));
    const sum = factors.reduce((total, factor) => total + factor, 0);
    return { first, last, factors: factors.map((factor) => factor / sum) };
  });
}

// Scale a part of a photograph as Pillow does: first along the rows, then along the columns, rounded after each. Takes
// RGB bytes, or the RGBA bytes of a canvas, and returns RGB bytes.
function scaled({ width, height, data }, [left, top, right, bottom], newWidth, newHeight) {
  const columns = lanczosFilters(width, left, right, newWidth), rows = lanczosFilters(height, top, bottom, newHeight);
  const channels = data.length / (width * height), stride = newWidth * 3, begin = rows[0].first, end = rows[newHeight - 1].last;
  const narrow = new Uint8ClampedArray((end - begin) * stride);
  for (let y = begin, out = 0; y < end; y++) {
    for (const { first, factors } of columns) {
      let red = 0, green = 0, blue = 0;
      for (let i = 0, at = (y * width + first) * channels; i < factors.length; i++, at += channels) {
        red += factors[i] * data[at];
        green += factors[i] * data[at + 1];
        blue += factors[i] * data[at + 2];
      }
      narrow[out++] = red;
      narrow[out++] = green;
      narrow[out++] = blue;
    }
  }
  const result = new Uint8ClampedArray(newHeight * stride), sums = new Float64Array(stride);
  rows.forEach(({ first, factors }, y) => {
    sums.fill(0);
    factors.forEach((factor, i) => {
      const from = (first - begin + i) * stride;
      for (let x = 0; x < stride; x++) sums[x] += factor * narrow[from + x];
    });
    result.set(sums, y * stride);
  });
  return { width: newWidth, height: newHeight, data: result };
}

// ------------------------------------------------------------------ the network

// What passes from layer to layer: `data` holds height x width x channels numbers, the channels of one position together.

// How many windows there are along a side, and how many zeros come before the first.
function windowsAlong(length, side, step, padding) {
  if (padding !== "same") return [Math.floor((length - side) / step) + 1, 0];
  const count = Math.ceil(length / step);
  return [count, Math.max(0, (count - 1) * step + side - length) >> 1];
}

// Slide a kernel over an image. `add` adds to the sums of a window what one of its positions gives: it gets the index of
// the pixel's first channel, and the number of the position in the kernel. A search for squares has layers take
// positions that are `gap` apart; see live_search.js.
function slide({ height, width, channels }, { padding, strides: [down, right], gap = 1 }, [rows, columns], filters, bias, add) {
  const reach = (side) => gap * (side - 1) + 1;
  const [newHeight, above] = windowsAlong(height, reach(rows), down, padding);
  const [newWidth, before] = windowsAlong(width, reach(columns), right, padding);
  // With an even kernel, the zeros before it are whole gaps.
  const [top, left] = [above, before].map((zeros) => zeros - (zeros % gap));
  const result = new Float32Array(newHeight * newWidth * filters), sums = new Float64Array(filters);
  for (let y = -top, out = 0, i = 0; i < newHeight; i++, y += down) {
    for (let x = -left, j = 0; j < newWidth; j++, x += right, out += filters) {
      bias ? sums.set(bias) : sums.fill(0);
      for (let row = 0, atY = y; row < rows; row++, atY += gap) {
        if (atY < 0 || atY >= height) continue;
        for (let column = 0, atX = x; column < columns; column++, atX += gap) {
          if (atX >= 0 && atX < width) add(sums, (atY * width + atX) * channels, row * columns + column);
        }
      }
      result.set(sums, out);
    }
  }
  return { height: newHeight, width: newWidth, channels: filters, data: result };
}

function conv(x, layer) {
  const { shapes: [[rows, columns, channels, filters]], weights: [kernel, bias] } = layer, { data } = x;
  return slide(x, layer, [rows, columns], filters, bias, (sums, from, position) => {
    let channel = 0, k = position * channels * filters;
    for (; channel + 4 <= channels; channel += 4, k += 4 * filters) { // four at a time: fewer sums are written
      const a = data[from + channel], b = data[from + channel + 1];
      const c = data[from + channel + 2], d = data[from + channel + 3];
      if (a === 0 && b === 0 && c === 0 && d === 0) continue; // often, thanks to ReLU
      for (let filter = 0, i = k; filter < filters; filter++, i++) {
        sums[filter] += a * kernel[i] + b * kernel[i + filters] + c * kernel[i + 2 * filters] + d * kernel[i + 3 * filters];
      }
    }
    for (; channel < channels; channel++, k += filters) {
      const value = data[from + channel];
      for (let filter = 0; filter < filters; filter++) sums[filter] += value * kernel[k + filter];
    }
  });
}

function depthwise(x, layer) {
  const { shapes: [[rows, columns, channels]], weights: [kernel, bias] } = layer, { data } = x;
  return slide(x, layer, [rows, columns], channels, bias, (sums, from, position) => {
    const k = position * channels;
    for (let channel = 0; channel < channels; channel++) sums[channel] += data[from + channel] * kernel[k + channel];
  });
}

function pad({ height, width, channels, data }, { padding, gap = 1 }) {
  const [[top, bottom], [left, right]] = padding.map((pair) => pair.map((count) => gap * count));
  const newHeight = height + top + bottom, newWidth = width + left + right;
  const result = new Float32Array(newHeight * newWidth * channels);
  for (let y = 0; y < height; y++) {
    const line = data.subarray(y * width * channels, (y + 1) * width * channels);
    result.set(line, ((y + top) * newWidth + left) * channels);
  }
  return { height: newHeight, width: newWidth, channels, data: result };
}

function pool({ height, width, channels, data }, [rows, columns], { strides: [down, right], gap = 1 }, start, add) {
  const newHeight = Math.floor((height - gap * (rows - 1) - 1) / down) + 1;
  const newWidth = Math.floor((width - gap * (columns - 1) - 1) / right) + 1;
  const result = new Float32Array(newHeight * newWidth * channels).fill(start);
  for (let y = 0, to = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++, to += channels) {
      for (let row = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++) {
          const from = ((y * down + gap * row) * width + x * right + gap * column) * channels;
          for (let channel = 0; channel < channels; channel++) {
            result[to + channel] = add(result[to + channel], data[from + channel]);
          }
        }
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

function normalize(x, { epsilon, weights: [gamma, beta, mean, variance] }) {
  const scale = gamma.map((value, channel) => value / Math.sqrt(variance[channel] + epsilon));
  const shift = beta.map((value, channel) => value - mean[channel] * scale[channel]);
  return change(x, (value, index) => value * scale[index % x.channels] + shift[index % x.channels]);
}

const row = (data) => ({ height: 1, width: 1, channels: data.length, data });
const change = (x, change) => ({ ...x, data: x.data.map(change) });
const mean = (x, size, layer) => pool(x, size, layer, 0, (sum, value) => sum + value / (size[0] * size[1]));

// The same layers as FUNCTIONS in support/prediction/numpy_inference.py.
const LAYERS = {
  Rescaling: (x, { scale, offset }) => change(x, (value) => value * scale + offset),
  ZeroPadding2D: pad,
  Conv2D: conv,
  DepthwiseConv2D: depthwise,
  MaxPooling2D: (x, layer) => pool(x, layer.pool_size, layer, -Infinity, Math.max),
  AveragePooling2D: (x, layer) => mean(x, layer.pool_size, layer),
  GlobalAveragePooling2D: (x) => row(mean(x, [x.height, x.width], { strides: [1, 1] }).data),
  BatchNormalization: normalize,
  ReLU: (x, { max_value }) => change(x, (value) => Math.min(Math.max(value, 0), max_value ?? Infinity)),
  Add: (x, layer, shortcut) => change(x, (value, index) => value + shortcut.data[index]),
  Flatten: (x) => row(x.data),
  Dropout: (x) => x,
  Dense: dense,
};

// The cosine distance to the tenth nearest training image; the bank is stored as a product of two small matrices.
function distanceToTraining(features) {
  const { rank, neighbors } = model.bank, { images, directions } = bank;
  const length = Math.max(Math.hypot(...features), 1e-6), width = features.length;
  const projected = new Float32Array(rank);
  for (let i = 0; i < rank; i++) {
    let sum = 0;
    for (let j = 0; j < width; j++) sum += directions[i * width + j] * features[j];
    projected[i] = sum / length;
  }
  const similarity = new Float32Array(images.length / rank);
  for (let i = 0; i < similarity.length; i++) {
    let sum = 0;
    for (let j = 0; j < rank; j++) sum += images[i * rank + j] * projected[j];
    similarity[i] = sum;
  }
  similarity.sort();
  const distance = 1 - similarity[similarity.length - Math.min(neighbors, similarity.length)];
  return Math.min(distance, distanceToTaught(features)); // what the page was taught is not unlike anything either
}

// The input of the last layer for SIZE x SIZE x 3 bytes.
function featuresOf(pixels) {
  const outputs = [{ height: SIZE, width: SIZE, channels: 3, data: Float32Array.from(pixels) }];
  for (const layer of model.layers.slice(0, -1)) {
    const [x, ...others] = layer.inputs.map((number) => outputs[number]);
    outputs.push(LAYERS[layer.kind](x, layer, ...others));
  }
  return outputs.at(-1).data;
}

function probabilitiesOf(features) {
  const logits = Array.from(dense(row(features), model.layers.at(-1)).data);
  return softmax(logits.length === 1 ? [0, ...logits] : logits); // a single logit is that of the second class
}

// Classify SIZE x SIZE x 3 bytes, or the mean over several views. `reasons` is empty if the network is sure; `details`
// has its numbers.
function classify(...views) {
  const features = views.map(featuresOf), answers = features.map(probabilitiesOf);
  const probabilities = answers[0].map((_, label) => answers.reduce((sum, answer) => sum + answer[label], 0) / answers.length);
  return judged(probabilities, bank && distanceToTraining(features[0]));
}

function judged(probabilities, distance) {
  const confidence = Math.max(...probabilities), label = probabilities.indexOf(confidence);
  const reasons = [], details = [];
  if (confidence < model.not_sure_below) {
    reasons.push(`below ${model.not_sure_below_text}`);
    details.push(`Probability ${percent(confidence)}, below ${model.not_sure_below_text}.`);
  }
  if (bank && distance > model.bank.threshold) {
    reasons.push("unlike the training images");
    details.push(
      `Unlike the training images: distance ${distance.toFixed(3)}, usually up to ${model.bank.threshold.toFixed(3)}.`,
    );
  }
  return { probabilities, label, distance, reasons, details: details.join(" ") };
}

const percent = (probability) => `${Math.round(probability * 100)}%`;

// Go on with a generator for a while; return its result once it has ended, or undefined.
function goOn(steps, milliseconds) {
  const end = performance.now() + milliseconds;
  let step;
  do step = steps.next();
  while (!step.done && performance.now() < end);
  return step.done ? step.value : undefined;
}
