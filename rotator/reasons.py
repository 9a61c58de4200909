"""The names of everything that can happen to a key, and what a person does about each.

Every failure has a name (rule 7): the name is the `reason` label of the metrics, the `reason` field of the log and the
word in `status`; `ADVICE` is the next step that stands beside it. docs/reasons.md is held to this table by a test.
"""

from enum import StrEnum


class Reason(StrEnum):
    """A named reason: why a key is due, or why a step failed, waits, or is held back."""

    # why a key is due
    NEAR_EXPIRY = "near_expiry"
    MAX_AGE = "max_age"
    EXPIRED = "expired"
    REQUESTED = "requested"
    COMPROMISED = "compromised"
    # why a due key is not rotated now
    NOT_DUE = "not_due"
    PAUSED = "paused"
    OBSERVE_MODE = "observe_mode"
    OUTSIDE_WINDOW = "outside_window"
    BLACKOUT = "blackout"
    MIN_INTERVAL = "min_interval"
    CLOCK_SKEW = "clock_skew"
    STAMPEDE = "stampede"
    BACKOFF = "backoff"
    WAITING_FOR_ADOPTION = "waiting_for_adoption"
    QUARANTINED = "quarantined"
    # the provider
    PROVIDER_AUTH = "provider_auth"
    PROVIDER_UNREACHABLE = "provider_unreachable"
    PROVIDER_RATE_LIMITED = "provider_rate_limited"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PROVIDER_REFUSED = "provider_refused"
    PROVIDER_ANSWER_UNREADABLE = "provider_answer_unreadable"
    PROVIDER_QUOTA = "provider_quota"
    PROVIDER_UNABLE = "provider_unable"
    CLONE_DIFFERS = "clone_differs"
    OLD_SESSIONS = "old_sessions"
    NO_SECRET = "no_secret"
    EMPTY_SECRET = "empty_secret"
    OUTCOME_UNKNOWN = "outcome_unknown"
    ANSWER_LOST = "answer_lost"
    CURRENT_LOST = "current_lost"
    KEY_UNKNOWN = "key_unknown"
    KEY_REVOKED = "key_revoked"
    KEY_INACTIVE = "key_inactive"
    ROLE_MISSING = "role_missing"
    NO_EXPIRY = "no_expiry"
    EXPIRY_IMPLAUSIBLE = "expiry_implausible"
    ISSUED_ELSEWHERE = "issued_elsewhere"
    # the store
    VAULT_UNREACHABLE = "vault_unreachable"
    VAULT_SEALED = "vault_sealed"
    VAULT_AUTH = "vault_auth"
    VAULT_WRAPPING_TOKEN_USED = "vault_wrapping_token_used"
    VAULT_DENIED = "vault_denied"
    VAULT_RATE_LIMITED = "vault_rate_limited"
    VAULT_UNAVAILABLE = "vault_unavailable"
    VAULT_CONFLICT = "vault_conflict"
    VAULT_PATH_INVALID = "vault_path_invalid"
    VAULT_TRANSIT = "vault_transit"
    VAULT_VERSIONS = "vault_versions"
    VAULT_DRIFT = "vault_drift"
    VAULT_DELETED = "vault_deleted"
    VAULT_DESTROYED = "vault_destroyed"
    VAULT_OVERWRITTEN = "vault_overwritten"
    # the broker
    SECRET_REFUSED = "secret_refused"
    SUBSCRIPTION_REFUSED = "subscription_refused"
    BROKER_UNREACHABLE = "broker_unreachable"
    # the consumers
    CONSUMER_MISSING = "consumer_missing"
    CONSUMER_FORBIDDEN = "consumer_forbidden"
    CONSUMER_RESTART_FAILED = "consumer_restart_failed"
    CONSUMER_TIMEOUT = "consumer_timeout"
    CONSUMER_CRASHED = "consumer_crashed"
    CONSUMER_NOT_CONFIRMED = "consumer_not_confirmed"
    EVIDENCE_LOST = "evidence_lost"
    EVIDENCE_UNREADABLE = "evidence_unreadable"
    DELIVERY_LATE = "delivery_late"
    RESTART_MISSED = "restart_missed"
    OLD_SECRET_ALIVE = "old_secret_alive"
    ROLLBACK_REQUESTED = "rollback_requested"
    ROLLBACK_FAILED = "rollback_failed"
    ROLLBACK_IMPOSSIBLE = "rollback_impossible"
    # the daemon itself
    JOURNAL_LOCKED = "journal_locked"
    JOURNAL_MISSING = "journal_missing"
    JOURNAL_UNWRITABLE = "journal_unwritable"
    JOURNAL_UNREADABLE = "journal_unreadable"
    SEAL_KEY_MISSING = "seal_key_missing"
    SEAL_BROKEN = "seal_broken"
    SECRET_FORGOTTEN = "secret_forgotten"
    SECRET_REFERENCE = "secret_reference"
    LISTEN_FAILED = "listen_failed"
    BAD_REQUEST = "bad_request"
    UNAUTHORISED = "unauthorised"
    NO_SUCH_KEY = "no_such_key"
    STOPPING = "stopping"
    UNFORESEEN = "unforeseen"


ADVICE: dict[Reason, str] = {
    Reason.NEAR_EXPIRY: "Nothing: the key is rotated now.",
    Reason.MAX_AGE: "Nothing: the key is rotated now.",
    Reason.EXPIRED: "Consumers are probably down. Look at the reason beside it; `rotator rotate KEY --now` tries at once.",
    Reason.REQUESTED: "Nothing: somebody asked for this rotation.",
    Reason.COMPROMISED: "Nothing: somebody said that the old secret is known to others; it is retired without a grace period.",
    Reason.NOT_DUE: "Nothing.",
    Reason.PAUSED: "`rotator resume KEY` when the reason for the pause is gone.",
    Reason.OBSERVE_MODE: "Set `mode: manage` when the plan looks right.",
    Reason.OUTSIDE_WINDOW: "Wait for the next window, or `rotator rotate KEY --now`.",
    Reason.BLACKOUT: "Wait for the blackout's end, or `rotator rotate KEY --now`.",
    Reason.MIN_INTERVAL: "Wait, or `rotator rotate KEY --now`.",
    Reason.CLOCK_SKEW: "This host's clock and the peer's are more than five minutes apart: mend the clock; `rotator rotate KEY --now` goes on.",
    Reason.STAMPEDE: "More keys than `max_due_share` came due at once against the plan: look at the dates in `rotator status`, at the provider and at the last change of the configuration, then `rotator resume --all`.",
    Reason.BACKOFF: "Look at the failure before it; the next try is at the time shown.",
    Reason.WAITING_FOR_ADOPTION: (
        "Vault has no secret for this key yet: `rotator adopt KEY` brings the existing one, `rotator rotate KEY` makes a"
        " new one (whoever uses the old one elsewhere loses it)."
    ),
    Reason.QUARANTINED: "Look at the reason of the last failure, mend it, then `rotator resume KEY`.",
    Reason.PROVIDER_AUTH: "Check the login of this provider in the configuration (token, password, broker admin); an expired one is renewed at the platform.",
    Reason.PROVIDER_UNREACHABLE: "Check the network, DNS and TLS between this host and the provider's URL.",
    Reason.PROVIDER_RATE_LIMITED: "Nothing at first: the provider's delay is kept. If it stays, raise the quota or lower `watch`.",
    Reason.PROVIDER_UNAVAILABLE: "Look at the provider's status page; the call is tried again.",
    Reason.PROVIDER_REFUSED: "Read the provider's message in the log: the request was understood and refused.",
    Reason.PROVIDER_ANSWER_UNREADABLE: "The answer was not what the document says: check `url`, a proxy in between, or a changed API.",
    Reason.PROVIDER_QUOTA: "A quota of the platform is full, so no second key can be made beside the old one: the message names it; raise it, or delete what is not used.",
    Reason.PROVIDER_UNABLE: "This platform, or its configuration, has no such ability: the message says which; `docs/providers.md` has the table.",
    Reason.CLONE_DIFFERS: "The platform made a key with other rights than the original's, and it was not used: compare both at the platform, then `rotator rotate KEY --now`.",
    Reason.OLD_SESSIONS: "Nothing at first: the broker says some seconds late how old its sessions are, and is asked again; what is left after that, close by hand.",
    Reason.NO_SECRET: "The provider answered without a secret. Look at the key in its portal; the answer lies sealed in the journal.",
    Reason.EMPTY_SECRET: "The provider answered with an empty secret. Look at the key in its portal; the answer lies sealed in the journal.",
    Reason.OUTCOME_UNKNOWN: "Nothing at first: the provider is looked at before anything is issued again.",
    Reason.ANSWER_LOST: "Nothing at first: a secret was issued and its answer never arrived; a new one is issued.",
    Reason.CURRENT_LOST: "The answer to a call was lost, and this platform gives a new secret only for the current one: have one made by its administration, then `rotator adopt KEY` and `rotator resume KEY`.",
    Reason.KEY_UNKNOWN: "The provider does not list this id: correct `keys.KEY.id`, or remove the key from the configuration.",
    Reason.KEY_REVOKED: "The key was revoked at the provider: create a new one there and change `keys.KEY.id`.",
    Reason.KEY_INACTIVE: "The key is inactive or disabled at the provider, and stays so: activate it there, or remove it from the configuration.",
    Reason.ROLE_MISSING: "Assign the MqttIntegrator role to the key at the provider.",
    Reason.NO_EXPIRY: "The provider names no expiry: set `rotate.max_age` for this key.",
    Reason.EXPIRY_IMPLAUSIBLE: "The expiry lies in the past or can't be derived: check the provider, this host's clock and `lifetime`.",
    Reason.ISSUED_ELSEWHERE: "Somebody else refreshed this key: find them and stop them, then `rotator rotate KEY --now`.",
    Reason.VAULT_UNREACHABLE: "Check the network, DNS and TLS between this host and `vault.url`. A waiting secret stays sealed in the journal.",
    Reason.VAULT_SEALED: "Unseal Vault. A waiting secret stays sealed in the journal and is written within seconds of the unseal.",
    Reason.VAULT_AUTH: "Check `vault.auth`: the login was refused.",
    Reason.VAULT_WRAPPING_TOKEN_USED: "Somebody may hold the daemon's secret id: the wrapping token was used before us, expired, or is another than yours. Destroy that secret id (`vault write auth/approle/role/ROLE/secret-id-accessor/destroy`), make another one, wrapped, and find out who used it (Vault's audit log).",
    Reason.VAULT_DENIED: "Add the missing capability to the daemon's policy (deploy/vault/rotator-policy.hcl).",
    Reason.VAULT_RATE_LIMITED: "Raise Vault's rate limit quota for this client.",
    Reason.VAULT_UNAVAILABLE: "Look at Vault's own log; the call is tried again.",
    Reason.VAULT_CONFLICT: (
        "Somebody else changed our fields in Vault: compare with `vault kv get`, then `rotator rotate KEY --now`,"
        " or set `on_conflict: take_over`."
    ),
    Reason.VAULT_PATH_INVALID: "Check `vault.mount` and `keys.KEY.vault.path`: no KV version 2 engine answers there.",
    Reason.VAULT_TRANSIT: "Check `state.seal`: no transit engine with this key answers there, or its policy refuses; `vault write -f MOUNT/keys/KEY` makes the key.",
    Reason.VAULT_VERSIONS: "The previous version would be gone when it is needed for the way back: raise `max_versions` of this secret (`vault kv metadata put -max-versions=10 PATH`), or look at its `delete_version_after`.",
    Reason.VAULT_DRIFT: "Vault is behind what this daemon left there (brought back from a backup?): compare versions, then `rotator rotate KEY`, or set `on_drift: restore`.",
    Reason.VAULT_DELETED: "Somebody deleted the current version: `vault kv undelete`, or set `on_drift: restore`; `rotator rotate KEY` makes a new secret.",
    Reason.VAULT_DESTROYED: "The current version is gone for good: `rotator rotate KEY` makes a new secret.",
    Reason.VAULT_OVERWRITTEN: "Somebody else changed our fields in Vault: compare versions with `vault kv get -version`, then `rotator rotate KEY`, or set `on_drift: restore`.",
    Reason.SECRET_REFUSED: "The broker refuses the secret: check `verify` (host, port, username template) and the key at the provider.",
    Reason.SUBSCRIPTION_REFUSED: "The broker let the key in but refused the filter: check `verify.subscribe` and the key's role and integration.",
    Reason.BROKER_UNREACHABLE: "Check `verify.host`, `verify.port` and TLS; nothing is rolled back because of this.",
    Reason.CONSUMER_MISSING: "Check the consumer's `unit`, `argv`, `url`, topic, namespace, workload or selector: it is not there.",
    Reason.CONSUMER_FORBIDDEN: "Allow the daemon to restart it: deploy/systemd/ has the polkit rule; for Kubernetes bind the Role that the message holds; a broker or a webhook refused the login.",
    Reason.CONSUMER_RESTART_FAILED: "Look at the consumer's own log (`journalctl -u UNIT`, `kubectl describe`).",
    Reason.CONSUMER_TIMEOUT: "The restart did not end in time: look at the consumer's log, or raise `timeout`.",
    Reason.CONSUMER_CRASHED: "The consumer started and died again: look at its own log. Once it runs on the current version, `rotator confirm KEY CONSUMER` closes the case.",
    Reason.CONSUMER_NOT_CONFIRMED: "The consumer was restarted but nothing proves that it runs on the new secret: look at its log and at `confirm`. Once it runs on the current version, `rotator confirm KEY CONSUMER` closes the case.",
    Reason.EVIDENCE_LOST: "Nothing: what proves the consumer could not be read; it is looked at again, or restarted once more to be seen.",
    Reason.EVIDENCE_UNREADABLE: "No restart could be proven: check the host, the login and the topic of the consumer's `confirm`, and what the broker lets that login read.",
    Reason.DELIVERY_LATE: "The new secret is in Vault, but not where the consumer reads it: look at its External Secret, or at the agent that writes its file. Nobody is restarted onto the old one.",
    Reason.RESTART_MISSED: "Nothing: a consumer was not yet proven on the current version, and is restarted for it.",
    Reason.OLD_SECRET_ALIVE: "The rotation went through, and the broker still lets the old secret in: revoke it at the platform by hand, and end its sessions.",
    Reason.ROLLBACK_REQUESTED: "Nothing: a person took this rotation back. `rotator resume KEY` when the key may be rotated again.",
    Reason.ROLLBACK_FAILED: "There is no way back, and neither key was retired: look at both keys at the provider and at the consumers, then `rotator resume KEY`.",
    Reason.ROLLBACK_IMPOSSIBLE: "Nothing can be taken back: the old secret is gone. `rotator rotate KEY --now` makes a new one.",
    Reason.JOURNAL_LOCKED: "Another rotator holds this journal: ask it (`rotator status`), or stop it first.",
    Reason.JOURNAL_MISSING: "Start the daemon, which makes it, or run this in the daemon's working directory: a relative path in `state.url` begins there.",
    Reason.JOURNAL_UNWRITABLE: "Check the disk and the permissions of the state directory at once: a secret may be waiting in memory.",
    Reason.JOURNAL_UNREADABLE: "With the daemon stopped, bring the journal back from a backup, or move it aside together with its `-wal` and `-shm` files: the next start of the daemon then takes the keys up from Vault; pauses, quarantines, rotations in flight and secrets that wait sealed are forgotten.",
    Reason.SEAL_KEY_MISSING: "Bring the seal key back that the message names; `rotator seal forget KEY` accepts that what waits under it is lost.",
    Reason.SEAL_BROKEN: "The sealed record can't be opened with this seal key: bring the key that sealed it.",
    Reason.SECRET_FORGOTTEN: "Nothing: somebody accepted the loss of a sealed secret (`rotator seal forget KEY`); the key is rotated again.",
    Reason.SECRET_REFERENCE: "The file, credential or variable that holds a secret can't be read: see the message.",
    Reason.LISTEN_FAILED: "Another process has the address of `http.listen`: stop it, or choose another.",
    Reason.BAD_REQUEST: "Correct the request: see the message.",
    Reason.UNAUTHORISED: "Give the admin token of `http.admin_token` (`--token-file`).",
    Reason.NO_SUCH_KEY: "Check the name: `rotator status` lists the configured keys.",
    Reason.STOPPING: "Nothing: the daemon is stopping; the rotation goes on at the next start.",
    Reason.UNFORESEEN: "A fault in rotator itself: please report the traceback in the log; then `rotator resume KEY`.",
}


# What only a person can mend: the daemon goes on looking, but nothing is gained by trying often.
NEEDS_A_PERSON: frozenset[Reason] = frozenset(
    {
        Reason.KEY_UNKNOWN,
        Reason.KEY_REVOKED,
        Reason.KEY_INACTIVE,
        Reason.STAMPEDE,
        Reason.ROLLBACK_FAILED,
        Reason.ROLE_MISSING,
        Reason.CURRENT_LOST,
        Reason.CLONE_DIFFERS,
        Reason.PROVIDER_UNABLE,
        Reason.PROVIDER_QUOTA,
        Reason.NO_EXPIRY,
        Reason.ISSUED_ELSEWHERE,
        Reason.VAULT_WRAPPING_TOKEN_USED,
        Reason.VAULT_DRIFT,
        Reason.VAULT_DELETED,
        Reason.VAULT_DESTROYED,
        Reason.VAULT_OVERWRITTEN,
        Reason.VAULT_VERSIONS,
    }
)
