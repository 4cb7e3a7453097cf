
// ---------------------------------------------------------------------- the page

const element = (id) => document.getElementById(id);
const video = element("video"), still = element("still"), house = element("house"), file = element("file");
const work = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const WATCH_EVERY = 100; // milliseconds
const STEADY = 500;
let stream = null;

const bars = model.classes.map((name) => {
  const item = document.createElement("li"), [label, track, number, fill, line] = ["span", "div", "span", "div", "div"]
    .map((tag) => document.createElement(tag));
  label.textContent = name;
  [track.className, number.className, fill.className, line.className] = ["track", "number", "fill", "line"];
  line.style.left = `${100 * model.confidence}%`;
  track.append(fill, line);
  item.append(label, track, number);
  element("bars").append(item);
  return { item, fill, number };
});

// Classify the middle of a video frame or an image, and show what the network saw and what it answers.
function look(source, width, height) {
  Object.assign(work.canvas, { width, height }); // which clears the canvas
  work.fillStyle = "white"; // behind transparent images
  work.fillRect(0, 0, width, height);
  work.drawImage(source, 0, 0, width, height);
  const pixels = centerSquare(work.getImageData(0, 0, width, height));
  const seen = new ImageData(SIZE, SIZE);
  for (let i = 0; i < SIZE * SIZE; i++) seen.data.set([...pixels.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  element("seen").getContext("2d").putImageData(seen, 0, 0);
  show(classify(pixels));
}

function show({ probabilities, label, reasons }) {
  const name = model.classes[label], sure = reasons.length === 0;
  element("label").textContent = sure ? name : "not sure";
  element("reason").textContent = sure ? percent(probabilities[label]) : `${reasons.join(" and ")}; best guess: ${name}`;
  element("answer").classList.toggle("unsure", !sure);
  bars.forEach(({ item, fill, number }, index) => {
    item.classList.toggle("best", index === label);
    fill.style.transform = `scaleX(${probabilities[index]})`;
    number.textContent = percent(probabilities[index]);
  });
  if (house) smiling(sure && label === 1);
  announce(!sure ? "not sure" : house && label === 1 ? `${name}, the door opens` : name);
}

function clear() {
  element("label").textContent = "No image yet";
  element("reason").textContent = "Start the camera or choose an image.";
  element("answer").classList.add("unsure");
  for (const { item, fill, number } of bars) {
    item.classList.remove("best");
    fill.style.transform = number.textContent = "";
  }
  element("seen").getContext("2d").clearRect(0, 0, SIZE, SIZE);
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

async function startCamera() {
  complain("");
  if (!navigator.mediaDevices?.getUserMedia) {
    complain("The browser gives the page no camera: a page must be a file or come from https or 127.0.0.1. Choose an image.");
    return;
  }
  try {
    const wanted = { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: "user" };
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
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = video.srcObject = null;
  element("camera").textContent = "Start camera";
  display(element("hint"));
  clear();
}

function watch(current) {
  if (stream !== current) return; // stopped
  if (video.videoWidth && !document.hidden) look(video, video.videoWidth, video.videoHeight);
  setTimeout(watch, WATCH_EVERY, current);
}

function display(shown) {
  for (const part of element("preview").children) part.hidden = part !== shown;
  element("mirrored").hidden = true;
}

// --------------------------------------------------------------------- an image

async function openImage(image) {
  complain("");
  try {
    // The colours as they are in the file, because the command line reads them so.
    const bitmap = await createImageBitmap(image, { colorSpaceConversion: "none" });
    if (stream) stopCamera();
    const { width, height } = bitmap, side = Math.min(width, height);
    const view = still.getContext("2d");
    view.clearRect(0, 0, still.width, still.height);
    view.drawImage(bitmap, (width - side) / 2, (height - side) / 2, side, side, 0, 0, still.width, still.height);
    display(still);
    look(bitmap, width, height);
  } catch {
    complain(`${image.name || "This"} is not an image that this browser can open. Try a JPEG or a PNG.`);
  }
}

element("camera").onclick = () => (stream ? stopCamera() : startCamera());
element("choose").onclick = () => file.click();
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
