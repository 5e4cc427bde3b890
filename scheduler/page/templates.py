"""The page's templates: all that is put into one is escaped, and numbers and times are written as people read them.

A part of a page that changes is a block with the same name as its element, so that it can be asked for alone::

    {% block winner %}<section id="winner" data-live="{{ search.id }}">…</section>{% endblock %}

``?part=winner`` answers with that element only. A value that costs a query and that one part shows is given as a
function: a part calls those that it shows.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse

from gridfleet.scheduler.page import addresses
from gridfleet.scheduler.reports import figures
from gridfleet.scheduler.reports.causes import ranges
from gridfleet.scheduler.reports.pace import roughly
from gridfleet.scheduler.reports.plain import plain, plain_lines
from gridfleet.storage.search_states import described

FOLDER = Path(__file__).parent / "templates"


def render(request: Request, name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Fill a template, or the part of it that the request asks for.

    Parameters
    ----------
    request : Request
        Which may have ``?part=ID``.
    name : str
        The template's file.
    status : int, default=200
        Of the response.
    **values : dict
        What the template shows. Text is escaped.

    Raises
    ------
    HTTPException
        404 if the page has no such part.
    """
    template = _environment().get_template(name)
    values = {"path": request.url.path, "query": request.query_params, **values}
    part = request.query_params.get("part")
    if part is None or status != 200:
        return HTMLResponse(template.render(**values), status)
    return HTMLResponse(_rendered_part(template, part, values))


def rendered(name: str, **values: Any) -> str:
    """Fill a template that nobody asked for by an address."""
    return _environment().get_template(name).render(**values)


def _rendered_part(template: Template, part: str, values: dict[str, Any]) -> str:
    if part not in template.blocks:
        raise HTTPException(404, "this page has no such part")
    return "".join(template.blocks[part](template.new_context(values)))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        score=figures.score,
        count=count,
        duration=duration,
        roughly=roughly,
        time=time,
        state=state,
        params=figures.params,
        plain=plain,
        sentence=sentence,
        ranges=ranges,
        ago=figures.rounded,
    )
    environment.globals |= {
        "with_deviation": figures.with_deviation,
        "live_when": live_when,
        "search_url": addresses.search_url,
        "trial_url": addresses.trial_url,
        "figure_url": addresses.figure_url,
    }
    return environment


def _printable(value: Any) -> Any:
    """Show signs that turn the direction of text, or that nobody sees, as their escapes."""
    return plain_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def live_when(searches: str) -> Markup:
    """Return the attribute of a part that changes with searches, by their ids; none where nothing changes any more."""
    return Markup(' data-live="{}"').format(searches) if searches else Markup()


def count(number: int | None) -> str:
    """Write a number of things: ``12,345``."""
    return "" if number is None else f"{number:,}"


def duration(seconds: float | None) -> str:
    """Write how long something took: ``0.42 s``, ``12 s``, ``3 min 20 s``, ``5 h 12 min``.

    Examples
    --------
    >>> duration(0.4213), duration(200), duration(18_720)
    ('0.42 s', '3 min 20 s', '5 h 12 min')
    """
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def time(at: datetime | None) -> Markup:
    """Write a time; ``times.js`` shows it in the reader's zone, with UTC on hover."""
    if at is None:
        return Markup()
    utc = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        f"{utc:%Y-%m-%dT%H:%M:%SZ}", figures.time(at), figures.time(at)
    )


def sentence(value: str) -> Markup:
    """Write a sentence as a terminal gets it, what stands between backticks as code."""
    parts = plain(value).split("`")
    if len(parts) % 2 == 0:  # one of them is no pair's
        return escape(plain(value))
    code = Markup("<code>{}</code>")
    return Markup().join(code.format(part) if place % 2 else part for place, part in enumerate(parts))


def state(value: str) -> Markup:
    """Write the state of a search or a trial: a word, whose class gives it a colour."""
    return Markup('<span class="state {}">{}</span>').format(str(value).replace(" ", "-"), described(value))
