"""A real browser for the tests of the page: the machine's own Chromium, with notes of all that goes wrong in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, sync_playwright

#: How long a busy machine may take to show something.
SHOWN_MS = 60_000
#: How long figures may take to fit another window.
RESIZED_MS = 10_000
#: Names of Chromium, the first one that is there is taken.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 740}
#: The rules of WCAG at the levels A and AA.
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}


@contextlib.contextmanager
def chromium_started() -> Iterator[Browser]:
    """Start Chromium; as root it has no sandbox."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """One reader's browser: what it asked for and what it complained of."""

    page: Page
    address: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(SHOWN_MS)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"a dialog: {dialog.message}"))

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def enter(self, token: str) -> None:
        """Come with the token in the address, as from a terminal."""
        self.page.goto(f"{self.address}/?token={token}")
        self.page.wait_for_url(f"{self.address}/")

    def go(self, path: str) -> None:
        """Open a page of the server."""
        answer = self.page.goto(self.address + path)
        assert answer is not None
        assert answer.status == 200, path

    def figure(self, name: str) -> Locator:
        """Return a figure by a part of its address."""
        return self.page.locator(f'[data-figure*="{name}"]')

    def draw_all(self) -> None:
        """Bring each figure into sight, and wait until something is in it."""
        self.page.wait_for_load_state()
        for name in self.page.locator("[data-figure]").evaluate_all("all => all.map((each) => each.dataset.figure)"):
            assert self.sees(name, "figure.getAttribute('aria-busy') === 'false'"), name

    def sees(self, name: str, condition: str) -> bool:
        """Look at a figure until an expression of it is true; others that are drawn above may push it out of sight."""
        figure = f"document.querySelector('[data-figure*={json.dumps(name)}]')"
        return self.until(
            f"((figure) => {{ figure.scrollIntoView({{block: 'center'}}); return {condition}; }})({figure})"
        )

    def until(self, condition: str, *, at_most_ms: int = SHOWN_MS) -> bool:
        """Wait until an expression of JavaScript is true; Playwright's own way needs eval, which the policy refuses."""
        return self.page.evaluate(
            f"""() => new Promise((resolve) => {{
                  const look = () => {{
                    const holds = Boolean({condition});
                    if (holds || performance.now() > last) resolve(holds); else setTimeout(look, 20);
                  }};
                  const last = performance.now() + {at_most_ms};
                  look();
                }})"""
        )

    def drawn(self) -> dict[str, int]:
        """Return how many marks each figure of the page has, by its address."""
        return self.page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll("[data-figure]")].map((figure) => [
                 figure.dataset.figure.split("?")[0],
                 figure.querySelectorAll("path.point, path.js-line, .bars path, .hm image, .lines path").length]))"""
        )

    def too_wide(self) -> list[str]:
        """Return what makes the page scroll sideways, as soon as its figures have got their new sizes."""
        self.until(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth", at_most_ms=RESIZED_MS
        )
        return self.page.evaluate(
            """() => {
                 const width = document.documentElement.clientWidth;
                 if (document.documentElement.scrollWidth <= width) return [];
                 const isWide = (one) => one.getBoundingClientRect().right > width + 1
                   && !one.parentElement.closest(".scrolls, .parallel, .code");
                 const wide = [...document.querySelectorAll("main *")].filter(isWide);
                 return wide.map((one) => one.outerHTML.slice(0, 120));
               }"""
        )

    def violations(self) -> list[str]:
        """Return what axe-core's rules say against the page."""
        found = Axe().run(self.page, options=RULES).response["violations"]
        return [
            f"{rule['id']} ({rule['impact']}): {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
            for rule in found
            for node in rule["nodes"]
        ]

    def elsewhere(self) -> list[str]:
        """Return what was asked of anybody but the server."""
        ours = urlsplit(self.address).netloc
        return [url for url in self.asked if not url.startswith(("data:", "blob:")) and urlsplit(url).netloc != ours]


@contextlib.contextmanager
def visit(browser: Browser, address: str, **options: Any) -> Iterator[Visit]:
    """Open a browser's window that knows nothing of others."""
    context = browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
    try:
        yield Visit(context.new_page(), address)
    finally:
        context.close()
