"""The code blocks of the Markdown files, for the tests that run them.

A block of Python runs in the order of its file, with the names that the blocks before it have left, in the usual tests; one
that imports a library of `BRIDGES`, or comes after such a one in its section, where these libraries are. What cannot run says
why in a comment before it::

    <!-- not run: it needs a GPU -->

A block for the shell stands after ``<!-- command: NAME -->`` and is run by ``.ci/run``, or says in the same way why not.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILES = ["README.md", "bench/README.md", ".github/CONTRIBUTING.md", ".github/ARCHITECTURE.md", ".github/CHANGELOG.md"]
# Their legs of the checks have them.
BRIDGES = {"torch", "jax", "onnx", "onnxruntime", "dask", "distributed", "pint", "astropy", "sparse", "cupy"}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language, the comment before it, its section and whether it needs one of `BRIDGES`."""

    file: str
    line: int
    language: str
    comment: str
    text: str
    section: str
    is_bridge: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def why_not(self) -> str:
        """Why it is not run; empty if it is."""
        return self.comment.removeprefix("not run: ") if self.comment.startswith("not run: ") else ""

    @property
    def command(self) -> str:
        """Its name in ``.ci/run``; empty without."""
        return self.comment.removeprefix("command: ") if self.comment.startswith("command: ") else ""


_FENCE = re.compile(
    r"^(?:#+ (?P<section>[^\n]+)|(?:<!-- (?P<comment>[^\n]+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$)", re.M | re.S
)


def blocks(file: str) -> list[Block]:
    """The blocks of a file, in order."""
    content = (ROOT / file).read_text(encoding="utf-8")
    found: list[Block] = []
    section, with_bridges = "", False
    for match in _FENCE.finditer(content):
        if match["section"]:
            section, with_bridges = match["section"].strip(), False
            continue
        text, language = match["text"], match["language"]
        if language == "python":
            with_bridges = with_bridges or bool(_imports(text) & BRIDGES)
        line = content[: match.start("text")].count("\n") + 1
        found.append(Block(file, line, language, match["comment"] or "", text, section, with_bridges))
    return found


def _imports(text: str) -> set[str]:
    """What a block imports: packages, and the bridges of this package by the name of their library."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("fastrelu.").partition(".")[0] for name in names}


def run(file: str, with_bridges: bool) -> Iterator[Block]:
    """Run the blocks of Python that need nothing else; those of the bridges in copies of what these have left, a section each.

    Yields each block before it is run.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    sections: dict[str, dict[str, Any]] = {}
    for block in blocks(file):
        if block.language != "python" or block.why_not or (block.is_bridge and not with_bridges):
            continue
        yield block
        scope = sections.setdefault(block.section, dict(names)) if block.is_bridge else names
        # The empty lines make the lines of an error those of the file.
        code = compile("\n" * (block.line - 1) + block.text, str(ROOT / file), "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(code, scope)
