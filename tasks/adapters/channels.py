"""Where people are told: the file <home>/notify.toml, the one place for addresses, which are secrets.

slack = "https://hooks.slack.com/services/..."
email = "mailtos://user:password@smtp.example.com?from=recsys@example.com&to=ops@example.com"
webhook = "https://example.com/hook"            each may be left out
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import SecretStr

from recsys.errors import ConfigError
from tasks.adapters.settings import Settings

FILE = "notify.toml"
_SCHEMES = {"slack": ("https",), "email": ("mailto", "mailtos"), "webhook": ("https", "http")}
_READABLE_BY_OTHERS = 0o077


@dataclass(frozen=True)
class Channels:
    """The addresses that messages go to; None: not by this way."""

    slack: SecretStr | None = None
    email: SecretStr | None = None
    webhook: SecretStr | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What a home's notify.toml says; none where there is no such file. ConfigError never repeats an address."""
        path = settings.home / FILE
        try:
            mode = path.stat().st_mode
            written = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            raise ConfigError(
                "the file of notification addresses cannot be read",
                where=str(path),
                mend='Write lines such as slack = "https://hooks.slack.com/services/...".',
            ) from None
        if mode & _READABLE_BY_OTHERS:
            raise ConfigError("others may read the notification addresses", where=str(path), mend=f"chmod 600 {path}")
        return cls(**{name: _address(path, name, value) for name, value in written.items()})

    def by_name(self) -> dict[str, SecretStr]:
        """Those that there are."""
        every = {"slack": self.slack, "email": self.email, "webhook": self.webhook}
        return {name: address for name, address in every.items() if address is not None}


def _address(path: Path, name: str, value: object) -> SecretStr:
    if name not in _SCHEMES:
        raise ConfigError(
            f"{name!r} is no way to tell people", where=str(path), mend=f"Use {', '.join(_SCHEMES)}, each at most once."
        )
    schemes = _SCHEMES[name]
    if not isinstance(value, str) or urlsplit(value).scheme not in schemes or not urlsplit(value).netloc:
        starts = " or ".join(f"{scheme}://" for scheme in schemes)
        raise ConfigError(f"the address of {name} is none", where=str(path), mend=f"It starts with {starts}.")
    return SecretStr(value)
