// Draws figures: <div class="figure" data-figure="/address/of/a/plotly/figure.json">, each as it comes into sight, and
// the others when the browser has nothing else to do. A figure's own title stands above it already, and its note is put
// into the caption.
"use strict";

const PAPER = { width: 660, colour: "#1b1f24" }; // of a figure on a sheet of A4 or letter

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    drawn(entry.target);
  }
}, { rootMargin: "300px" });

// plotly shows a legend of two traces or more, unless their or the figure's showlegend says otherwise
function hasLegend(data, layout) {
  return layout.showlegend !== false && data.filter((trace) => trace.showlegend !== false && trace.type !== "heatmap").length > 1;
}

function themed(data, layout) {
  const style = getComputedStyle(document.body);
  const grid = { gridcolor: "rgba(128,128,128,0.25)", zerolinecolor: "rgba(128,128,128,0.4)" };
  const clear = "rgba(0,0,0,0)";
  return {
    ...layout,
    title: undefined,
    margin: { ...layout.margin, t: hasLegend(data, layout) ? 48 : 16 },
    paper_bgcolor: clear,
    plot_bgcolor: clear,
    font: { ...layout.font, color: style.color, family: style.fontFamily },
    template: { layout: { xaxis: grid, yaxis: grid, ...layout.template?.layout } },
  };
}

// on dark ground, the lighter one of the two blues
function coloured(text) {
  return dark.matches ? text.replaceAll("#0072B2", "#56B4E9").replaceAll("rgba(0,114,178,", "rgba(86,180,233,") : text;
}

function note(element, text) {
  const caption = element.closest("figure")?.querySelector("figcaption");
  // the note is HTML to plotly, with what users wrote escaped: here it is only text
  if (caption) caption.textContent = new DOMParser().parseFromString(text ?? "", "text/html").body.textContent;
}

async function drawn(element) {
  element.setAttribute("aria-busy", "true");
  await draw(element);
  element.setAttribute("aria-busy", "false");
}

async function draw(element) {
  const answer = await fetch(element.dataset.figure, { headers: { Accept: "application/json" } });
  const drawn = answer.ok ? JSON.parse(coloured(await answer.text())) : { nothing: "This figure could not be loaded." };
  element.classList.toggle("nothing", "nothing" in drawn);
  if ("nothing" in drawn) {
    if (window.Plotly && element.data) Plotly.purge(element);
    element.textContent = drawn.nothing;
    return;
  }
  const { data, layout } = drawn;
  note(element, layout.title?.subtitle?.text);
  if (data[0]?.type === "parcoords") {
    drawParallel(element, data[0]);
    return;
  }
  if (!element.data) element.textContent = "";
  if (layout.height) element.style.minHeight = `${layout.height}px`;
  const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  await Plotly.react(element, data, { ...themed(data, layout), uirevision: element.dataset.figure }, options);
}

function drawAll(within) {
  for (const element of within.querySelectorAll("[data-figure]")) seen.observe(element);
}

// who prints the page, or searches it for words, has not always scrolled through it
async function drawOthers() {
  for (const element of document.querySelectorAll("[data-figure]:not([aria-busy])")) {
    if (element.isConnected && !element.hasAttribute("aria-busy")) {
      seen.unobserve(element);
      await drawn(element).catch(() => { // the server is away
        element.removeAttribute("aria-busy");
        seen.observe(element);
      });
    }
  }
}

// plotly's figures have a size in pixels and colours of their own, which no style sheet changes
function toPaper() {
  for (const element of document.querySelectorAll(".js-plotly-plot")) {
    element.onScreen ??= { width: null, height: element.layout.height ?? null, autosize: true };
    Plotly.relayout(element, { width: PAPER.width, height: element.clientHeight, "font.color": PAPER.colour });
  }
  drawParallelAgain(`${PAPER.width}px`);
}

function toScreen() {
  for (const element of document.querySelectorAll(".js-plotly-plot")) {
    Plotly.relayout(element, { ...element.onScreen, "font.color": getComputedStyle(document.body).color });
    delete element.onScreen;
  }
  drawParallelAgain("");
}

function drawParallelAgain(width) {
  for (const element of document.querySelectorAll(".parallel")) {
    element.style.width = width;
    drawParallel(element, element.trace);
  }
}

const whenIdle = window.requestIdleCallback ?? setTimeout; // Safari has none
window.addEventListener("load", () => whenIdle(drawOthers));
window.addEventListener("beforeprint", toPaper);
window.addEventListener("afterprint", toScreen);
document.addEventListener("gridfleet:shown", (event) => drawAll(event.target));
dark.addEventListener("change", () => drawAll(document));
drawAll(document);
