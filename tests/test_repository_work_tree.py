"""Which files of a repository are listed and read: git's rules with and without git, links, binary files, secrets."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cg_local.repository import secrets, work_tree
from cg_local.repository.work_tree import find_work_tree

FILES = {
    ".gitignore": "build/\n*.gen.py\n!keep.gen.py\n/top.py\n",
    "a.py": "x = 1\n",
    "top.py": "ignored = 1\n",
    "sub/top.py": "kept = 1\n",
    "x.gen.py": "",
    "keep.gen.py": "",
    "build/out.py": "",
    "sub/.gitignore": "local.py\n!*.gen.py\n",
    "sub/local.py": "",
    "sub/y.gen.py": "",
    "sub/deep/local.py": "",
    "sub/deep/mod.go": "package deep\n",
    ".env": "PASSWORD=1\n",
    "conf/secrets.yaml": "a: b\n",
    "server.key": "",
    "notes.bin": "\0\1",
    "ünï cödé.py": "",
}
LISTED = ["a.py", "keep.gen.py", "sub/deep/mod.go", "sub/top.py", "sub/y.gen.py", "ünï cödé.py"]


def write(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        root.joinpath(path).parent.mkdir(parents=True, exist_ok=True)
        root.joinpath(path).write_text(text, encoding="utf-8")
    return root


def init(root: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    subprocess.run(["git", "init", "-q", str(root)], check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write(tmp_path.resolve(), FILES)


def test_git_lists_tracked_and_new_files_that_are_not_ignored(repository: Path) -> None:
    init(repository)
    tree = find_work_tree(repository / "sub" / "top.py")
    assert (tree.root, tree.is_git) == (repository, True)
    assert tree.paths() == LISTED
    subprocess.run(["git", "-C", str(repository), "add", "-f", "build/out.py"], check=True)
    assert "build/out.py" in find_work_tree(repository / "a.py").paths()


def test_without_git_the_gitignore_files_are_read(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init(repository)
    repository.joinpath(".git/info/exclude").write_text("a.py\n")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    tree = find_work_tree(repository / "a.py")
    assert tree.paths() == [path for path in LISTED if path != "a.py"]


def test_a_hostile_config_runs_nothing(repository: Path) -> None:
    init(repository)
    marker = repository / "ran"
    program = repository / "monitor.sh"
    program.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    program.chmod(0o755)
    subprocess.run(["git", "-C", str(repository), "config", "core.fsmonitor", str(program)], check=True)
    assert "a.py" in find_work_tree(repository / "a.py").paths()
    assert not marker.exists()


def test_a_variable_of_git_does_not_lead_elsewhere(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init(repository)
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert find_work_tree(repository / "a.py").paths() == LISTED


def test_root_outside_of_git_is_the_nearest_project(tmp_path: Path) -> None:
    write(tmp_path.resolve(), {"p/pyproject.toml": "", "p/pkg/a.py": "", "q/b.py": ""})
    assert find_work_tree(tmp_path / "p/pkg/a.py").root == tmp_path.resolve() / "p"
    assert find_work_tree(tmp_path / "p/pkg/a.py").paths() == ["pkg/a.py"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a = 1\0\n", "binary"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a" * (work_tree.MAX_FILE_BYTES + 1), "larger than 262,144 bytes"),
        (b"x" * 1001 + b"\n", "has a line of more than 1,000 characters"),
        (b"KEY = '-----BEGIN RSA PRIVATE KEY-----'\n", "holds what looks like a private key"),
    ],
)
def test_what_is_refused_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    tmp_path.joinpath("a.py").write_bytes(data)
    tree = find_work_tree(tmp_path / "a.py")
    assert tree.read("a.py") is None
    assert tree.refused == {"a.py": reason}


def test_text_has_newlines_only_and_no_mark(tmp_path: Path) -> None:
    tmp_path.joinpath("a.py").write_bytes(b"\xef\xbb\xbfa = 1\r\nb = 2\r\n")
    assert find_work_tree(tmp_path / "a.py").read("a.py") == "a = 1\nb = 2\n"


def test_links_are_not_followed(tmp_path: Path) -> None:
    root = tmp_path.resolve() / "r"
    write(root, {"a.py": "", "sub/b.py": "x = 1\n"})
    write(tmp_path, {"outside.py": "s = 1\n", "far/c.py": ""})
    try:
        root.joinpath("link.py").symlink_to(tmp_path / "outside.py")
        root.joinpath("folder").symlink_to(tmp_path / "far")
    except OSError:
        pytest.skip("this system makes no links")
    tree = find_work_tree(root / "a.py")
    assert "folder/c.py" not in tree.paths()
    assert tree.read("link.py") is None
    assert tree.read("folder/c.py") is None
    assert tree.read("sub/b.py") == "x = 1\n"


@pytest.mark.parametrize(
    "path",
    [
        ".env", "a/.env.production", "prod.env", ".npmrc", "keys/server.pem", "ID_RSA", "id_ed25519.pub", "x.tfvars",
        "service-account-1.json", ".aws/config.py", "home/.ssh/known.py", "config/secrets.yml", "credentials.json",
    ],
)  # fmt: skip
def test_names_of_secrets(path: str) -> None:
    assert secrets.secret_name(path)


@pytest.mark.parametrize(
    "path", ["secrets.py", "environment.py", "keys.py", "tests/test_credentials_form.py", "a.json"]
)
def test_names_that_are_none(path: str) -> None:
    assert not secrets.secret_name(path)


# Put together here, so that no scanner takes this file for a leak.
TOKENS = {
    "an AWS key": "AKIA" + "IOSFODNN7EXAMPLE",
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "a GitLab token": "glpat-" + "x1Y2z" * 4,
    "a Slack token": "xoxb-" + "123456789012-abc",
    "a Stripe key": "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "a Google key": "AIza" + "SyA-1234567890abcdefghijklmnopqrstu",
    "an API key": "sk-ant-" + "api03-abcdefghijkl_mnopqr",
    "a Hugging Face token": "hf_" + "abcDEF" * 6,
    "an npm token": "npm_" + "a1" * 18,
    "a JSON web token": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NTY3.SflKxwRJSMeKKF2QT4",
    "a password in an address": "postgres://admin:" + "hunter22@db.example.org/x",
    "a password or key": 'DB_PASSWORD = "' + "q9Zr7Lw2Xc5Vb8Nm" + '"',
}


@pytest.mark.parametrize("kind", TOKENS)
def test_texts_with_secrets(kind: str) -> None:
    assert secrets.secret_in(f"# settings\nvalue = {TOKENS[kind]}\n") == kind


@pytest.mark.parametrize(
    "text",
    [
        "password = get_password()\n",
        'token = "the_name_of_the_token"\n',
        'api_key = "${API_KEY_FROM_ENVIRONMENT_1}"\n',
        'url = f"https://{user}:{password}@host/"\n',
        'PASSWORD_FIELD = "password-field-2"\n',
        "task-list, desk-abcdefghijklmnopqrstuvwxyz\n",
        'secret = "xxxxxxxxxxxxxxxx1"\n',
    ],
)
def test_texts_without(text: str) -> None:
    assert secrets.secret_in(text) is None
