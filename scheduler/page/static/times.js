// Shows times in the reader's zone; the title keeps UTC.
"use strict";

const gridfleetTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function showTimes(within) {
  for (const element of within.querySelectorAll("time[datetime]")) {
    const at = new Date(element.dateTime);
    if (!Number.isNaN(at.getTime())) element.textContent = gridfleetTime.format(at);
  }
}

document.addEventListener("gridfleet:shown", (event) => showTimes(event.target));
showTimes(document);
