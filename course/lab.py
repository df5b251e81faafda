"""What `make lab` tells JupyterLab: a chapter that is saved without an edit stays as it was.

JupyterLab writes its kernel's own name and Python's exact version into each notebook that it saves.
"""

from typing import Any

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""What a notebook says of its kernel, the same on every machine."""


def same_everywhere(model: dict[str, Any], **_: Any) -> None:
    """Before a notebook is saved, say of its kernel what every chapter says of it."""
    if model["type"] == "notebook" and model.get("content"):
        model["content"]["metadata"] |= METADATA


if "get_config" in globals():  # JupyterLab reads this file as its configuration
    globals()["get_config"]().ContentsManager.pre_save_hook = same_everywhere
