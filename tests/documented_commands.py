"""Commands shown in the documents, the recipes and the help texts."""

import re
from collections.abc import Iterator
from pathlib import Path

from kinemae.data_tools.__main__ import PROGRAM as DATA_TOOLS
from kinemae.finetune.__main__ import PROGRAM as FINETUNE
from kinemae.launch.__main__ import PROGRAM as LAUNCH
from kinemae.pretrain.__main__ import PROGRAM as PRETRAIN

REPO = Path(__file__).resolve().parents[1]
PAGES = [*sorted(REPO.glob("*.md")), *sorted((REPO / "docs").rglob("*.md"))]
_COMMAND = re.compile(
    r"^(?:\$ )?(?:OMP_NUM_THREADS=1 )?"
    r"(?:(?:torchrun(?: --\S+)* -m |\.venv/bin/)?(kinemae .*)|(?:\.venv/bin/)?python (-m .*))$"
)
_CODE = re.compile(r"`([^`\n]+)`")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def is_usage(command: str) -> bool:
    """Detect usage lines: `[optional]`, `one|other`, an ellipsis, or only a name."""
    bare = _QUOTED.sub("", command.split(" #")[0])
    is_name_alone = len(bare.split()) <= 3
    return is_name_alone or bool(re.search(r"(^|\s)\[|\w\|\w|\.\.\.", bare))


def documented() -> Iterator[tuple[str, str]]:
    """Yield the page of each command, and the command from `kinemae` or `-m` on."""
    for page in PAGES:
        is_shell = False
        for line in _whole_lines(page):
            is_shell = line.startswith("```bash") or (is_shell and not line.startswith("```"))
            shown = line.strip() if is_shell or line.startswith("    ") else ""
            yield from _commands(str(page.relative_to(REPO)), shown)
    for page in sorted((REPO / "configs").rglob("*.yaml")):
        for line in _whole_lines(page):
            for shown in (line.removeprefix("# command").strip(), *_CODE.findall(line)):
                yield from _commands(str(page.relative_to(REPO)), shown)
    for program in (DATA_TOOLS, PRETRAIN, FINETUNE, LAUNCH):
        for command in program.commands:
            yield from _commands(f"{program.name} --help", command.example)


def unquoted_mappings() -> Iterator[tuple[str, str]]:
    """Yield inline code with an unquoted `key={...}` that a shell would split."""
    for page in PAGES:
        for span in _CODE.findall(page.read_text(encoding="utf-8")):
            if re.search(r"(^|\s)[a-z_.]+=[{\[]\S* ", _QUOTED.sub("", span)):
                yield str(page.relative_to(REPO)), span


def _whole_lines(page: Path) -> list[str]:
    """Split a page into lines; join lines that end with a backslash."""
    return re.sub(r"\\\n#?\s+", "", page.read_text(encoding="utf-8")).splitlines()


def _commands(page: str, line: str) -> Iterator[tuple[str, str]]:
    found = _COMMAND.match(line)
    command = found and (found[1] or found[2])
    if command and not is_usage(command):
        yield page, command
