"""Events of the build: generated pages, pages of the top folder, and search without a server."""

import os
import re
import shutil
from pathlib import Path

import notebook_pages
import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("data_tools", "finetune", "launch", "pretrain")
# Pages at the top of the repository, where GitHub expects them.
TOP = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md")
_LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[\w-]+)?\))")
_RUN = re.compile(r"^(\s*```\w+) run$", re.M)


@event_priority(100)  # before mkdocstrings, which ignores a search path that does not exist
def on_config(config: MkDocsConfig) -> None:
    """Link the folders of the repository in the layout of the installed package, which mkdocstrings reads."""
    package = REPO / "build" / "site-package" / "kinemae"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    (package / "__init__.py").touch()  # the names that the real one imports again are cycles for mkdocstrings
    for name in PACKAGES:
        (package / name).symlink_to(REPO / name)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, the notebooks, and the pages at the top of the repository."""
    pages = {name: page() for name, page in reference.PAGES.items()}
    pages |= {name: (REPO / name).read_text(encoding="utf-8") for name in TOP}
    for notebook in sorted(Path(config.docs_dir).glob("notebooks/*.ipynb")):
        page, pictures = notebook_pages.convert(notebook)
        pages[f"notebooks/{notebook.stem}.md"] = page
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Direct links between the repository's pages to the site, and links to other files to GitHub."""
    uri = page.file.src_uri
    folder = Path("." if uri in TOP else "docs", uri).parent

    def target(found: re.Match[str]) -> str:
        path = os.path.normpath(folder / found[2])
        inside = path.removeprefix("docs/")
        page_of = inside.removesuffix(".ipynb") + ".md"
        if inside.endswith(".ipynb") and page_of != uri:  # its own page links to the file
            inside = page_of
        is_page = (inside in TOP or path.startswith("docs/")) and files.get_file_from_path(inside) is not None
        if is_page:
            return found[1] + os.path.relpath(inside, Path(uri).parent) + found[3]
        return f"{found[1]}{config.repo_url.rstrip('/')}/blob/main/{path}{found[3]}"

    return _RUN.sub(r"\1", _LINK.sub(target, markdown))


def on_post_build(config: MkDocsConfig) -> None:
    """Write the search index as a script, which a browser also loads from a local file."""
    folder = Path(config.site_dir) / "search"
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")
