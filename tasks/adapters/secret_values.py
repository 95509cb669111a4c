"""Secrets and what looks like one: known by their variables or by their form. None is ever shown."""

import base64
import contextlib
import os
import re
from dataclasses import dataclass, field

from recsys.errors import ConfigError
from tasks.adapters.channels import Channels
from tasks.adapters.settings import Settings

_NAMES = re.compile(r"(^RECSYS_NOTIFY_)|PASSWORD|PASSWD|SECRET|TOKEN|API_KEY|ACCESS_KEY|CREDENTIAL|AUTH_STRING", re.I)
_SHORTEST = 8  # characters; a shorter value is found in innocent texts
_FORMS = {
    "a password in a URL": re.compile(r"[a-z][a-z0-9+.-]*://[^\s/:@\"']*:[^\s/@\"']+@", re.I),
    "a secret in a URL's query": re.compile(
        r"[?&](?:access_token|api_?key|auth|key|passw(?:or)?d|secret|sig(?:nature)?|token)=[^\s&\"']{6,}", re.I
    ),
    "the address of a web hook": re.compile(
        r"hooks\.slack\.com/services/\w+/\w+/\w+|discord(?:app)?\.com/api/webhooks/\d+/"
    ),
    "an AWS key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}


@dataclass(frozen=True)
class Secret:
    """A value that must be nowhere but where it belongs."""

    name: str
    value: str = field(repr=False)


def known_secrets(settings: Settings) -> tuple[Secret, ...]:
    """Of the variables that are called like one, the addresses of notify.toml, and the vault's key as it might be spelt."""
    found = [
        Secret(f"the value of {name}", value)
        for name, value in sorted(os.environ.items())
        if _NAMES.search(name) and name != "RECSYS_VAULT_KEY" and len(value) >= _SHORTEST
    ]
    with contextlib.suppress(ConfigError):  # told by another check, and nothing can be sent by it
        for name, address in Channels.of(settings).by_name().items():
            found.append(Secret(f"the address of {name}", address.get_secret_value()))
    try:
        key = settings.vault_key.read_bytes()
    except OSError:
        key = b""
    if key:
        spelt = {
            key.hex(),
            base64.b64encode(key).decode().rstrip("="),
            base64.urlsafe_b64encode(key).decode().rstrip("="),
        }
        found += [Secret("the vault's key", text) for text in sorted(spelt)]
    return tuple(found)


def exposed(text: str, secrets: tuple[Secret, ...]) -> str:
    """What a text gives away, by name; empty when nothing."""
    for secret in secrets:
        if secret.value in text:
            return secret.name
    return next((name for name, form in _FORMS.items() if form.search(text)), "")
