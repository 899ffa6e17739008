"use strict";
// Draws figures, and links those with the same horizontal axis: one cursor, one zoom.

const PAPER_WIDTH = 640; // px; a sheet of A4 or letter between its margins
const ranges = {}; // by what an axis shows: the zoom shared by all figures of it
const applied = new WeakMap(); // the zoom that a figure was last given by this script

const kindOf = (element) => element.layout?.meta?.x;
const drawn = () => [...document.querySelectorAll("[data-figure].js-plotly-plot")];
const related = (element) => drawn().filter((other) => kindOf(other) === kindOf(element));

// Figures are drawn when they come near the screen: most of a long page is not looked at.

const waiting = new WeakMap(); // element to what draws it
const near = new IntersectionObserver(
  (entries) => entries.forEach((e) => e.isIntersecting && setTimeout(drawWaiting, 0, e.target)),
  { rootMargin: "60% 0px" },
);

function drawWhenNear(element, draw) {
  waiting.set(element, draw);
  near.unobserve(element);
  near.observe(element); // which tells at once where it is
}

function drawWaiting(element) {
  const draw = waiting.get(element);
  waiting.delete(element);
  draw?.();
}

function drawFigure(element, figure, config) {
  const dragmode = matchMedia("(pointer: fine)").matches && "zoom"; // a finger scrolls the page
  const layout = { ...figure.layout, dragmode };
  const fresh = !element.classList.contains("js-plotly-plot");
  Plotly.react(element, figure.data, layout, config);
  const shared = ranges[layout.meta?.x];
  if (shared) zoom(element, shared);
  if (fresh && layout.meta) link(element);
}

function link(element) {
  element.on("plotly_relayout", (change) => {
    if (Object.keys(change).some((key) => /^xaxis\d*\.(range|autorange)/.test(key))) share(element);
  });
  element.addEventListener("pointermove", (event) => {
    requestAnimationFrame(() => point(element, event.clientX));
  });
  element.addEventListener("pointerleave", () => requestAnimationFrame(hideCursors));
}

// Values on an axis.  A heat map has categories, of which every one is named by an iteration.

const isCategory = (axis) => axis.type === "category";
const categories = (element) => element._fullLayout.xaxis._categories.map((name) => parseFloat(name));

function toPosition(element, value) {
  const axis = element._fullLayout.xaxis;
  if (!isCategory(axis)) return axis.d2l(value);
  const values = categories(element);
  const after = values.findIndex((mine) => mine >= value);
  if (after < 0) return values.length - 1;
  return after > 0 && value - values[after - 1] < values[after] - value ? after - 1 : after;
}

function toValue(element, position) {
  const axis = element._fullLayout.xaxis;
  if (!isCategory(axis)) return axis.l2d(position);
  const values = categories(element);
  return values[Math.max(0, Math.min(values.length - 1, Math.round(position)))];
}

// Zoom

function share(element) {
  const kind = kindOf(element);
  const { range, autorange } = element.layout.xaxis;
  if (String(autorange ? null : range) === applied.get(element)) return;
  if (autorange) {
    delete ranges[kind];
  } else {
    const inset = isCategory(element._fullLayout.xaxis) ? 0.5 : 0; // whole cells
    ranges[kind] = [toValue(element, range[0] + inset), toValue(element, range[1] - inset)];
  }
  for (const other of related(element)) if (other !== element) zoom(other, ranges[kind]);
}

function zoom(element, range) {
  let change = null;
  if (range) {
    const half = isCategory(element._fullLayout.xaxis) ? 0.5 : 0;
    change = [toPosition(element, range[0]) - half, toPosition(element, range[1]) + half];
  }
  applied.set(element, String(change));
  Plotly.relayout(element, change ? { "xaxis.range": change } : { "xaxis.autorange": true });
}

// Cursor: a line laid over every figure, moved without plotly drawing anything again.

function point(element, clientX) {
  const axis = element._fullLayout.xaxis;
  const x = clientX - element.getBoundingClientRect().left - axis._offset;
  if (x < 0 || x > axis._length) return hideCursors();
  const value = toValue(element, axis.p2l(x));
  for (const other of related(element)) placeCursor(other, value);
}

function placeCursor(element, value) {
  const { xaxis: axis, _size: size } = element._fullLayout;
  const x = axis.l2p(toPosition(element, value));
  const line = cursorOf(element);
  line.hidden = !(x >= 0 && x <= axis._length);
  const rounded = kindOf(element) === "iteration" ? Math.round(value) : Number(value.toPrecision?.(4) ?? value);
  line.dataset.value = rounded;
  line.firstChild.textContent = Number.isNaN(rounded) ? "" : rounded.toLocaleString("en");
  line.style.cssText = `top:${size.t}px;height:${size.h}px;transform:translateX(${axis._offset + x}px)`;
  line.firstChild.className = x > axis._length / 2 ? "left" : "";
}

function cursorOf(element) {
  const known = element.querySelector(":scope > .cursor");
  if (known) return known;
  const line = document.createElement("div");
  line.className = "cursor";
  line.append(document.createElement("span"));
  element.append(line);
  return line;
}

function hideCursors() {
  for (const line of document.querySelectorAll(".cursor")) line.hidden = true;
}

// Paper

const widen = (width) => drawn().forEach((element) => Plotly.relayout(element, { width }));
addEventListener("beforeprint", () => {
  document.querySelectorAll("[data-figure]").forEach(drawWaiting);
  widen(PAPER_WIDTH);
});
addEventListener("afterprint", () => widen(null));
