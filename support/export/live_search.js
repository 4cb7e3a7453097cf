
// -------------------------------------------------------------------- the search

// Find what looks most like the training images, as the command line does: the steps, their reasons and their numbers
// are those of support/prediction/search.py. A search takes a second, so it is a generator, which stops between two
// layers of the network and goes on in the next video frame.

const SEARCH = model.search;

// Squares are { left, top, side, distance }: their distance to the training images.
const byDistance = (one, other) => one.distance - other.distance;

function within({ x, y, side }, { width, height }, least) {
  side = Math.min(Math.max(side, least), width, height);
  const edge = (middle, length) => Math.min(Math.max(middle - side / 2, 0), length - side);
  return { left: edge(x, width), top: edge(y, height), side };
}

const around = ({ left, top, side }) => ({ x: left + side / 2, y: top + side / 2, side });
const center = ({ width, height }) => ({ x: width / 2, y: height / 2, side: Math.min(width, height) });

// The squares of an image that are nearest to the training images, the nearest first; none if none is near enough.
// `guess` is { x, y, side } or null: what the color of skin suggests. `quick`: look at fewer squares.
function* search(image, guess, least, quick = false) {
  const short = Math.min(image.width, image.height), long = Math.max(image.width, image.height);
  const given = [{ ...within(center(image), image, least), whole: true }];
  if (guess && long > least) given.push({ ...within(guess, image, least), guess });
  const squares = [];
  if (least < long && long <= SEARCH.max_aspect * short) {
    for (const side of SEARCH.sides.filter((_, index) => !quick || index % 2 === 0).map((side) => side * short)) {
      if (side >= least) squares.push(...(yield* windows(image, [0, 0, image.width, image.height], side, quick)));
    }
  }
  squares.sort(byDistance).splice(SEARCH.candidates);
  const candidates = [...given, ...squares.map((square) => within(around(square), image, 1))];
  for (const square of candidates) {
    square.distance = distanceOf(image, square);
    yield;
  }
  const [kept] = given.slice().sort(byDistance), nearest = candidates.slice().sort(byDistance);
  if (SEARCH.given * kept.distance <= nearest[0].distance) return kept.distance <= model.bank.threshold ? [kept] : [];
  if (nearest[0].distance > SEARCH.near * model.bank.threshold) return given.slice(1);
  return nearest.slice(0, SEARCH.views);
}

// The squares of one side in a part of an image, [left, top, right, bottom], and about how far they are.
function* windows(image, [left, top, right, bottom], side, quick = false) {
  const [width, height] = [right - left, bottom - top].map((length) => Math.max(SIZE, Math.round((length * SIZE) / side)));
  const pixels = scaled(image, [left, top, right, bottom], width, height), squares = [];
  const { rows, columns, step, featuresAt } = yield* windowFeatures({ ...pixels, channels: 3 }, SIZE / (quick ? 4 : 8));
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const [x, y] = [column, row].map((index) => (index * step * side) / SIZE);
      squares.push({ left: left + x, top: top + y, side, distance: distanceToTraining(featuresAt(row, column)) });
    }
    yield;
  }
  return squares;
}

// The features of all windows of an image, each as large as the network's input; see `window_features` in
// support/prediction/numpy_inference.py.
function* windowFeatures(image, stride) {
  let x = { ...image, data: Float32Array.from(image.data) }, pixels = 1, gap = 1;
  for (const layer of model.layers) {
    if (layer.kind === "Flatten" || layer.kind === "GlobalAveragePooling2D") {
      const side = SEARCH.map_side, { channels } = x;
      const [rows, columns] = [image.height, image.width].map((length) => Math.floor((length - SIZE) / pixels) + 1);
      const featuresAt = (row, column) => {
        const map = new Float32Array(side * side * channels);
        for (let i = 0; i < side * side; i++) {
          const at = ((row + gap * Math.floor(i / side)) * x.width + column + gap * (i % side)) * channels;
          map.set(x.data.subarray(at, at + channels), i * channels);
        }
        return LAYERS[layer.kind]({ height: side, width: side, channels, data: map }, layer).data;
      };
      return { rows, columns, step: pixels, featuresAt };
    }
    const [step] = layer.strides ?? [1], apart = pixels * step > stride; // then no position is left out
    x = LAYERS[layer.kind](x, { ...layer, gap, strides: apart ? [1, 1] : layer.strides });
    apart ? (gap *= step) : (pixels *= step);
    yield;
  }
}

function distanceOf(image, { left, top, side }) {
  const { data } = scaled(image, [left, top, left + side, top + side], SIZE, SIZE);
  return distanceToTraining(featuresOf(data));
}

// Follow what a square showed in the frame before: the nearest square around it, of a side that is `zoom` times its own.
function followed(image, square, zoom, least, reach) {
  const { x, y, side } = around(square), half = side * (0.5 + reach), part = [x - half, y - half, x + half, y + half];
  const region = part.map((edge, index) => Math.min(Math.max(edge, 0), index % 2 ? image.height : image.width));
  const size = Math.min(Math.max(side * zoom, least), region[2] - region[0], region[3] - region[1]);
  const [nearest] = goOn(windows(image, region, size), Infinity).sort(byDistance);
  const candidates = [square, nearest].map((one) => within(around(one), image, least));
  for (const candidate of candidates) candidate.distance = distanceOf(image, candidate);
  return candidates.sort(byDistance)[0];
}

// What is followed in a video: { square, limit, fresh, answers }. `limit` is the distance beyond which it is lost.
let target = null, hunt = null, frames = 0;

function forget() {
  target = hunt = null;
}

// One frame of a video: follow what was found and search on, for a while only; return the square or null.
function follow(image, guess, least) {
  if (target) {
    // A little nearer, as it was, a little farther: one side in each frame.
    const zoom = 2 ** ([0, 1, 0, -1][frames++ % 4] / 4);
    target.square = followed(image, target.square, zoom, least, target.fresh ? 0.6 : 0.3);
    target.fresh = false;
    if (target.square.distance > target.limit) target = null;
  }
  hunt ??= search(image, guess(image), least, true); // the next frames show the hand more exactly
  const found = goOn(hunt, target ? 15 : 60);
  if (found) {
    hunt = null;
    const [nearest] = found, limit = SEARCH.near * model.bank.threshold;
    if (nearest && (!target || nearest.distance < SEARCH.given * target.square.distance)) {
      // It has moved on while the search took its time.
      target = { square: nearest, limit: Math.max(limit, 1.3 * nearest.distance), fresh: true, answers: [] };
    }
  }
  return target;
}
