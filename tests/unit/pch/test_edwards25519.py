"""Acceptable Ed25519 public keys, checked against the curve's own arithmetic."""

import pytest

from pch.edwards25519 import check_public_key

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
BASE_POINT = (15112221349535400772501151409588531511454012693041857206046113283949847762202, 4 * pow(5, -1, P) % P)
Point = tuple[int, int]


def add(one: Point, other: Point) -> Point:
    (x1, y1), (x2, y2) = one, other
    cross = D * x1 * x2 * y1 * y2
    x3 = (x1 * y2 + x2 * y1) * pow(1 + cross, -1, P)
    y3 = (y1 * y2 + x1 * x2) * pow(1 - cross, -1, P)
    return x3 % P, y3 % P


def multiply(scalar: int, point: Point) -> Point:
    result = (0, 1)
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def encode(point: Point) -> bytes:
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def square_root(value: int) -> int | None:
    root = pow(value, (P + 3) // 8, P)
    for candidate in (root, root * pow(2, (P - 1) // 4, P) % P):
        if (candidate * candidate - value) % P == 0:
            return candidate
    return None


def x_of(y: int) -> int | None:
    return square_root((y * y - 1) * pow(D * y * y + 1, -1, P) % P)


def small_order_points() -> set[Point]:
    """Every point that the cofactor sends to the neutral one, found by clearing the prime order from any points."""
    order = 2**252 + 27742317777372353535851937790883648493
    found: set[Point] = set()
    y = 2
    while len(found) < 8:
        y += 1
        x = x_of(y)
        if x is not None:
            found.add(multiply(order, (x, y)))
    return found


def test_multiples_of_the_base_point_are_accepted() -> None:
    for scalar in (1, 2, 3, 8, 12345, 2**200 + 1):
        check_public_key(encode(multiply(scalar, BASE_POINT)))


def test_all_eight_points_of_small_order_are_refused() -> None:
    points = small_order_points()
    assert len(points) == 8
    for point in points:
        assert multiply(8, point) == (0, 1)
        for sign in (0, 1):
            encoded = bytearray(encode(point))
            encoded[31] = encoded[31] & 0x7F | sign << 7
            with pytest.raises(ValueError, match="small order"):
                check_public_key(bytes(encoded))


def test_every_non_canonical_encoding_is_refused() -> None:
    for y in range(P, 2**255):
        for sign in (0, 1):
            with pytest.raises(ValueError, match="canonical"):
                check_public_key((y | sign << 255).to_bytes(32, "little"))


def test_off_the_curve_is_refused_exactly_where_there_is_no_x() -> None:
    on, off = 0, 0
    for y in range(2, 200):
        encoded = y.to_bytes(32, "little")
        if x_of(y) is None:
            off += 1
            with pytest.raises(ValueError, match="curve"):
                check_public_key(encoded)
        else:
            on += 1
            check_public_key(encoded)
    assert min(on, off) > 50
