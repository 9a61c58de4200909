"""Who may ask an Iotistica cloud: logins, refreshes, bearer tokens, device keys, and how often."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from datetime import datetime, timedelta

from rotator.sandbox.iotistica_rows import Generation, Json, Refusal, User
from rotator.sandbox.iotistica_tokens import TokenSigner


class LoginDesk:
    """Gives and checks the tokens of operators.

    Args:
        generation: the shape of logins and of what they answer.
        now: the platform's clock.

    Attributes:
        access_life, refresh_life: of tokens (the source: 15 minutes, 7 days).
        gives_refresh: a login's answer holds a refresh token.
        refresh_pair: a refresh gives a new pair and ends the old one (the document), or an access token alone.
        refusal_status: with which status a login of the other generation's shape is refused.
    """

    def __init__(self, *, generation: Generation, now: Callable[[], datetime]) -> None:
        self._generation, self._now = generation, now
        self.signer = TokenSigner()
        self.users: list[User] = []
        self.access_life = timedelta(hours=1) if generation is Generation.DOCUMENT else timedelta(minutes=15)
        self.refresh_life = timedelta(days=7)
        self.gives_refresh = True
        self.refresh_pair = generation is Generation.DOCUMENT
        self.refusal_status = 400
        self._spent: set[str] = set()

    def log_in(self, body: object) -> Json:
        """The answer to a login.

        Raises: Refusal.
        """
        name = "email" if self._generation is Generation.DOCUMENT else "username"
        fields = body if isinstance(body, dict) else {}
        if not fields.get(name) or not fields.get("password"):
            raise Refusal(self.refusal_status, f"{name.capitalize()} and password are required")
        if fields.keys() != {name, "password"}:
            raise Refusal(400, f"Unknown field: {', '.join(sorted(fields.keys() - {name, 'password'}))}")
        for user in self.users:
            if getattr(user, name) == fields[name] and user.password == fields["password"]:
                return self._answer("Login successful", user, self.gives_refresh)
        raise Refusal(401, "Invalid username or password")

    def refresh(self, body: object) -> Json:
        """The answer to a refresh.

        Raises: Refusal.
        """
        fields = body if isinstance(body, dict) else {}
        if fields.keys() != {"refreshToken"}:
            raise Refusal(400, "Refresh token is required")
        token = str(fields["refreshToken"])
        claims = self.signer.claims(token, self._now())
        user = next((each for each in self.users if claims and each.username == claims["sub"]), None)
        if claims is None or user is None or claims["type"] != "refresh" or token in self._spent:
            raise Refusal(401, "Invalid or expired refresh token")
        if self.refresh_pair:
            self._spent.add(token)
        return self._answer("Token refreshed successfully", user, self.refresh_pair)

    def authorize(self, authorization: str, *, admin: bool) -> None:
        """Raise Refusal unless the header shows a live access token of an operator (of an admin)."""
        scheme, _, token = authorization.partition(" ")
        claims = self.signer.claims(token, self._now()) if scheme == "Bearer" else None
        if claims is None or claims["type"] != "access":
            raise Refusal(401, "Invalid or expired token" if token else "Authentication required")
        if admin and claims["role"] != "admin":
            raise Refusal(403, "Insufficient permissions")

    def _answer(self, message: str, user: User, with_refresh: bool) -> Json:
        tokens = {"accessToken": self._token(user, "access", self.access_life)}
        if with_refresh:
            tokens["refreshToken"] = self._token(user, "refresh", self.refresh_life)
        if self._generation is Generation.DOCUMENT:
            return {**tokens, "expiresIn": int(self.access_life.total_seconds())}
        shown = {"username": user.username, "email": user.email, "role": user.role}
        more = {"mustChangePassword": False, "user": shown} if message.startswith("Login") else {}
        return {"message": message, "data": {**tokens, **more}}

    def _token(self, user: User, kind: str, life: timedelta) -> str:
        now = int(self._now().timestamp())
        ends = now + int(life.total_seconds())
        return self.signer.sign({"sub": user.username, "type": kind, "role": user.role, "iat": now, "exp": ends})


class Turnstile:
    """Counts requests in sliding windows.

    Attributes:
        limits: what is counted → how many, in how long; an empty mapping counts nothing.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self.limits = {
            "all": (300, timedelta(minutes=1)),
            "auth": (10, timedelta(minutes=1)),
            "rotate_key": (5, timedelta(minutes=15)),
        }
        self._passed: dict[tuple[str, str], deque[datetime]] = defaultdict(deque)

    def count(self, what: str, whom: str = "") -> None:
        """Let one more through.

        Raises: Refusal 429, whose `retryAfter` is text.
        """
        if what not in self.limits:
            return
        most, window = self.limits[what]
        now, passed = self._now(), self._passed[what, whom]
        while passed and passed[0] <= now - window:
            passed.popleft()
        if len(passed) >= most:
            wait = str(max(1, round((passed[0] + window - now).total_seconds())))
            raise Refusal(429, "Rate limit exceeded. Please try again later.", retryAfter=wait)
        passed.append(now)
