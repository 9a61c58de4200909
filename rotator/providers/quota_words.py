"""Whether a refusal speaks of a quota that is full, or of requests that came too fast. Pure.

Platforms answer both with 429, or the first with 402, 403 or 409; only their codes and words tell them apart. It
matters: a throttle goes by itself, a full quota stays full until a person acts.
"""

from __future__ import annotations

import re
from typing import Final

from rotator.errors import Permanent, RotatorError
from rotator.providers.rest import Reply, said
from rotator.reasons import Reason

STATUSES: Final = (402, 403, 409, 429)
_THROTTLE: Final = re.compile(
    r"rate[ _-]?limit|throttl|slow[ _-]?down|\brequests\b|too[ _-]?many[ _-]?requests|request[ _-](rate|quota|limit)",
    re.I,
)
_QUOTA: Final = re.compile(r"quota|limit|\bmax[ _]|maximum|too[ _-]?many", re.I)


def names_quota(reply: Reply) -> bool:
    """Whether the platform refused because there may be no more of something."""
    if reply.status not in STATUSES:
        return False
    words = said(reply.value)
    return _QUOTA.search(words) is not None and _THROTTLE.search(words) is None


def refusal(reply: Reply) -> RotatorError:
    """What a refused call that makes something means: PROVIDER_QUOTA where a quota is full, else `Reply.error`."""
    if not names_quota(reply):
        return reply.error(changes=True)
    error = Permanent(f"{reply.what}: a quota is full: {reply.message}", reason=Reason.PROVIDER_QUOTA)
    error.body = reply.body
    return error
