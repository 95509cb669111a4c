"""notify.toml: one place, its owner's alone, and no address in any message."""

import pytest

from recsys.errors import ConfigError
from tasks.adapters.channels import Channels
from tasks.adapters.settings import Settings

SECRET = "T0/B0/canary"


@pytest.fixture
def settings(tmp_path):
    return Settings.from_environment(tmp_path)


def written(settings, text: str, mode: int = 0o600):
    path = settings.home / "notify.toml"
    path.write_text(text)
    path.chmod(mode)
    return Channels.of(settings)


def test_no_file_no_channels(settings):
    assert Channels.of(settings).by_name() == {}


def test_each_channel_may_be_left_out_and_none_shows_its_address(settings):
    channels = written(
        settings, f'slack = "https://hooks.slack.com/services/{SECRET}"\nemail = "mailtos://u:p@h?to=a@b.c"'
    )
    assert set(channels.by_name()) == {"slack", "email"}
    assert SECRET not in repr(channels)


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ('webhook = "https://h/{}"', 0o644, "chmod 600"),
        ('slack = "{}"', 0o600, "starts with https://"),
        ('email = "ops@{}"', 0o600, "starts with mailto://"),
        ("webhook = 3 # {}", 0o600, "the address of webhook is none"),
        ('pager = "https://h/{}"', 0o600, "Use slack, email, webhook"),
        ("slack = {}", 0o600, "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_without_the_address(settings, text, mode, message):
    with pytest.raises(ConfigError, match=message) as caught:
        written(settings, text.format(SECRET), mode)
    assert SECRET not in str(caught.value)
