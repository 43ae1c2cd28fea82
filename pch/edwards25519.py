"""Which Ed25519 public keys are acceptable, RFC 8032 §5.1.3 and §8.

OpenSSL takes any 32 bytes as a public key: with one of small order it lets anyone make signatures that hold
for almost every message, and some encodings stand for the same point as another. A registered key must name
one point of large order in one way.
"""

from __future__ import annotations

from typing import Final

_P: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P
# y coordinates of the eight points whose order divides the cofactor 8; the two long ones are those of order
# 8.
_Y_OF_ORDER_8: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_Y: Final = frozenset({0, 1, _P - 1, _Y_OF_ORDER_8, _P - _Y_OF_ORDER_8})


def check_public_key(encoded: bytes) -> None:
    """Check an encoded public key of 32 bytes: canonical, on the curve, not of small order.

    Raises ValueError.
    """
    y = int.from_bytes(encoded, "little") & (2**255 - 1)
    if y >= _P:
        raise ValueError("public key is not canonically encoded")
    if y in _SMALL_ORDER_Y:
        raise ValueError("public key is of small order")
    # On the curve when x² = (y²-1) / (dy²+1) has a root; u/v is a square exactly when u·v is (Euler's
    # criterion).
    y_squared = y * y % _P
    if pow((y_squared - 1) * (_D * y_squared + 1), (_P - 1) // 2, _P) != 1:
        raise ValueError("public key is not on the curve")
