"use strict";
// Shows what the server answers: text as HTML that it escaped, figures in pieces of which it sends
// only those that are not held here yet.

const pieces = new Map(); // name to JSON
const texts = new Map(); // id of a block to its HTML as it came
const parsed = new WeakMap(); // element to the names of the pieces it shows, or will when near

// Figures near the screen are asked for, also those that will be there with the next scroll.
const nearIds = new Set();
let asking;
const nearby = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      nearIds[isIntersecting ? "add" : "delete"](target.dataset.figure);
    }
    clearTimeout(asking);
    asking = setTimeout(ask, 50);
  },
  { rootMargin: "60% 0px" },
);
const ask = () => window.dash_clientside.set_props("near", { data: [...nearIds].sort() });

function replaceBlocks(content, text) {
  const template = document.createElement("template");
  template.innerHTML = text;
  const typing = document.activeElement?.id === "filter";
  const blocks = [...template.content.querySelectorAll("header, nav, section")].map((fresh) => {
    const known = document.getElementById(fresh.id);
    const source = fresh.outerHTML;
    const same = known && texts.get(fresh.id) === source;
    texts.set(fresh.id, source);
    return same ? known : adopt(fresh, known);
  });
  content.replaceChildren(...blocks);
  content.querySelectorAll("[data-figure]").forEach((holder) => nearby.observe(holder));
  if (typing) document.getElementById("filter")?.focus({ preventScroll: true });
}

// Figures that are drawn move to the new text; the table stays sorted, filtered and scrolled.
function adopt(fresh, known) {
  for (const holder of fresh.querySelectorAll("[data-figure]")) {
    const figure = document.getElementById(holder.id);
    if (figure) holder.replaceWith(figure);
  }
  setUpTable(fresh);
  const scrolled = known?.querySelector(".scroll")?.scrollTop;
  if (scrolled) requestAnimationFrame(() => (fresh.querySelector(".scroll").scrollTop = scrolled));
  return fresh;
}

// After the text is on the screen: it takes a second.
let plotly;
function loadPlotly() {
  const load = (ready) => {
    const script = document.createElement("script");
    script.src = document.body.dataset.plotly;
    script.addEventListener("load", ready);
    document.head.append(script);
  };
  const painted = (then) => requestAnimationFrame(() => setTimeout(then));
  plotly ??= new Promise((ready) => painted(() => load(ready)));
  return plotly;
}

function drawPieces(figures, config, revision) {
  for (const [id, names] of Object.entries(figures)) {
    const element = document.getElementById(`${id}-plot`);
    if (parsed.get(element) === String(names)) continue;
    parsed.set(element, String(names));
    const texts = names.map((name) => pieces.get(name));
    drawWhenNear(element, () => {
      const [layout, ...data] = texts.map((text) => JSON.parse(text));
      layout.uirevision = revision;
      drawFigure(element, { data, layout }, config);
    });
  }
}

window.dash_clientside = Object.assign({}, window.dash_clientside, {
  lipprof: {
    async show(answer, config) {
      if (!answer) return window.dash_clientside.no_update;
      const content = document.getElementById("content");
      for (const [name, piece] of Object.entries(answer.pieces)) pieces.set(name, piece);
      const needed = new Set(Object.values(answer.figures).flat());
      for (const name of pieces.keys()) if (!needed.has(name)) pieces.delete(name);
      if (needed.size > pieces.size) return null; // out of step: the server sends all again
      if (answer.html !== null) replaceBlocks(content, answer.html);
      await loadPlotly();
      drawPieces(answer.figures, config, answer.revision);
      return { drawn: answer.drawn, html: answer.hash, pieces: [...pieces.keys()] };
    },
  },
});
