"""How a secret is stored: salted and hashed with scrypt (RFC 7914), with the parameters beside the hash."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

# 16 MiB and about 50 ms. Passwords need more; nobody guesses one of 2^256 random secrets, whatever a try costs.
N, R, P = 2**14, 8, 1
MOST_MEMORY = 256 * 2**20  # bytes; a hash in a file must not be able to take all there is

Hex = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2}){16,64}$")]


class ScryptHash(BaseModel):
    """The hash of one secret."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int = Field(ge=2)
    r: int = Field(ge=1)
    p: int = Field(ge=1, le=16)
    salt: Hex
    digest: Hex

    @model_validator(mode="after")
    def _can_be_computed(self) -> ScryptHash:
        if self.n & (self.n - 1):
            raise ValueError(f"n {self.n} is no power of two")
        if 128 * self.n * self.r > MOST_MEMORY:
            raise ValueError(f"n {self.n} and r {self.r} would take more than {MOST_MEMORY:,} bytes")
        return self

    @classmethod
    def of(cls, secret: str) -> ScryptHash:
        """The hash of `secret` under a salt of its own. Takes as long as `matches`."""
        salt = secrets.token_bytes(16)
        return cls(n=N, r=R, p=P, salt=salt.hex(), digest=_scrypt(secret, salt, N, R, P, 32).hex())

    @classmethod
    def of_nothing(cls) -> ScryptHash:
        """A hash that no secret has, which costs what any other costs to compare with."""
        return cls(n=N, r=R, p=P, salt=secrets.token_hex(16), digest=secrets.token_hex(32))

    def matches(self, secret: str) -> bool:
        """Whether this is the hash of `secret`. Takes tens of milliseconds, in which other threads run."""
        digest = bytes.fromhex(self.digest)
        found = _scrypt(secret, bytes.fromhex(self.salt), self.n, self.r, self.p, len(digest))
        return hmac.compare_digest(found, digest)


def _scrypt(secret: str, salt: bytes, n: int, r: int, p: int, length: int) -> bytes:
    memory = 128 * r * (n + p + 2)
    return hashlib.scrypt(secret.encode("ascii"), salt=salt, n=n, r=r, p=p, maxmem=memory + 2**20, dklen=length)
