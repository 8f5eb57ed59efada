"""What must never be read into a prompt: files and texts that hold keys, tokens or passwords.

Owns the patterns. It redacts nothing: a file in which one is found is left out whole, since the lines around a secret
often hold the rest of it. Invariant: a name is judged before the file is opened.

Source of the tokens' forms: the issuers' published prefixes (GitHub, GitLab, Slack, Stripe, Google, AWS, npm, PyPI,
Hugging Face, OpenAI, Anthropic), as secret scanners list them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

NAMES = (
    ".env", ".env.*", "*.env", ".envrc", ".netrc", "_netrc", ".npmrc", ".pypirc", ".git-credentials", ".htpasswd",
    ".pgpass", ".dockercfg", ".dockerconfigjson", ".s3cfg", ".boto", ".vault-token", ".terraformrc", "*.tfvars",
    "*.tfvars.json", "*.tfstate", "*.tfstate.backup", "*.pem", "*.key", "*.ppk", "*.p8", "*.p12", "*.pfx", "*.jks",
    "*.keystore", "*.kdbx", "*.asc", "*.gpg", "*.ovpn", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*",
    "credentials", "credentials.*", "client_secret*.json", "service[-_]account*.json", "secrets.json", "secrets.y*ml",
    "secrets.toml", "secrets.ini", "secret.json", "secret.y*ml", "local_settings.py", "wp-config.php",
)  # fmt: skip
"""File names, in lower case, that are made to hold secrets."""

FOLDERS = frozenset([".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker"])
"""Folders of which no file is read."""

TOKENS = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "an AWS key": re.compile(r"\b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})"),
    "a GitLab token": re.compile(r"\bgl(?:pat|dt|rt|ptt)-[\w-]{20,}"),
    "a Slack token": re.compile(r"\bxox[abeprs]-[\w-]{10,}|hooks\.slack\.com/services/\w+/\w+/\w+"),
    "a Stripe key": re.compile(r"\b[rs]k_live_[0-9A-Za-z]{16,}"),
    "a Google key": re.compile(r"\bAIza[\w-]{35}"),
    "an API key": re.compile(r"\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{20,}"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "an npm token": re.compile(r"\bnpm_[A-Za-z0-9]{36}"),
    "a PyPI token": re.compile(r"\bpypi-AgE[\w-]{50,}"),
    "a JSON web token": re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    "a password in an address": re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s:/@\"']+:[^\s:/@{}$<>%\"']{3,}@[\w.-]"),
}
"""What a secret is called to the name of its form."""

ASSIGNED = re.compile(
    r"(?:secret|token|passw(?:or)?d|passphrase|api_?key|access_?key|private_?key|auth_?key|credential)\w*"
    r"""["']?\s*(?:=>|:=|[:=])\s*["'`]([^\s"'`]{12,200})["'`]""",
    re.I,
)
# "changeme-changeme" has 2.8 bits a character, English words joined 3 to 3.4, random hexadecimal digits near 4.
MIN_ENTROPY = 3.5


def secret_name(path: str) -> bool:
    """Whether a file's name or folder says that it holds secrets.

    Args:
        path: in the repository, with forward slashes.
    """
    pure = PurePosixPath(path.lower())
    return bool(FOLDERS & set(pure.parts[:-1])) or any(fnmatchcase(pure.name, pattern) for pattern in NAMES)


def secret_in(text: str) -> str | None:
    """What kind of secret a text holds ("a GitHub token"), or None."""
    found = next((name for name, pattern in TOKENS.items() if pattern.search(text)), None)
    if found is None and any(is_random(match[1]) for match in ASSIGNED.finditer(text)):
        return "a password or key"
    return found


def is_random(value: str) -> bool:
    """Whether a string literal is more like a generated secret than like words: letters, digits and high entropy."""
    # "password-2" is a name; of 16 random letters and digits nearly all have two digits or more.
    has_both = sum(char.isdigit() for char in value) >= 2 and any(char.isalpha() for char in value)
    if not has_both or re.search(r"[${}<>()]|example|placeholder|x{4}", value, re.I):
        return False
    shares = [count / len(value) for count in Counter(value).values()]
    # The entropy of n characters is at most log2(n): a short one needs less.
    return -sum(share * math.log2(share) for share in shares) >= min(MIN_ENTROPY, 0.85 * math.log2(len(value)))
