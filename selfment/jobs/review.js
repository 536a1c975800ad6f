/* Looks through labels: cards that are sorted, filtered, accepted and rejected. */

const {key: STORAGE_KEY, items} = readData();
const ACCEPTED = "accepted", REJECTED = "rejected";
const list = byId("cards");
items.forEach((item, index) => { item.index = index; });

/* ---- The choice: the verdict on each image, kept in this browser. ---- */

const verdicts = new Map();  // by index: ACCEPTED or REJECTED
const steps = [];  // to undo: lists of [index, the verdict before]

/** Only a label can be judged, and only if a list can name its image. */
function isOpen(item) {
  return item.kind === "label" && item.listable;
}

const notKept = error =>
  `This browser does not keep the choice (${error.name}): save the lists before you leave.`;

/** Reads the stored choice; returns a warning if there is a reason for one. */
function restore() {
  let stored, changed = 0;
  try {
    stored = JSON.parse(localStorage.getItem(STORAGE_KEY) || "{}");
  } catch (error) {
    return notKept(error);
  }
  for (const item of items) {
    if (!Object.hasOwn(stored, item.name) || !isOpen(item)) continue;
    const [verdict, digest] = stored[item.name];
    if (digest === item.digest) verdicts.set(item.index, verdict);
    else changed += 1;
  }
  return changed
    ? `${changed.toLocaleString()} verdicts were on labels that have changed: undecided again.`
    : "";
}

/** Keeps the choice in this browser; returns a warning if that failed, after a space. */
function store() {
  const entries = [...verdicts].map(([index, verdict]) =>
    [items[index].name, [verdict, items[index].digest]]);
  try {
    localStorage.setItem(STORAGE_KEY, JSON.stringify(Object.fromEntries(entries)));
  } catch (error) {
    return ` ${notKept(error)}`;
  }
  return "";
}

/** Sets or removes the verdict on images as one step; returns the warning of `store`. */
function decide(indices, verdict) {
  steps.push(indices.map(index => [index, verdicts.get(index)]));
  for (const index of indices) setVerdict(index, verdict);
  updateCounts();
  return store();
}

function setVerdict(index, verdict) {
  if (verdict) verdicts.set(index, verdict);
  else verdicts.delete(index);
  showVerdict(index);
}

function undo() {
  const step = steps.pop();
  if (!step) return say("There is nothing to undo.");
  for (const [index, verdict] of step) setVerdict(index, verdict);
  updateCounts();
  const warning = store();
  const many = step.length > 1 ? `${step.length.toLocaleString()} images` : items[step[0][0]].name;
  say(`Undone: ${many}.${warning}`);
  focusCard(step[0][0]);
}

function say(text) {
  byId("status").textContent = text;
}

/* ---- Cards: their pictures exist only near the part of the page that is seen. ---- */

const NUMBERS = "confidence, share of foreground, its area in pixels of the photograph";
const cards = items.map(makeCard);
const watcher = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    const index = Number(target.dataset.index);
    target.firstChild.replaceWith(isIntersecting ? makePicture(items[index]) : emptyPicture());
  }
}, {rootMargin: "800px"});
cards.forEach(card => watcher.observe(card));

function emptyPicture() {
  return element("svg", {viewBox: "0 0 4 3"});
}

function makePicture(item) {
  if (item.kind === "video") return element("div", {class: "said"}, "A video: not shown here");
  if (item.kind === "failed" && !item.photo) {
    return element("div", {class: "said"}, "No label and no picture");
  }
  if (!item.photo && item.paths.length === 0) {
    return element("div", {class: "said"}, "No photograph");
  }
  const [width, height] = item.box;
  const size = {width, height, preserveAspectRatio: "none"};
  return element("svg", {viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true"},
    ...(item.photo ? [element("image", {href: item.photo, ...size})] : []),
    ...(item.vector ? [element("image", {href: item.vector, class: "vector", ...size})] : []),
    ...item.paths.map(([number, d]) =>
      element("path", {d, style: `--hue:${(15 + 137.508 * (number - 1)) % 360}`})));
}

function makeCard(item) {
  const remarks = remarksOf(item);
  const card = element("li", {class: "card", tabindex: "-1", "data-index": item.index},
    emptyPicture(),
    element("div", {class: "text"},
      element("div", {class: "name", title: item.name}, item.name),
      element("div", {class: "numbers", title: NUMBERS}, numbersOf(item)),
      ...(remarks ? [element("div", {class: "remark", title: remarks}, remarks)] : [])));
  if (isOpen(item)) {
    card.append(element("div", {class: "choose"},
      ...[[ACCEPTED, "good", "Accept"], [REJECTED, "bad", "Reject"]].map(([verdict, look, word]) =>
        element("button", {class: look, tabindex: "-1", "data-verdict": verdict,
          "aria-label": `${word} ${item.name}`}, word))));
  }
  return card;
}

function numbersOf(item) {
  if (item.kind !== "label") return item.kind === "failed" ? "failed" : "video";
  const parts = [];
  if (item.confidence !== null) parts.push(`conf. ${item.confidence.toFixed(2)}`);
  if (item.objects !== null) parts.push(`${item.objects} object${item.objects === 1 ? "" : "s"}`);
  if (item.foreground !== null) parts.push(`${(100 * item.foreground).toFixed(1)} %`);
  if (item.area !== null) parts.push(`${item.area.toLocaleString()} px`);
  return parts.join(" · ");
}

function remarksOf(item) {
  const remarks = [];
  if (item.error) remarks.push(item.error);
  if (item.rejected && item.area) remarks.push("was emptied, and has been redrawn since");
  else if (item.rejected) remarks.push("emptied: its confidence is below the limit");
  else if (item.area === 0) remarks.push("no foreground");
  if (!item.listable) remarks.push("its name cannot be a line of a list");
  return [...remarks, ...item.notes].join("; ");
}

function showVerdict(index) {
  const card = cards[index], verdict = verdicts.get(index);
  card.querySelector(".badge")?.remove();
  if (verdict) {
    card.dataset.verdict = verdict;
    card.append(element("span", {class: "badge"}, verdict));
  } else {
    delete card.dataset.verdict;
  }
  for (const button of card.querySelectorAll(".choose button")) {
    button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
  }
}

/* ---- Sort and filter. ---- */

const STATES = {  // the name of a button, and the images that it shows
  "All": () => true,
  "Undecided": item => isOpen(item) && !verdicts.has(item.index),
  "Accepted": item => verdicts.get(item.index) === ACCEPTED,
  "Rejected": item => verdicts.get(item.index) === REJECTED,
  "Low confidence": item => item.rejected,
  "No foreground": item => item.area === 0 && !item.rejected,
  "No photo": item => item.kind === "label" && !item.photo,
  "Failed": item => item.kind === "failed",
  "Videos": item => item.kind === "video",
};
const ALWAYS_SHOWN = 4;  // of the buttons; the others need images
const SORTS = {
  "name": null,
  "confidence": item => item.confidence,
  "foreground": item => item.foreground,
  "area": item => item.area,
  "eigenvalue": item => item.eigenvalue,
};
const LIMITS = {  // a number of an image, in the unit of its inputs
  "confidence": item => item.confidence,
  "foreground": item => item.foreground === null ? null : 100 * item.foreground,
  "area": item => item.area,
};
let state = "All";
let shown = [];  // indices, in their order on the page
let current = 0;  // position in `shown` of the card that keys act on

const stateButtons = Object.keys(STATES).map(name => {
  const count = element("b");
  const button = element("button", {"aria-pressed": String(name === state)}, `${name} `, count);
  button.addEventListener("click", () => { state = name; arrange(); });
  byId("states").append(button);
  return {name, button, count};
});
for (const name of Object.keys(SORTS)) byId("sort").append(element("option", {}, name));

function passes(item) {
  const wanted = byId("search").value.trim().toLowerCase();
  if (wanted && !item.name.toLowerCase().includes(wanted)) return false;
  return STATES[state](item) && Object.entries(LIMITS).every(([name, numberOf]) => {
    const [least, most] = ["least", "most"].map(end => byId(`${end}-${name}`).value);
    if (least === "" && most === "") return true;
    const number = numberOf(item);
    return number !== null && (least === "" || number >= Number(least)) &&
      (most === "" || number <= Number(most));
  });
}

/** Shows the images that pass the filters, sorted; those without the number come last. */
function arrange() {
  const numberOf = SORTS[byId("sort").value];
  const sign = byId("direction").getAttribute("aria-pressed") === "true" ? -1 : 1;
  const compare = (one, other) => {
    if (!numberOf) return sign * compareNames(one.name, other.name);
    const [a, b] = [numberOf(one), numberOf(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a - b) || compareNames(one.name, other.name);
  };
  shown = items.filter(passes).sort(compare).map(item => item.index);
  list.replaceChildren(...shown.map(index => cards[index]));
  byId("none").hidden = shown.length > 0;
  for (const {name, button} of stateButtons) {
    button.setAttribute("aria-pressed", String(name === state));
  }
  setCurrent(0);
  updateCounts();
  say(`${shown.length.toLocaleString()} of ${items.length.toLocaleString()} images shown.`);
}

function undecidedShown() {
  return shown.filter(index => isOpen(items[index]) && !verdicts.has(index));
}

function updateCounts() {
  stateButtons.forEach(({name, button, count}, place) => {
    const number = items.filter(STATES[name]).length;
    count.textContent = number.toLocaleString();
    button.hidden = place >= ALWAYS_SHOWN && number === 0;
  });
  const left = undecidedShown().length;
  const verdictsMade = [...verdicts.values()];
  const accepted = verdictsMade.filter(verdict => verdict === ACCEPTED).length;
  setAction("accept-shown", `Accept ${left.toLocaleString()} undecided`, left);
  setAction("reject-shown", `Reject ${left.toLocaleString()} undecided`, left);
  setAction("save-accepted", "Save accepted.txt", accepted);
  setAction("save-rejected", "Save rejected.txt", verdictsMade.length - accepted);
  byId("undo").disabled = steps.length === 0;
}

function setAction(id, text, count) {
  byId(id).textContent = text;
  byId(id).disabled = count === 0;
}

/* ---- Keys and buttons. ---- */

function setCurrent(position) {
  cards[shown[current]]?.setAttribute("tabindex", "-1");
  current = Math.max(0, Math.min(position, shown.length - 1));
  cards[shown[current]]?.setAttribute("tabindex", "0");
}

function moveTo(position) {
  setCurrent(position);
  const card = cards[shown[current]];
  card?.focus({preventScroll: true});
  card?.scrollIntoView({block: "nearest"});
}

function focusCard(index) {
  if (shown.includes(index)) moveTo(shown.indexOf(index));
}

/** Gives the current image a verdict; the same verdict again takes it back. */
function judge(index, verdict) {
  const item = items[index];
  if (!isOpen(item)) return say(`${item.name} has no label that can be accepted or rejected.`);
  const next = verdicts.get(index) === verdict ? undefined : verdict;
  const warning = decide([index], next);
  const empty = next === ACCEPTED && item.area === 0 ? ", although it has no foreground" : "";
  say(`${item.name}: ${next || "undecided"}${empty}.${warning}`);
}

function judgeShown(verdict) {
  const indices = undecidedShown();
  const warning = decide(indices, verdict);
  const empty = indices.filter(index => items[index].area === 0).length;
  const more = verdict === ACCEPTED && empty ? `, ${empty.toLocaleString()} without foreground` : "";
  say(`${indices.length.toLocaleString()} images ${verdict}${more}.${warning}`);
}

function nextUndecided() {
  const after = [...shown.keys()].map(step => (current + 1 + step) % shown.length);
  const next = after.find(place =>
    isOpen(items[shown[place]]) && !verdicts.has(shown[place]));
  if (next === undefined) say("No image that is shown is undecided.");
  else moveTo(next);
}

/** Saves a list of the names with a verdict: UTF-8, one a line, in the order of all images. */
function save(verdict) {
  const names = items.filter(item => verdicts.get(item.index) === verdict).map(item => item.name);
  const url = URL.createObjectURL(
    new Blob(names.map(name => `${name}\n`), {type: "text/plain;charset=utf-8"}));
  element("a", {href: url, download: `${verdict}.txt`}).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  say(`${names.length.toLocaleString()} names saved as ${verdict}.txt.`);
}

function toggle(id, name, isShownBy) {
  const pressed = byId(id).getAttribute("aria-pressed") !== "true";
  byId(id).setAttribute("aria-pressed", String(pressed));
  list.classList.toggle(name, pressed === isShownBy);
}

const columns = () => getComputedStyle(list).gridTemplateColumns.split(" ").length;
const KEYS = {
  "ArrowLeft": () => moveTo(current - 1),
  "ArrowRight": () => moveTo(current + 1),
  "ArrowUp": () => { if (current >= columns()) moveTo(current - columns()); },
  "ArrowDown": () => { if (current + columns() < shown.length) moveTo(current + columns()); },
  "Home": () => moveTo(0),
  "End": () => moveTo(shown.length - 1),
  "a": () => { judge(shown[current], ACCEPTED); moveTo(current + 1); },
  "r": () => { judge(shown[current], REJECTED); moveTo(current + 1); },
  "n": nextUndecided,
  "u": undo,
  "m": () => cards[shown[current]].classList.toggle("peeking"),
  "v": () => byId("vector").click(),
  "o": () => byId("outline").click(),
  "f": () => byId("fill").click(),
  "?": () => byId("help").showModal(),
};

addEventListener("keydown", event => {
  const isTyping = event.target.matches("input, select") || byId("help").open;
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || (shown.length === 0 && !["u", "?"].includes(event.key))) return;
  event.preventDefault();
  action();
});
list.addEventListener("click", event => {
  const card = event.target.closest(".card");
  if (!card) return;
  const index = Number(card.dataset.index);
  focusCard(index);
  const button = event.target.closest("button");
  if (button) judge(index, button.dataset.verdict);
});
list.addEventListener("focusin", event => {
  const card = event.target.closest(".card");
  if (card) setCurrent(shown.indexOf(Number(card.dataset.index)));
});

const onClick = {
  "undo": undo,
  "accept-shown": () => judgeShown(ACCEPTED),
  "reject-shown": () => judgeShown(REJECTED),
  "save-accepted": () => save(ACCEPTED),
  "save-rejected": () => save(REJECTED),
  "show-help": () => byId("help").showModal(),
  "outline": () => toggle("outline", "no-outline", false),
  "fill": () => toggle("fill", "no-fill", false),
  "vector": () => toggle("vector", "all-vectors", true),
  "direction": () => { toggle("direction", "descending", true); arrange(); },
  "clear-filters": () => {
    for (const input of byId("bar").querySelectorAll("[type=number], [type=search]")) {
      input.value = "";
    }
    state = "All";
    arrange();
  },
};
for (const [id, action] of Object.entries(onClick)) byId(id).addEventListener("click", action);
byId("sort").addEventListener("change", arrange);
for (const input of byId("bar").querySelectorAll("[type=number], [type=search]")) {
  input.addEventListener("input", arrange);
}
byId("size").addEventListener("input", event => {
  list.style.setProperty("--size", `${event.target.value}px`);
});

const warning = restore();
items.forEach(item => showVerdict(item.index));
arrange();
if (warning) say(warning);
