"use strict";
// Draws the figures and lets the table of tensors be sorted and filtered.

const PAPER_WIDTH = 640; // px; a sheet of A4 or letter between its margins

const read = (id) => JSON.parse(document.getElementById(id).textContent);

function draw() {
  const figures = read("figures");
  const config = read("config");
  const dragmode = matchMedia("(pointer: fine)").matches && "zoom"; // a finger scrolls the page
  const elements = [...document.querySelectorAll("[data-figure]")];
  for (const element of elements) {
    const { data, layout } = figures[element.dataset.figure];
    Plotly.newPlot(element, data, { ...layout, dragmode }, config);
  }
  const widen = (width) => elements.forEach((element) => Plotly.relayout(element, { width }));
  addEventListener("beforeprint", () => widen(PAPER_WIDTH));
  addEventListener("afterprint", () => widen(null));
}

function sortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const key = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  const compare = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b, undefined, { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(b) - Number.isNaN(a);
    return a - b;
  };
  headings.forEach((heading, column) => {
    heading.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") !== "descending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => compare(key(a, column), key(b, column)));
      body.append(...(down ? rows.reverse() : rows));
    });
  });
}

function filterable(table, input) {
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of table.tBodies[0].rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
    }
  });
}

if (window.Plotly) draw();
const table = document.getElementById("tensors");
if (table) {
  sortable(table);
  filterable(table, document.getElementById("filter"));
}
