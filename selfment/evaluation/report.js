"use strict";
const table = document.getElementById("images");
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
    if (!column) return (down ? -1 : 1) * a.localeCompare(b, undefined, {numeric: true});
    if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
    return down ? b - a : a - b;
  });
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}));
