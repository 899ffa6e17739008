"use strict";
// The table of tensors: sorted by a click on a heading, filtered by text.  Both outlive a new table.

const listing = { column: null, down: false, wanted: "" };

function setUpTable(root) {
  const table = root.querySelector("#tensors");
  if (!table) return;
  const input = root.querySelector("#filter");
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") !== "descending";
      Object.assign(listing, { column, down });
      sortRows(table);
    });
  });
  input.addEventListener("input", () => {
    listing.wanted = input.value;
    filterRows(table);
  });
  input.value = listing.wanted;
  if (listing.column !== null) sortRows(table);
  if (listing.wanted) filterRows(table);
}

function sortRows(table) {
  const headings = [...table.tHead.rows[0].cells];
  const { column, down } = listing;
  if (!headings[column]) return;
  const key = (row) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  const compare = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b, undefined, { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(b) - Number.isNaN(a);
    return a - b;
  };
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const keyed = [...table.tBodies[0].rows].map((row) => [key(row), row]);
  keyed.sort(([a], [b]) => compare(a, b));
  if (down) keyed.reverse();
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

function filterRows(table) {
  const wanted = listing.wanted.toLowerCase();
  for (const row of table.tBodies[0].rows) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
  }
}
