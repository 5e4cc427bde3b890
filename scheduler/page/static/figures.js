// Draws figures: <div class="figure" data-figure="/address/of/a/plotly/figure.json">, each as it comes into sight. A
// figure's own title stands above it already, and its note is put into the caption.
"use strict";

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    drawn(entry.target);
  }
}, { rootMargin: "300px" });

function themed(layout) {
  const style = getComputedStyle(document.body);
  const grid = { gridcolor: "rgba(128,128,128,0.25)", zerolinecolor: "rgba(128,128,128,0.4)" };
  const clear = "rgba(0,0,0,0)";
  return {
    ...layout,
    title: undefined,
    margin: { ...layout.margin, t: 48 },
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
  await Plotly.react(element, data, { ...themed(layout), uirevision: element.dataset.figure }, options);
}

function drawAll(within) {
  for (const element of within.querySelectorAll("[data-figure]")) seen.observe(element);
}

document.addEventListener("gridfleet:shown", (event) => drawAll(event.target));
dark.addEventListener("change", () => drawAll(document));
drawAll(document);
