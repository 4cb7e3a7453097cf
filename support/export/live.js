
// ---------------------------------------------------------------------- the page

const element = (id) => document.getElementById(id);
const video = element("video"), still = element("still"), house = element("house"), file = element("file");
const work = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const WATCH_EVERY = 100; // milliseconds
const STEADY = 500;
const OVERVIEW = 400; // hands are found in a copy that is at most this many pixels wide and high
const BUDGET = 60; // milliseconds of work before the browser gets a turn
let stream = null, looks = 0, classes, bars;

// Draw a bar for each class that the page answers for: the network's, and those that it was taught.
function setClasses(names) {
  element("bars").replaceChildren();
  [classes, bars] = [names, names.map(addBar)];
  const longest = Math.max(...names.map((name) => name.length));
  element("answer").parentElement.classList.toggle("short", longest <= 2);
  element("answer").parentElement.classList.toggle("long", longest > 14);
}

function addBar(name) {
  const item = document.createElement("li"), [label, track, number, fill, line] = ["span", "div", "span", "div", "div"]
    .map((tag) => document.createElement(tag));
  label.textContent = label.dataset.name = name;
  [track.className, number.className, fill.className, line.className] = ["track", "number", "fill", "line"];
  line.style.left = `${100 * model.not_sure_below}%`;
  track.append(fill, line);
  item.append(label, track, number);
  element("bars").append(item);
  return { item, fill, number };
}

setClasses(model.classes);

// The pixels of a video frame or an image.
function pixelsOf(source, width, height) {
  Object.assign(work.canvas, { width, height }); // which clears the canvas
  work.fillStyle = "white"; // behind transparent images
  work.fillRect(0, 0, width, height);
  work.drawImage(source, 0, 0, width, height);
  return work.getImageData(0, 0, width, height);
}

// Classify an image, and show where it is, what the network saw and what it answers.
async function lookAt(source, width, height) {
  const photo = pixelsOf(source, width, height), number = (looks += 1);
  const steps = squaresOf(photo);
  let squares;
  // The answer for the image before must not stand beside this one.
  clear();
  element("label").textContent = "Looking";
  element("reason").textContent = "One moment.";
  for (const part of ["square", "outside"]) element(part).removeAttribute("d");
  while (!(squares = goOn(steps, BUDGET))) {
    await new Promise((resolve) => setTimeout(resolve)); // the page stays alive
    if (number !== looks) return; // there is another image
  }
  showSquares(photo, squares, (views) => classify(...views));
}

// The squares that the network sees of a photograph, { boxes, found }; a box is [left, top, right, bottom].
function* squaresOf(photo) {
  const { image, scale, least } = overviewOf(photo);
  const guess = guessed(image), squares = SEARCH ? yield* search(image, guess, least) : guess ? [{ guess }] : [];
  return boxesOf(photo, squares, scale);
}

function boxesOf(photo, squares, scale) {
  const boxes = squares.map((square) => (square.whole ? middleOf(photo) : boxOf(square.guess ?? around(square), photo, scale)));
  return { boxes: boxes.length ? boxes : [middleOf(photo)], found: boxes.length > 0 };
}

// The same for a frame of a video, within some milliseconds, and the mean over the last frames as the answer.
function lookOn(source, width, height) {
  const photo = pixelsOf(source, width, height);
  if (!SEARCH) return showSquares(photo, goOn(squaresOf(photo), Infinity), (views) => classify(...views));
  const { image, scale, least } = overviewOf(photo);
  const target = follow(image, guessed, least);
  showSquares(photo, boxesOf(photo, target ? [target.square] : [], scale), ([view]) => {
    const { probabilities, distance } = classify(view), answers = target?.answers ?? [];
    answers.push(probabilities);
    if (answers.length > SEARCH.views) answers.shift();
    return judged(probabilities.map((_, label) => answers.reduce((sum, answer) => sum + answer[label], 0) / answers.length), distance);
  });
}

function showSquares(photo, { boxes, found }, answer) {
  const views = boxes.map((box) => scaled(photo, box, SIZE, SIZE).data);
  const seen = new ImageData(SIZE, SIZE);
  for (let i = 0; i < SIZE * SIZE; i++) seen.data.set([...views[0].subarray(3 * i, 3 * i + 3), 255], 4 * i);
  element("seen").getContext("2d").putImageData(seen, 0, 0);
  drawSquare({ box: boxes[0], found }, photo.width, photo.height);
  show(teach(answer(views), views[0], found), found);
}

// A copy of a photograph to search in, how many of its pixels one of the photograph has, and the least side of a
// square in it: fewer pixels than the network takes would have to be invented.
function overviewOf(photo) {
  const { width, height } = photo, scale = Math.min(1, OVERVIEW / Math.max(width, height));
  const size = [width, height].map((side) => Math.max(1, Math.round(scale * side)));
  return { image: scaled(photo, [0, 0, width, height], ...size), scale, least: Math.min(SIZE * scale, ...size) };
}

const guessed = (image) => (model.hand_margin ? findHand(image) : null);

function middleOf({ width, height }) {
  const side = Math.min(width, height), left = (width - side) / 2, top = (height - side) / 2;
  return [left, top, left + side, top + side];
}

function boxOf({ x, y, side }, { width, height }, scale) {
  side = Math.min(Math.max(Math.round(side / scale), SIZE), width, height);
  const [left, top] = [[x, width], [y, height]].map(([middle, length]) =>
    Math.round(Math.min(Math.max(middle / scale - side / 2, 0), length - side)));
  return [left, top, left + side, top + side];
}

function drawSquare({ box: [left, top, right, bottom], found }, width, height) {
  const square = `M${left} ${top}H${right}V${bottom}H${left}z`;
  element("frame").setAttribute("viewBox", `0 0 ${width} ${height}`);
  element("frame").classList.toggle("found", found);
  element("outside").setAttribute("d", `M0 0H${width}V${height}H0z${square}`);
  element("square").setAttribute("d", square);
  // A tall photograph does not push the answer off the screen.
  element("preview").style.aspectRatio = Math.min(Math.max(width / height, 1), 16 / 9);
}

function show({ probabilities, label, reasons, details }, found) {
  const name = classes[label], sure = reasons.length === 0, lost = model.hand_margin && !found;
  const what = lost ? "No hand found. Come closer, or fill the square." : sure ? "" : model.advice;
  element("label").textContent = sure ? name : "not sure";
  element("reason").textContent = sure ? percent(probabilities[label]) : `Best guess: ${name}`;
  element("advice").textContent = what;
  element("answer").title = details;
  element("answer").className = sure ? "" : "unsure";
  bars.forEach(({ item, fill, number }, index) => {
    item.classList.toggle("best", index === label);
    fill.style.transform = `scaleX(${probabilities[index]})`;
    number.textContent = percent(probabilities[index]);
  });
  if (house) smiling(sure && name === model.classes[1]);
  announce(!sure ? `not sure. ${what}` : house && name === model.classes[1] ? `${name}, the door opens` : name);
}

function clear() {
  element("label").textContent = "No image yet";
  element("reason").textContent = "Start the camera or choose an image.";
  element("advice").textContent = element("answer").title = "";
  element("answer").className = "unsure empty";
  for (const { item, fill, number } of bars) {
    item.classList.remove("best");
    fill.style.transform = number.textContent = "";
  }
  element("seen").getContext("2d").clearRect(0, 0, SIZE, SIZE);
  element("preview").style.aspectRatio = "";
  if (house) smiling(false);
  announce("");
}

// Return a function that calls `act` with a value once it has been given that value alone for a while.
function whenSteady(milliseconds, act) {
  let acted, latest, timer;
  return (value) => {
    if (value === latest) return;
    latest = value;
    clearTimeout(timer);
    if (value !== acted) timer = setTimeout(() => act((acted = value)), milliseconds);
  };
}

const smiling = whenSteady(STEADY, (open) => {
  house.classList.toggle("open", open);
  house.setAttribute("aria-label", open ? "The door is open" : "The door is closed");
});

// Screen readers get steady answers only, not each frame's.
const announce = whenSteady(1000, (answer) => (element("status").textContent = answer));

function complain(message) {
  element("message").textContent = message;
  element("message").hidden = !message;
}

// -------------------------------------------------------------------- the camera

const REFUSALS = {
  NotAllowedError: "The camera was refused. Allow it in the browser's address bar and try again, or choose an image.",
  NotFoundError: "No camera was found. Connect one and try again, or choose an image.",
  NotReadableError: "The camera is busy: another program may be using it. Close that program, or choose an image.",
};

async function startCamera(facingMode = "user") {
  complain("");
  if (!navigator.mediaDevices?.getUserMedia) {
    complain("The browser gives the page no camera: a page must be a file or come from https or 127.0.0.1. Choose an image.");
    return;
  }
  try {
    const wanted = { width: { ideal: 640 }, height: { ideal: 480 }, facingMode };
    stream = await navigator.mediaDevices.getUserMedia({ video: wanted });
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    stopCamera();
    complain(REFUSALS[error.name] ?? `The camera could not be started (${error.name}). Choose an image.`);
    return;
  }
  const [track] = stream.getVideoTracks();
  track.onended = () => {
    stopCamera();
    complain("The camera was disconnected.");
  };
  // The camera on the back of a phone shows the world, so it is not mirrored.
  const mirrored = track.getSettings().facingMode !== "environment";
  video.classList.toggle("mirrored", mirrored);
  display(video);
  element("mirrored").hidden = !mirrored;
  element("camera").textContent = "Stop camera";
  watch(stream);
  const devices = await navigator.mediaDevices.enumerateDevices();
  element("turn").hidden = !stream || devices.filter(({ kind }) => kind === "videoinput").length < 2;
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = video.srcObject = null;
  looks += 1;
  forget();
  element("camera").textContent = "Start camera";
  element("turn").hidden = true;
  display(element("hint"));
  clear();
}

function watch(current) {
  if (stream !== current) return; // stopped
  if (video.videoWidth && !document.hidden) lookOn(video, video.videoWidth, video.videoHeight);
  setTimeout(watch, WATCH_EVERY, current);
}

function turnCamera() {
  const [track] = stream.getVideoTracks(), back = track.getSettings().facingMode === "environment";
  stopCamera();
  startCamera(back ? "user" : "environment");
}

function display(shown) {
  forgetSeen();
  for (const part of [video, still, element("hint")]) part.hidden = part !== shown;
  element("frame").toggleAttribute("hidden", shown === element("hint"));
  element("frame").classList.toggle("mirrored", shown === video && video.classList.contains("mirrored"));
  element("mirrored").hidden = true;
}

// --------------------------------------------------------------------- an image

async function openImage(image) {
  complain("");
  try {
    // The colors as they are in the file, because the command line reads them so.
    const bitmap = await createImageBitmap(image, { colorSpaceConversion: "none" });
    if (stream) stopCamera();
    const { width, height } = bitmap, scale = Math.min(1, 1024 / Math.max(width, height));
    Object.assign(still, { width: Math.ceil(scale * width), height: Math.ceil(scale * height) });
    still.getContext("2d").drawImage(bitmap, 0, 0, still.width, still.height);
    display(still);
    await lookAt(bitmap, width, height);
  } catch {
    complain(`${image.name || "This"} is not an image that this browser can open. Try a JPEG or a PNG.`);
  }
}

element("camera").onclick = () => (stream ? stopCamera() : startCamera());
element("turn").onclick = turnCamera;
element("choose").onclick = element("hint").onclick = () => file.click();
file.onchange = () => {
  if (file.files.length) openImage(file.files[0]);
  file.value = ""; // or the same file could not be chosen again
};
document.ondragover = (event) => {
  event.preventDefault();
  element("preview").classList.add("dropping");
};
document.ondragleave = (event) => {
  if (!event.relatedTarget) element("preview").classList.remove("dropping");
};
document.ondrop = (event) => {
  event.preventDefault(); // or the browser would open the file instead of the page
  element("preview").classList.remove("dropping");
  const [dropped] = event.dataTransfer.files;
  dropped ? openImage(dropped) : complain("That is not a file. Drop an image file here.");
};
document.onpaste = (event) => {
  const [pasted] = event.clipboardData.files;
  if (pasted) openImage(pasted);
};
