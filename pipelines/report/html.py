"""Pages: a template with style and script put into it, so that one file is all there is to send around.

Text of a corpus is escaped by the template and never comes near the script; its control characters are spelled out. A
content security policy allows the page's own script, by its hash, and nothing from anywhere else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from pipelines.terminal import shortened, visible

if TYPE_CHECKING:
    from jinja2 import Environment

SHORT_ID = 20
"""Characters of a document's id in a list: about what fits into one line."""

_OWN = "pipelines.report"


def page(template: str, *, package: str = _OWN, scripts: Sequence[str], asks: bool = False, **values: Any) -> str:
    """A page as HTML.

    Args:
        template: its name; the templates are those of the report, and those of `package`.
        package: whose `template` folder is looked into as well.
        scripts: names of its scripts, in order; and of as many styles as there are `page.css` in both packages.
        asks: it may ask the server that it came from, and nobody else.
        values: what the template needs beside; `title` and `kind` at least.
    """
    script = "\n".join(_file(package, name) for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    connects = "connect-src 'self'; " if asks else ""
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        f"{connects}base-uri 'none'; form-action 'none'"
    )
    styles = [_read(_OWN, "page.css"), *([_read(package, "page.css")] if package != _OWN else [])]
    html = (
        environment(package)
        .get_template(template)
        .render(
            policy=Markup(policy),
            generator=f"thoughtmill {values['kind']}",
            style="\n".join(styles),
            script=script,
            **values,
        )
    )
    return visible(html)


@cache
def environment(package: str = _OWN) -> Environment:
    """What templates are read with: everything is escaped, and nothing may be missing."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=ChoiceLoader([PackageLoader(of, "template") for of in dict.fromkeys((package, _OWN))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["with_code"] = with_code
    made.filters["in_short"] = lambda text: shortened(visible(text), SHORT_ID)
    return made


def with_code(text: str) -> Markup:
    """Escaped, with what stands between backticks as code."""
    pieces = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(pieces))


def _file(package: str, name: str) -> str:
    own = resources.files(_OWN).joinpath("template", name)
    return own.read_text(encoding="utf-8") if own.is_file() else _read(package, name)


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath("template", name).read_text(encoding="utf-8")
