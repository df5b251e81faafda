"""What `make lab` tells JupyterLab: a save changes what was edited and nothing else, and no news are asked for.

JupyterLab writes its kernel's own name and Python's exact version into each notebook that it saves; and it shows the cells
of the text, so that a save would overwrite what was edited in the notebook alone.
"""

from pathlib import Path
from typing import Any

import nbformat
from tornado.web import HTTPError

from course import pairs

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""What a notebook says of its kernel, the same on every machine."""
NEWS = "@jupyterlab/apputils-extension:announcements"


def before_saving(
    model: dict[str, Any], path: str = "", contents_manager: Any = None, **_: Any
) -> None:
    """Before a notebook is saved, say of its kernel what every chapter says, and of its cells that they are as written.

    Raises:
        HTTPError: What lies there was edited by another program since both files were written; nothing is overwritten.
    """
    if model["type"] != "notebook" or not model.get("content"):
        return
    there = Path(contents_manager._get_os_path(path))
    if there.exists() and not pairs.is_as_written(nbformat.read(there, as_version=4)):
        if difference := pairs.difference(there.with_suffix(".py")):
            raise HTTPError(409, difference)
    metadata = model["content"]["metadata"]
    metadata |= METADATA
    notebook = nbformat.from_dict(model["content"])
    if not pairs.is_as_written(notebook):
        metadata[pairs.CHECKSUM] = pairs.checksum(notebook)


def without_news(handler: Any, page: dict[str, Any]) -> dict[str, Any]:
    """What a page of JupyterLab is told, without the part that asks about news, on top of the chapter, and for updates."""
    return page | {"disabledExtensions": [*page["disabledExtensions"], NEWS]}


if "get_config" in globals():  # JupyterLab reads this file as its configuration
    settings = globals()["get_config"]()
    settings.ContentsManager.pre_save_hook = before_saving
    settings.ServerApp.tornado_settings = {"page_config_hook": without_news}
