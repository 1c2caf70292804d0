"""Pages that can be mailed, one template each; what they have in common stands in `page.html.j2`. Nothing is fetched:
pictures, curves and looks are inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from upath import UPath

from library.files.atomic import whole_file


def write_page(path: UPath, template: str, **values: Any) -> UPath:
    """Fill in a template of this folder and write the page, whole or not at all. Returns its path.

    values  all that the template names; texts are escaped
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(values)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
