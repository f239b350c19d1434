"""Where the pages of docs/ are: beside a clone, else at the address that the package declares."""

from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parents[1] / "docs"


def page(name: str) -> str:
    """
    Where a page can be read: its path in a clone, its address where the package declares one (`Documentation` of
    `[project.urls]`), else its place in the repository.

    Args:
        name: as `data`.
    """
    if (HERE / f"{name}.md").is_file():
        return str(HERE / f"{name}.md")
    try:
        urls = metadata.metadata("speechllm").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        urls = []
    known = dict(url.split(", ", 1) for url in urls)
    if "Documentation" in known:
        return f"{known['Documentation'].rstrip('/')}/{name}.md"
    return f"docs/{name}.md in the repository of speechllm"


__all__ = ["page"]
