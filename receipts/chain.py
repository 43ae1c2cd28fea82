"""The chains inside a sequence of receipts: no writer's has a gap, a change or a second branch."""

from __future__ import annotations

from receipts.receipt import Receipt, leaf_hash, parse_receipt


class ChainBroken(Exception):
    """A receipt is missing, was changed, or is not in its place."""


class ChainVerifier:
    """Check receipts in log order (docs/reference/receipt.md §5). Memory grows with writers alone."""

    def __init__(self) -> None:
        self._tails: dict[str, tuple[int, bytes]] = {}

    def add(self, raw: bytes) -> Receipt:
        """Check that `raw` follows its writer's previous receipt, and return it parsed.

        Raises ReceiptFormatError when the bytes are no receipt, ChainBroken when it is not the next of its
        writer.
        """
        receipt = parse_receipt(raw)
        tail = self._tails.get(receipt.writer)
        wseq, prev = (0, None) if tail is None else (tail[0], tail[1].hex())
        if receipt.wseq != wseq + 1:
            raise ChainBroken(f"writer {receipt.writer}: {receipt.wseq} follows {wseq}")
        if receipt.prev != prev:
            raise ChainBroken(f"writer {receipt.writer}: prev of {receipt.wseq} is not the hash of {wseq}")
        self._tails[receipt.writer] = (receipt.wseq, leaf_hash(raw))
        return receipt

    @property
    def writers(self) -> dict[str, int]:
        """The last `wseq` of every writer seen."""
        return {writer: wseq for writer, (wseq, _) in self._tails.items()}
