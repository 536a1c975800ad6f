/* Sorts the table of scores, and opens an image with its pictures and a threshold. */

const rows = readData();
const table = byId("images");
const headings = [...table.tHead.rows[0].cells];
headings.forEach((heading, column) => heading.firstChild.addEventListener("click", () => {
  const down = heading.getAttribute("aria-sort") === "ascending";
  headings.forEach(other => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const keyed = [...table.tBodies[0].rows].map(row => {
    const text = row.cells[column].textContent;
    return [column ? parseFloat(text) : text, row];
  });
  keyed.sort(([a], [b]) => {
    if (!column) return (down ? -1 : 1) * compareNames(a, b);
    if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
    return down ? b - a : a - b;
  });
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}));

for (const button of document.querySelectorAll(".figure")) {
  const {pictures} = rows[button.dataset.row];
  for (const field of ["photo", "truth", "prediction"]) {
    if (pictures[field]) button.firstChild.append(element("img", {src: pictures[field], alt: ""}));
  }
}

/* ---- The dialog: one image at a time, in the order of the table. ---- */

const dialog = byId("image");
const COLOURS = ["found", "missed", "wrong"].map(name => {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  return [1, 3, 5].map(start => parseInt(hex.slice(start, start + 2), 16));
});
const TINT = 0.6;  // share of a colour where the overlay tints the photograph
let opened = 0;  // the row whose image is shown
let levels = null;  // of the shown image: the pixels of its pictures, by field

const inOrder = () => [...table.tBodies[0].rows].map(row => Number(row.dataset.row));

async function open(index) {
  opened = index;
  levels = null;
  const {name, notes, pictures} = rows[index];
  const order = inOrder();
  byId("image-name").textContent = name;
  byId("place").textContent = `${order.indexOf(index) + 1} of ${order.length}`;
  const cells = table.querySelector(`tr[data-row="${index}"]`).cells;
  byId("image-scores").textContent = headings.slice(1)
    .map((heading, column) => `${heading.textContent} ${cells[column + 1].textContent}`)
    .join(" · ");
  const remarks = [...notes, ...(pictures ? pictures.missing : ["its pictures are not in the page"])];
  byId("image-notes").textContent = remarks.join("; ");
  byId("image-notes").hidden = remarks.length === 0;
  byId("panels").hidden = !pictures;
  for (const field of ["photo", "truth", "prediction"]) {
    byId(field).parentElement.hidden = !pictures?.[field];
    if (pictures?.[field]) byId(field).src = pictures[field];
  }
  const isComplete = Boolean(pictures?.truth && pictures.prediction);
  byId("overlay").parentElement.hidden = byId("tune").hidden = !isComplete;
  if (!dialog.open) dialog.showModal();
  if (isComplete) {
    const read = await readPictures(pictures);
    if (opened !== index) return;  // another image has been opened meanwhile
    levels = read;
    draw();
  }
}

/** Returns the pixels of the pictures, all of the size of the ground truth. */
async function readPictures(pictures) {
  const canvas = element("canvas");
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const read = {};
  for (const field of ["truth", "prediction", "photo"]) {
    if (!pictures[field]) continue;
    const image = element("img", {src: pictures[field]});
    await image.decode();
    if (field === "truth") {
      read.width = canvas.width = image.width;
      read.height = canvas.height = image.height;
    }
    context.drawImage(image, 0, 0, read.width, read.height);
    read[field] = context.getImageData(0, 0, read.width, read.height).data;
  }
  return read;
}

/** Draws where ground truth and prediction agree and differ at the threshold. */
function draw() {
  if (!levels) return;
  const {width, height, truth, prediction, photo} = levels;
  const threshold = Number(byId("threshold").value);
  const picture = new ImageData(width, height);
  const counts = [0, 0, 0];
  for (let at = 0; at < truth.length; at += 4) {
    const isTrue = truth[at] > 127, isPredicted = prediction[at] > threshold;
    const kind = isTrue ? (isPredicted ? 0 : 1) : (isPredicted ? 2 : -1);
    if (kind >= 0) counts[kind] += 1;
    for (let channel = 0; channel < 3; channel++) {
      const under = photo ? photo[at + channel] : 60;
      picture.data[at + channel] = kind < 0
        ? 0.7 * under : TINT * COLOURS[kind][channel] + (1 - TINT) * under;
    }
    picture.data[at + 3] = 255;
  }
  const canvas = byId("overlay");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(picture, 0, 0);
  const either = counts[0] + counts[1] + counts[2];
  const iou = either ? (counts[0] / either).toFixed(2) : "1.00";
  byId("at").textContent = `> ${(threshold / 255).toFixed(2)}: IoU ${iou} of these small pictures`;
}

function step(by) {
  const order = inOrder();
  const next = order[order.indexOf(opened) + by];
  if (next !== undefined) open(next);
}

byId("threshold").addEventListener("input", draw);
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
dialog.addEventListener("keydown", event => {
  if (event.target.matches("input")) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
document.addEventListener("click", event => {
  const row = event.target.closest("[data-row]");
  if (row) open(Number(row.dataset.row));
});
