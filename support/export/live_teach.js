
// -------------------------------------------------------------------- "Teach me"

// Classes of one's own: samples from the camera, and a linear layer on the network's features, trained in the page. This
// is transfer learning, as `signs_resnet50.py --weights imagenet` does it. The network itself stays as it is.

const SAMPLES = 20; // from one press
const STEPS = 200; // of the training
const WEIGHT_DECAY = 1e-4;
const OWN = 120; // at most so many training images stand for the network's own classes
const KIND = "samples of the live page"; // of a saved file

// A class is { name, samples, line }, with its line of the list; a sample is { pixels, features }: SIZE x SIZE x 3 bytes,
// and features of length 1. `seen` is the last image, `held` the class whose button is pressed, `layer` the trained one.
let taught = [], layer = null, held = null, seen = null;
const canvas = Object.assign(document.createElement("canvas"), { width: SIZE, height: SIZE });

// ------------------------------------------------------------------ the training

function unit(features) {
  const length = Math.max(Math.hypot(...features), 1e-6);
  return features.map((value) => value / length);
}

function dot(one, other) {
  let sum = 0;
  for (let i = 0; i < one.length; i++) sum += one[i] * other[i];
  return sum;
}

const sampleOf = (pixels) => ({ pixels, features: unit(featuresOf(pixels)) });
const keepsOwn = () => Boolean(bank) && element("own").checked;

// The features of some training images, evenly spread; see `distanceToTraining`.
let ownFeatures = () => {
  const { rank } = model.bank, { images, directions } = bank, width = directions.length / rank;
  const count = images.length / rank, kept = Math.min(count, OWN);
  const rows = Array.from({ length: kept }, (_, number) => {
    const image = Math.floor((number * count) / kept), result = new Float32Array(width);
    for (let i = 0; i < rank; i++) {
      const factor = images[image * rank + i];
      for (let j = 0; j < width; j++) result[j] += factor * directions[i * width + j];
    }
    return result;
  });
  ownFeatures = () => rows; // they stay the same
  return rows;
};

// Softmax regression: train a linear layer on groups of features, one group a class. Each class counts equally, however
// many samples it has. Steps with momentum (Nesterov, 1983) start from zero, so the same samples give the same layer.
function fitLayer(groups) {
  const classes = groups.length, rows = groups.flat(), count = rows.length, width = rows[0].length;
  const labels = groups.flatMap((group, label) => group.map(() => label));
  const shares = labels.map((label) => 1 / (classes * groups[label].length));
  const center = new Float64Array(width);
  rows.forEach((row, i) => row.forEach((value, j) => (center[j] += shares[i] * value)));
  const inputs = rows.map((row) => Float64Array.from(row, (value, j) => value - center[j]));
  // Features point in similar directions; without their mean, they are scaled to a mean square of 1.
  const square = inputs.reduce((sum, input, i) => sum + shares[i] * dot(input, input), 0);
  const scale = 1 / Math.sqrt(Math.max(square, 1e-12));
  for (const input of inputs) for (let j = 0; j < width; j++) input[j] *= scale;
  // The weights are sums of the inputs times factors, so the steps are taken for the factors: there are fewer inputs
  // than weights. The 1 is for the bias.
  const products = new Float64Array(count * count);
  for (let i = 0; i < count; i++) {
    for (let j = 0; j <= i; j++) products[i * count + j] = products[j * count + i] = dot(inputs[i], inputs[j]) + 1;
  }
  let factors = new Float64Array(count * classes), before = factors;
  for (let step = 0; step < STEPS; step++) {
    const momentum = step / (step + 3), ahead = factors.map((value, i) => value + momentum * (value - before[i]));
    before = factors;
    factors = new Float64Array(count * classes);
    for (let i = 0; i < count; i++) {
      const sums = new Float64Array(classes);
      for (let k = 0, at = 0; k < count; k++) {
        const product = products[i * count + k];
        for (let label = 0; label < classes; label++) sums[label] += product * ahead[at++];
      }
      softmax(sums).forEach((probability, label) => {
        const at = i * classes + label, error = shares[i] * (probability - (label === labels[i]));
        factors[at] = ahead[at] - error - WEIGHT_DECAY * ahead[at]; // steps of 1 are safe: the curvature is about 1
      });
    }
  }
  const weights = groups.map(() => new Float64Array(width)), biases = new Float64Array(classes);
  inputs.forEach((input, i) => weights.forEach((row, label) => {
    const factor = factors[i * classes + label];
    for (let j = 0; j < width; j++) row[j] += factor * input[j];
    biases[label] += factor;
  }));
  return { weights, biases, center, scale };
}

// Train the layer anew, and let the page show the classes that it knows.
function learn() {
  const shown = taught.filter(({ samples }) => samples.length), own = keepsOwn();
  const groups = shown.map(({ samples }) => samples.map(({ features }) => features));
  if (own) groups.unshift(ownFeatures());
  layer = shown.length && groups.length > 1 ? { ...fitLayer(groups), shown, own } : null;
  setClasses([...(own || !layer ? model.classes : []), ...(layer ? shown.map(({ name }) => name) : [])]);
  const count = shown.reduce((sum, { samples }) => sum + samples.length, 0);
  for (const id of ["save", "download"]) element(id).disabled = !count;
  if (shown.length && !layer) tell("Teach a second class, and the page will tell them apart.");
  else tell(layer ? `The page has learned from ${count} ${count === 1 ? "sample" : "samples"}.` : "");
  if (seen && !stream) show(withTaught(seen.answer, seen.pixels), seen.found);
}

// An answer of the network, over its classes and the taught ones. The layer decides between each taught class and the
// network's own together, and the network between its own.
function withTaught(answer, pixels) {
  if (!layer) return answer;
  const features = unit(featuresOf(pixels));
  const input = Float64Array.from(features, (value, j) => (value - layer.center[j]) * layer.scale);
  const parts = softmax(layer.weights.map((row, label) => dot(row, input) + layer.biases[label]));
  const own = layer.own ? parts.shift() : 0;
  const probabilities = [...(layer.own ? answer.probabilities.map((value) => value * own) : []), ...parts];
  return judged(probabilities, layer.own ? answer.distance : distanceToTaught(features));
}

// The cosine distance to the nearest sample.
function distanceToTaught(features) {
  if (!layer) return Infinity;
  const direction = unit(features), samples = layer.shown.flatMap((one) => one.samples);
  return samples.reduce((least, sample) => Math.min(least, 1 - dot(sample.features, direction)), Infinity);
}

// ------------------------------------------------------------------- the samples

// Called for each frame and each image, before its answer is shown.
function teach(answer, pixels, found) {
  seen = { answer, pixels: pixels.slice(), found };
  if (held) takeSample();
  return withTaught(answer, pixels);
}

function forgetSeen() {
  seen = null;
}

function press(one) {
  if (held) return;
  if (!stream && !seen) return tell("Start the camera or choose an image first.");
  held = { one, left: SAMPLES };
  one.line.classList.add("held");
  if (!stream) {
    takeSample(); // an image is one sample
    release();
  }
}

function release() {
  if (!held) return;
  held.one.line.classList.remove("held");
  held = null;
  learn();
}

function takeSample() {
  held.one.samples.push(sampleOf(seen.pixels));
  held.left--;
  drawLine(held.one);
  if (!held.left) release();
}

const tell = (text) => (element("told").textContent = text);

// The text of a button that a class has, or the reason why it cannot have this name.
function problemOf(name) {
  const known = [...model.classes, ...taught.map((one) => one.name)].map((one) => one.toLowerCase());
  const words = name.toLowerCase().split(/[^\p{L}]+/u).filter(Boolean);
  if (!name) return "Type the name of a class first.";
  if (known.includes(name.toLowerCase())) return `There is a class ${name} already. Choose another name.`;
  // As a folder, such a name would hold the images of a part, not those of a class.
  const reserved = words.some((word) => model.parts.includes(word));
  return reserved ? `${name} could be read as a set of images when the samples are used for training. Choose another name.` : "";
}

function addClass(name, samples = []) {
  const [line, thumbnail, button, count, remove] = ["li", "canvas", "button", "span", "button"].map((tag) => document.createElement(tag));
  const one = { name, samples, line };
  Object.assign(thumbnail, { width: SIZE, height: SIZE });
  thumbnail.setAttribute("aria-hidden", "true");
  button.className = "hold";
  button.type = remove.type = "button";
  button.textContent = name;
  button.setAttribute("aria-description", `Hold to collect ${SAMPLES} samples`);
  count.className = "number";
  remove.className = "remove";
  remove.textContent = "Remove";
  remove.setAttribute("aria-label", `Remove ${name}`);
  const isKey = ({ key }) => key === "Enter" || key === " ";
  button.onpointerdown = (event) => {
    if (event.button) return; // not the main one
    button.setPointerCapture(event.pointerId);
    press(one);
  };
  button.onpointerup = button.onpointercancel = button.onblur = release;
  button.onkeydown = (event) => {
    if (!isKey(event)) return;
    event.preventDefault(); // or the page would scroll
    if (!event.repeat) press(one);
  };
  button.onkeyup = (event) => {
    if (!isKey(event)) return;
    event.preventDefault();
    release();
  };
  button.onclick = ({ detail }) => detail || press(one); // a screen reader cannot hold: 20 samples for a click
  button.oncontextmenu = (event) => event.preventDefault(); // which a long touch would open
  remove.onclick = () => {
    release();
    taught = taught.filter((other) => other !== one);
    line.remove();
    learn();
    element("name").focus();
  };
  line.append(thumbnail, button, count, remove);
  element("taught").append(line);
  taught.push(one);
  drawLine(one);
  return one;
}

function drawLine({ line, samples }) {
  const [thumbnail, , count] = line.children;
  count.textContent = samples.length || "none";
  line.style.setProperty("--filled", held ? 1 - held.left / SAMPLES : 0);
  if (samples.length) thumbnail.getContext("2d").putImageData(imageOf(samples.at(-1).pixels), 0, 0);
}

function imageOf(pixels) {
  const image = new ImageData(SIZE, SIZE);
  for (let i = 0; i < SIZE * SIZE; i++) image.data.set([...pixels.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  return image;
}

// ---------------------------------------------------------------------- the files

const encodeBytes = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));

function offer(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function savedText() {
  const classes = taught.map(({ name, samples }) => ({ name, samples: samples.map(({ pixels }) => encodeBytes(pixels)) }));
  return JSON.stringify({ kind: KIND, size: SIZE, own: element("own").checked, classes });
}

// Put the classes of a saved file in place of those that are there.
async function openSamples(saved) {
  const wrong = (problem) => tell(`${saved.name}: ${problem}`);
  let content;
  try {
    content = JSON.parse(await saved.text());
    if (content.kind !== KIND) throw new Error(); // or the right fields are not there
    content.classes = content.classes.map(({ name, samples }) => {
      const pixels = samples.map((sample) => new Uint8ClampedArray(decodeBytes(sample)));
      const whole = pixels.every(({ length }) => length === 3 * content.size ** 2);
      if (typeof name !== "string" || !whole) throw new Error();
      return { name, pixels };
    });
    if (new Set(content.classes.map(({ name }) => name.toLowerCase())).size < content.classes.length) throw new Error();
  } catch {
    return wrong("this is not a file that this panel saved. Choose another one.");
  }
  if (content.size !== SIZE) {
    return wrong(`its samples have ${content.size} × ${content.size} pixels, this network takes ${SIZE} × ${SIZE}. Load it in the page that saved it.`);
  }
  release();
  const before = taught;
  taught = [];
  const problem = content.classes.map(({ name }) => problemOf(name)).find(Boolean);
  if (problem) {
    taught = before;
    return wrong(problem);
  }
  tell("Loading …");
  const filled = [];
  for (const { name, pixels } of content.classes) {
    const samples = [];
    for (const one of pixels) {
      samples.push(sampleOf(one));
      await new Promise((resolve) => setTimeout(resolve)); // the page stays alive
    }
    filled.push([name, samples]);
  }
  element("taught").replaceChildren();
  taught = [];
  for (const [name, samples] of filled) addClass(name, samples);
  element("own").checked = Boolean(content.own);
  learn();
}

// The samples as files { path, bytes }: a folder for each class, under a name that every system can store.
async function sampleFiles() {
  const files = [], folders = [];
  for (const { name, samples } of taught) {
    const clean = name.replace(/[\\/:*?"<>|\p{C}]/gu, "_").replace(/^\.|[. ]+$/g, "_");
    let folder = /^(con|prn|aux|nul|com\d|lpt\d)$/i.test(clean) ? `${clean}_` : clean;
    while (folders.includes(folder.toLowerCase())) folder += "_";
    folders.push(folder.toLowerCase());
    for (const [number, { pixels }] of samples.entries()) {
      canvas.getContext("2d").putImageData(imageOf(pixels), 0, 0);
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
      const path = `${folder}/${String(number + 1).padStart(3, "0")}.png`;
      files.push({ path, bytes: new Uint8Array(await blob.arrayBuffer()) });
    }
  }
  return files;
}

// A zip archive without compression, because the images are compressed. The numbers are those of PKWARE's APPNOTE.TXT.
function zipOf(files) {
  const parts = [], directory = [];
  let offset = 0;
  for (const { path, bytes } of files) {
    const name = new TextEncoder().encode(path), size = bytes.length;
    // Version 2.0, names in UTF-8, stored, midnight of January 1, 1980.
    const fields = [[20, 2], [0x800, 2], [0, 2], [0, 2], [0x21, 2], [crc32(bytes), 4], [size, 4], [size, 4], [name.length, 2], [0, 2]];
    const local = littleEndian([[0x04034b50, 4], ...fields]);
    parts.push(local, name, bytes);
    directory.push(littleEndian([[0x02014b50, 4], [20, 2], ...fields, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), name);
    offset += local.length + name.length + size;
  }
  const length = directory.reduce((sum, part) => sum + part.length, 0), { length: count } = files;
  const end = littleEndian([[0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [length, 4], [offset, 4], [0, 2]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

function littleEndian(fields) {
  return Uint8Array.from(fields.flatMap(([value, bytes]) => Array.from({ length: bytes }, (_, i) => (value >>> (8 * i)) & 255)));
}

function crc32(bytes) {
  let sum = ~0;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
  }
  return ~sum >>> 0;
}

element("adding").onsubmit = (event) => {
  event.preventDefault(); // nothing is sent
  const name = element("name").value.trim(), problem = problemOf(name);
  tell(problem);
  if (problem) return element("name").select();
  const [, button] = addClass(name).line.children;
  element("name").value = "";
  button.focus();
  tell(`Show ${name}, and hold its button.`);
};
element("own").onchange = learn;
element("save").onclick = () => offer(new Blob([savedText()], { type: "application/json" }), "taught.json");
element("download").onclick = async () => offer(zipOf(await sampleFiles()), "samples.zip");
element("load").onclick = () => element("saved").click();
element("saved").onchange = () => {
  const [saved] = element("saved").files;
  if (saved) openSamples(saved);
  element("saved").value = ""; // or the same file could not be chosen again
};
