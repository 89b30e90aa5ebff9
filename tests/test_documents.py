"""What can be copied from the documents works: code, commands, links and names of files."""

import importlib.util
import re
import subprocess
import sys

import pytest

import fastrelu
from tests.documents import FILES, ROOT, blocks, run


@pytest.mark.parametrize("file", FILES)
def test_code_runs(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in run(file, with_bridges=False):
        pass


@pytest.mark.parametrize("file", FILES)
def test_blocks_are_run_or_say_why_not(file):
    checks = (ROOT / ".ci" / "run").read_text()
    for block in blocks(file):
        assert block.language in ("python", "sh", "mermaid", "text"), block
        if block.language == "sh" and not block.why_not:
            assert f"readme_command {block.command}" in checks, f"{block}: .ci/run has no such command"
        if block.comment.startswith("not run"):
            assert len(block.why_not) > 10, f"{block}: why?"


@pytest.mark.parametrize("file", FILES)
def test_modules_of_commands_exist(file):
    text = (ROOT / file).read_text()
    for module in set(re.findall(r"python -m ([\w.]+)", text)) - {"fastrelu.examples.NAME", "venv"}:
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("file", FILES)
def test_links_lead_somewhere(file):
    text = (ROOT / file).read_text()
    anchors = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith(("http://", "https://")):
            assert ((ROOT / file).parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("file", FILES)
def test_files_that_are_named_exist(file):
    text = (ROOT / file).read_text()
    for name in re.findall(r"`((?:fastrelu|tests|bench|\.ci|\.github)/[\w./-]+)`", text):
        assert (ROOT / name).exists() or "NAME" in name, name


def test_every_public_name_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    # Families are told in a sentence: linear_ and conv2d_ with each activation, and what is returned.
    families = re.compile(r"(linear|conv2d)_\w+|CacheInfo|PackedWeight")
    assert [name for name in fastrelu.__all__ if not re.search(rf"\b{name}\b", text) and not families.fullmatch(name)] == []


def test_reference_is_made_of_the_docstrings(tmp_path):
    pytest.importorskip("pdoc")
    (block,) = (block for block in blocks("README.md") if block.command == "reference")
    command = block.text.split(" && ")[-1].split()
    pdoc = [word.strip('"') for word in command[command.index("-W") :]]
    pdoc[pdoc.index("-o") + 1] = str(tmp_path)
    made = subprocess.run([sys.executable, *pdoc], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (made.returncode, made.stderr) == (0, "")
    page = (tmp_path / "fastrelu.html").read_text()
    assert [name for name in fastrelu.__all__ if f'id="{name}"' not in page] == []
    for module in ("nn", "metrics"):
        assert (tmp_path / "fastrelu" / f"{module}.html").exists()
