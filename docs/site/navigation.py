"""A hook of MkDocs: lists the how-to pages, and adds the reports of `results/`, which scripts write outside `docs/`."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[2]


def on_config(config: Any) -> Any:
    """Fill the sections of the navigation that follow from the files there are."""
    pages = {
        "How to": sorted((REPOSITORY / "docs").glob("how-to/*.md")),
        "Results": sorted(REPOSITORY.glob("results/*.md")),
    }
    for entry in config["nav"]:
        for title in pages.keys() & entry.keys():
            entry[title] = [f"{page.parent.name}/{page.name}" for page in pages[title]]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the reports and their pictures, under the paths that they have in the repository."""
    for path in sorted((REPOSITORY / "results").rglob("*")):
        if path.suffix in (".md", ".png"):
            name = path.relative_to(REPOSITORY).as_posix()
            files.append(File(name, str(REPOSITORY), config["site_dir"], config["use_directory_urls"]))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to reports are those of the repository, where `results/` lies beside `docs/`; on the site it lies within."""
    up = "../" * page.file.src_uri.count("/")
    return markdown.replace(f"]({up}../results/", f"]({up}results/")
