// Parallel coordinates as SVG. Plotly draws them with WebGL programs that it compiles from text, which this page's
// Content-Security-Policy refuses. Drag along an axis to choose a range of it, click it to choose all again; with the
// keyboard, ↑ raises the range's lower end, ↓ lowers its upper end, and Escape chooses all.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const STEPS = 20; // of the keyboard, from one end of an axis to the other
const LEAST = 110; // pixels between two axes; a narrow screen scrolls

function svg(name, attributes, parent, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

// plotly's labels are HTML with what users wrote escaped: here they are only text
function plain(text) {
  return new DOMParser().parseFromString(String(text), "text/html").body.textContent;
}

function numbers(low, high) {
  const step = 10 ** Math.floor(Math.log10((high - low) / 4));
  const nice = [1, 2, 5, 10].map((factor) => factor * step).find((size) => (high - low) / size <= 6);
  const found = [];
  for (let at = Math.ceil(low / nice) * nice; at <= high + nice / 1e6; at += nice) found.push(at);
  return found.map((at) => ({ at, text: String(Number(at.toPrecision(6))) }));
}

function axisOf(dimension) {
  const values = dimension.values;
  const known = [...values, ...(dimension.tickvals ?? [])];
  let low = known.reduce((a, b) => Math.min(a, b), Infinity);
  let high = known.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!(high > low)) [low, high] = [low - 1, high + 1];
  const given = dimension.tickvals?.map((at, place) => ({ at, text: plain(dimension.ticktext?.[place] ?? at) }));
  const ticks = given ?? (new Set(values).size === 1 ? [{ at: values[0], text: String(values[0]) }] : numbers(low, high));
  const isLog = given?.length > 1 && given.every(({ at, text }) => Math.abs(10 ** at / Number(text) - 1) < 1e-4); // of powers
  return { label: plain(dimension.label), values, low, high, ticks, isLog };
}

function colours(line) {
  const scale = line.colorscale.map(([at, colour]) => [at, colour.match(/\w\w/g).map((part) => parseInt(part, 16))]);
  const low = line.color.reduce((a, b) => Math.min(a, b), Infinity);
  const high = line.color.reduce((a, b) => Math.max(a, b), -Infinity);
  return line.color.map((value) => {
    const at = high > low ? (value - low) / (high - low) : 1;
    const after = Math.max(1, scale.findIndex(([place]) => place >= at));
    const [[from, first], [to, second]] = [scale[after - 1], scale[after]];
    const share = (at - from) / (to - from);
    return `rgb(${first.map((part, place) => Math.round(part + share * (second[place] - part))).join(",")})`;
  });
}

function drawParallel(element, trace) {
  const axes = trace.dimensions.map(axisOf);
  const chosen = (element.chosen ??= new Map()); // by an axis' label, the range of it
  const width = Math.max(element.clientWidth - 2, LEAST * (axes.length + 1));
  const [top, bottom, side] = [56, 400, 70];
  const x = (place) => side + (place * (width - 2 * side)) / Math.max(axes.length - 1, 1);
  const y = (axis, value) => bottom - ((value - axis.low) / (axis.high - axis.low)) * (bottom - top);
  element.textContent = "";
  element.classList.add("parallel");
  const drawing = svg("svg", { width, height: bottom + 24, viewBox: `0 0 ${width} ${bottom + 24}` }, element);
  const lines = svg("g", { class: "lines", "aria-hidden": "true" }, drawing);
  const count = document.createElement("p");
  count.className = "hint count";
  count.setAttribute("role", "status");
  element.append(count);
  const paths = colours(trace.line).map((colour, row) => {
    const points = axes.map((axis, place) => `${x(place).toFixed(1)},${y(axis, axis.values[row]).toFixed(1)}`);
    return svg("path", { d: `M${points.join("L")}`, stroke: colour }, lines);
  });

  function show() {
    let n = 0;
    paths.forEach((path, row) => {
      const isIn = axes.every((axis) => {
        const range = chosen.get(axis.label);
        return !range || (axis.values[row] >= range[0] && axis.values[row] <= range[1]);
      });
      path.classList.toggle("off", !isIn);
      n += isIn;
    });
    count.textContent = chosen.size ? `${n} of ${paths.length} lines are in all chosen ranges` : "Drag along an axis to choose a range";
    for (const axis of axes) axis.show();
  }

  axes.forEach((axis, place) => {
    const group = svg("g", { transform: `translate(${x(place)},0)` }, drawing);
    svg("text", { y: top - 30, class: "label" }, group, shortened(axis.label));
    svg("line", { y1: top, y2: bottom }, group);
    for (const tick of axis.ticks) {
      svg("text", { x: 8, y: y(axis, tick.at) + 4, class: "tick" }, group, shortened(tick.text));
      svg("line", { x1: -4, x2: 4, y1: y(axis, tick.at), y2: y(axis, tick.at) }, group);
    }
    const range = svg("rect", { x: -8, width: 16, class: "range" }, group);
    const handle = svg("rect", { x: -16, y: top - 6, width: 32, height: bottom - top + 12, class: "handle", tabindex: 0, role: "slider",
      "aria-orientation": "vertical", "aria-label": `Range of ${axis.label}`, "aria-valuemin": axis.low, "aria-valuemax": axis.high }, group);
    const value = (at) => axis.low + ((bottom - Math.min(Math.max(at, top), bottom)) / (bottom - top)) * (axis.high - axis.low);
    const text = (number) => axis.ticks.find((tick) => tick.at === number)?.text ?? String(Number((axis.isLog ? 10 ** number : number).toPrecision(4)));
    axis.show = () => {
      const [low, high] = chosen.get(axis.label) ?? [axis.low, axis.high];
      range.setAttribute("y", y(axis, high));
      range.setAttribute("height", chosen.has(axis.label) ? Math.max(y(axis, low) - y(axis, high), 2) : 0);
      handle.setAttribute("aria-valuenow", low);
      handle.setAttribute("aria-valuetext", chosen.has(axis.label) ? `${text(low)} to ${text(high)}` : "all");
    };
    let began = null;
    handle.addEventListener("pointerdown", (event) => {
      began = event.offsetY;
      handle.setPointerCapture(event.pointerId);
      chosen.delete(axis.label);
      show();
    });
    handle.addEventListener("pointermove", (event) => {
      if (began === null || Math.abs(event.offsetY - began) < 3) return;
      chosen.set(axis.label, [value(began), value(event.offsetY)].sort((a, b) => a - b));
      show();
    });
    handle.addEventListener("pointerup", () => { began = null; });
    handle.addEventListener("keydown", (event) => {
      let [low, high] = chosen.get(axis.label) ?? [axis.low, axis.high];
      const step = (axis.high - axis.low) / STEPS;
      if (event.key === "ArrowUp") low = Math.min(low + step, high);
      else if (event.key === "ArrowDown") high = Math.max(high - step, low);
      else if (event.key !== "Escape") return;
      event.preventDefault();
      if (event.key === "Escape") chosen.delete(axis.label);
      else chosen.set(axis.label, [low, high]);
      show();
    });
  });
  show();
  if (!element.watched) {
    element.watched = new ResizeObserver(() => {
      if (Math.abs(element.clientWidth - element.drawnWidth) > 4) drawParallel(element, element.trace);
    });
    element.watched.observe(element);
  }
  element.trace = trace;
  element.drawnWidth = element.clientWidth;
}

function shortened(text) {
  return text.length <= 18 ? text : `${text.slice(0, 9)}…${text.slice(-8)}`;
}
