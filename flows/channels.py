"""The ways to tell people, as Prefect blocks that its server can send by, without code of ours in it."""

from collections.abc import Mapping

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook
from pydantic import SecretStr

from tasks.adapters.channels import Channels

NAMES = frozenset({"recsys-slack", "recsys-email", "recsys-webhook"})
"""Of the blocks."""


def blocks(channels: Channels) -> Mapping[str, NotificationBlock]:
    """One block a channel, by the name it is saved under. Addresses are secrets in every one of them."""
    return {f"recsys-{name}": _block(name, address) for name, address in channels.by_name().items()}


def _block(name: str, address: SecretStr) -> NotificationBlock:
    if name == "webhook":
        return CustomWebhookNotificationBlock(
            name="recsys",
            url="{{ address }}",
            json_data={"subject": "{{ subject }}", "body": "{{ body }}"},
            secrets={"address": address.get_secret_value()},
        )
    # Prefect has no block for SMTP. This one gives whatever is no Slack address to Apprise as it is, and Apprise mails.
    return SlackWebhook(url=_as_text(address) if name == "email" else address)


def _as_text(address: SecretStr) -> SecretStr:
    """What comes from data is never read as HTML by a mail program."""
    url = address.get_secret_value()
    return address if "format=" in url else SecretStr(f"{url}{'&' if '?' in url else '?'}format=text")
