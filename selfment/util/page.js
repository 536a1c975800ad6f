"use strict";

/** Returns what the page was written with. */
function readData() {
  return JSON.parse(document.getElementById("data").textContent);
}

/** Returns the element with this id. */
function byId(id) {
  return document.getElementById(id);
}

/** Returns a new element; attributes that are null are left out, children may be texts. */
function element(name, attributes = {}, ...children) {
  const isSvg = ["svg", "image", "path"].includes(name);
  const made = isSvg
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Compares two names as people do: a2 before a10. */
const compareNames = new Intl.Collator(undefined, {numeric: true}).compare;
