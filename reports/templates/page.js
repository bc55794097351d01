"use strict";
// Tables: sort by a column's button, filter by words and by family.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    const number = cell.dataset.v;
    if (number === undefined) return cell.textContent.trim().toLowerCase();
    return number === "" ? null : Number(number);
  };
  heads.forEach((head, column) => {
    const button = head.querySelector(".sort");
    if (!button) return;
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const first = head.dataset.first ?? "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = now === first ? other : first;
      for (const cell of heads) if (cell.hasAttribute("aria-sort")) cell.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      // What has no value stays at the end in either order.
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
  const tools = document.querySelector(`[data-tools="${table.id}"]`);
  if (!tools) continue;
  const search = tools.querySelector("input[type=search]");
  const picks = [...tools.querySelectorAll("input[type=checkbox]")];
  const shown = tools.querySelector(".shown");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const families = new Set(picks.filter((p) => p.checked).map((p) => p.value));
    let count = 0;
    for (const row of body.rows) {
      const text = row.dataset.text.toLowerCase();
      const keep = families.has(row.dataset.family) && words.every((w) => text.includes(w));
      row.hidden = !keep;
      count += keep;
    }
    shown.textContent = `${count} of ${body.rows.length} shown`;
  };
  search.addEventListener("input", filter);
  for (const pick of picks) pick.addEventListener("change", filter);
}

// Figures: Plotly comes packed in the page and is unpacked once, after the text can be read.
const figures = JSON.parse(document.getElementById("figures").textContent);
const plots = [...document.querySelectorAll(".plot[data-figure]")];
let drawing = null;

function coloured(value, style) {
  if (typeof value === "string") {
    return value.includes("var(--")
      ? value.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim())
      : value;
  }
  if (Array.isArray(value)) return value.map((part) => coloured(part, style));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, style)]));
  }
  return value;
}

// Traces of later views hold only what differs from one of the first view's: that which "of" names.
function whole(figure, first) {
  const held = (trace) => Object.fromEntries(Object.entries(trace).filter(([, v]) => v !== null));
  const full = ({ of, ...trace }) => of === undefined ? trace : held({ ...first.data[of], ...trace });
  return { ...figure, data: figure.data.map(full) };
}

function draw(plot, width) {
  const views = figures[plot.dataset.figure];
  const figure = whole(views[plot.dataset.view] ?? Object.values(views)[0], Object.values(views)[0]);
  const { data, layout } = coloured(figure, getComputedStyle(document.documentElement));
  // A finger that drags over a figure scrolls the page.
  layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  if (width) Object.assign(layout, { width, autosize: false });
  plot.setAttribute("aria-label", figure.alt);
  plot.querySelector(".wait")?.remove();
  return drawing.react(plot, data, layout, {
    responsive: true,
    displayModeBar: false,
  });
}

async function unpack() {
  const packed = atob(document.getElementById("plotly").textContent.trim());
  const bytes = Uint8Array.from(packed, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const code = await new Response(stream).blob();
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const script = document.createElement("script");
  await new Promise((done, failed) => {
    script.onload = done;
    script.onerror = () => failed(new Error("the drawing library didn't load"));
    script.src = url;
    document.head.append(script);
  });
  URL.revokeObjectURL(url);
  return window.Plotly;
}

async function begin() {
  if (plots.length === 0) return;
  try {
    drawing = await unpack();
  } catch {
    for (const wait of document.querySelectorAll(".plot .wait")) {
      wait.textContent = "This browser is too old to unpack the figure; the tables hold its numbers.";
    }
    return;
  }
  for (const plot of plots) {
    if (folded(plot)) continue;
    await draw(plot);
    // Let the reader scroll and click between two figures.
    await new Promise((next) => setTimeout(next));
  }
  document.documentElement.dataset.drawn = "yes";
}

// What is folded has no width to be drawn in: it is drawn whenever it is unfolded.
function folded(plot) {
  return plot.closest("details:not([open])") !== null;
}
addEventListener("toggle", (event) => {
  if (!drawing || !event.target.open) return;
  for (const plot of plots) if (event.target.contains(plot) && !folded(plot)) draw(plot);
}, true);

function redraw(width) {
  if (!drawing) return;
  for (const plot of plots) if (width || !folded(plot)) draw(plot, width);
}
addEventListener("theme", () => redraw());
for (const input of document.querySelectorAll("input[data-plot]")) {
  input.addEventListener("change", () => {
    const plot = document.querySelector(`[data-figure="${input.dataset.plot}"]`);
    plot.dataset.view = input.value;
    if (drawing) draw(plot);
  });
}

// Paper is white, narrower than most screens, and shows what the screen folds away.
const PAPER_PX = 640;
let before = null;
addEventListener("beforeprint", () => {
  const root = document.documentElement;
  before = { theme: root.dataset.theme, open: [] };
  for (const part of document.querySelectorAll("details:not([open]):not(td details)")) {
    part.open = true;
    before.open.push(part);
  }
  root.dataset.theme = "light";
  redraw(PAPER_PX);
});
addEventListener("afterprint", () => {
  if (before === null) return;
  for (const part of before.open) part.open = false;
  document.documentElement.dataset.theme = before.theme;
  redraw();
  before = null;
});
begin();
