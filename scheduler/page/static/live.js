// Keeps the parts of a page up to date while their searches run: <section id="…" data-live="SEARCH_ID or *">.
// The server names the searches that changed; of this page only the parts about them are fetched, and exchanged in
// place: where the reader has scrolled, opened and focused something, it stays so.
"use strict";

const atOnce = new Set(); // parts that are being fetched
const again = new Set(); // parts that changed meanwhile

function partsAbout(ids) {
  return [...document.querySelectorAll("[data-live][id]")].filter(
    // null: events were lost, so that anything may have changed
    (part) => ids === null || part.dataset.live === "*" || part.dataset.live.split(" ").some((id) => ids.includes(+id)),
  );
}

async function refresh(id) {
  if (atOnce.has(id)) {
    again.add(id);
    return;
  }
  atOnce.add(id);
  try {
    const address = new URL(location.href);
    address.searchParams.set("part", id);
    const answer = await fetch(address, { headers: { Accept: "text/html" } });
    if (answer.ok) exchange(id, await answer.text());
  } catch {
    // the server is away: the stream of events comes back by itself, and says then what to fetch
  } finally {
    atOnce.delete(id);
  }
  if (again.delete(id)) refresh(id);
}

function exchange(id, text) {
  const old = document.getElementById(id);
  const part = new DOMParser().parseFromString(text, "text/html").getElementById(id);
  if (!old || !part || old.outerHTML === part.outerHTML) return;
  // what is at the top of the window stays there, whatever grows or shrinks above it
  const first = [...document.querySelectorAll("[data-live][id]")].find((at) => at.getBoundingClientRect().bottom > 0);
  const top = first?.getBoundingClientRect().top;
  const lefts = [...old.querySelectorAll(".scrolls")].map((table) => table.scrollLeft);
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  for (const details of old.querySelectorAll("details[id]")) {
    const same = part.querySelector(`#${CSS.escape(details.id)}`);
    if (same) same.open = details.open;
  }
  for (const field of old.querySelectorAll("input[id], select[id]")) {
    const same = part.querySelector(`#${CSS.escape(field.id)}`);
    if (same) Object.assign(same, { checked: field.checked, value: field.value });
  }
  // a figure is drawn again in its place, which keeps what was brushed and zoomed
  for (const figure of old.querySelectorAll("[data-figure]")) {
    const same = part.querySelector(`[data-figure="${CSS.escape(figure.dataset.figure)}"]`);
    if (same) same.replaceWith(figure);
  }
  old.replaceWith(part);
  if (focused && focused.id) document.getElementById(focused.id)?.focus({ preventScroll: true });
  const scrolled = [...part.querySelectorAll(".scrolls")];
  lefts.forEach((left, place) => scrolled[place]?.scrollTo({ left }));
  if (first) window.scrollBy(0, document.getElementById(first.id).getBoundingClientRect().top - top);
  part.dispatchEvent(new Event("gridfleet:shown", { bubbles: true }));
}

function listen() {
  if (!document.querySelector("[data-live]")) return; // nothing of this page changes any more
  const events = new EventSource("/events");
  events.addEventListener("changed", (event) => {
    for (const part of partsAbout(JSON.parse(event.data).searches)) refresh(part.id);
    if (!document.querySelector("[data-live]")) events.close();
  });
  events.addEventListener("error", () => {
    // what the server refuses, a browser does not ask again by itself: it was started anew, or too many look on
    if (events.readyState === EventSource.CLOSED) setTimeout(listenAgain, 10_000);
  });
}

async function listenAgain() {
  const answer = await fetch(location.href, { method: "HEAD" }).catch(() => null);
  if (answer?.status === 401) location.reload(); // to log in once more
  else {
    listen();
    for (const part of partsAbout(null)) refresh(part.id);
  }
}

listen();
