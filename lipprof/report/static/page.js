"use strict";
// Starts a page that was written to a file.

const read = (id) => JSON.parse(document.getElementById(id).textContent);

if (window.Plotly) {
  const figures = read("figures");
  const config = read("config");
  for (const element of document.querySelectorAll("[data-figure]")) {
    drawWhenNear(element, () => drawFigure(element, figures[element.dataset.figure], config));
  }
}
setUpTable(document);
