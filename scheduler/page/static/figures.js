// Draws figures: <div class="figure" data-figure="/address/of/a/plotly/figure.json">.
"use strict";

async function draw(element) {
  const answer = await fetch(element.dataset.figure, { headers: { Accept: "application/json" } });
  if (!answer.ok) {
    element.textContent = "This figure could not be loaded.";
    return;
  }
  const { data, layout } = await answer.json();
  const options = { responsive: true, displaylogo: false };
  await Plotly.react(element, data, { ...layout, uirevision: element.dataset.figure }, options);
}

function drawAll(within) {
  for (const element of within.querySelectorAll("[data-figure]")) draw(element);
}

document.addEventListener("gridfleet:shown", (event) => drawAll(event.target));
drawAll(document);
