"""The fields of a form that name a receiver of the job's end."""

from __future__ import annotations

from whisper_api.config import Config
from whisper_api.jobs.webhooks import checked_url
from whisper_api.outbound.connecting import hosts_in
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.form_fields import FormFields

URL_FIELD = "webhook_url"
INCLUDE_RESULT_FIELD = "webhook_include_result"
WEBHOOK_FIELDS = (URL_FIELD, INCLUDE_RESULT_FIELD)
OFF = Problem(
    400, "webhooks_not_enabled", "This server sends no webhooks: set ENABLE_WEBHOOKS = true on the server, or poll"
)


def check_webhooks_enabled(config: Config) -> None:
    """Check that the configuration allows webhooks.

    Raises:
        Problem: 400 ``webhooks_not_enabled``.
    """
    if not config.enable_webhooks:
        raise Problem(OFF.status, OFF.code, OFF.detail)


def webhook_of(form: FormFields, config: Config) -> tuple[str | None, bool]:
    """The receiver that a form names, and whether it gets the result.

    Args:
        form: the form.
        config: says whether and where webhooks are sent.

    Raises:
        InvalidOption: nothing is sent to this address.
        Problem: 400 ``webhooks_not_enabled``.
    """
    url = form.last(URL_FIELD)
    include_result: bool = form.value(INCLUDE_RESULT_FIELD, bool, False)
    if url is None:
        if include_result:
            form.note(f"{INCLUDE_RESULT_FIELD} was ignored: there is no {URL_FIELD}")
        return None, False
    check_webhooks_enabled(config)
    return checked_url(URL_FIELD, url, hosts_in(config.webhook_private_hosts)), include_result
