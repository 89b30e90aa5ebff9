"""The code of the README for other libraries, where these are installed."""

from tests.documents import run


def test_code_of_the_bridges_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in run("README.md", with_bridges=True):
        pass
