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
        before = self._check_place(receipt.writer, receipt.wseq)
        if receipt.prev != (None if before is None else before.hex()):
            raise ChainBroken(f"writer {receipt.writer}: prev of {receipt.wseq} is not the hash of {receipt.wseq - 1}")
        self._tails[receipt.writer] = (receipt.wseq, leaf_hash(raw))
        return receipt

    def add_pruned(self, writer: str, wseq: int, leaf: bytes) -> None:
        """Take the leaf hash (32 bytes) of a receipt whose bytes were dropped; the writer's next one vouches for it.

        Raises ChainBroken when it is not the next of its writer.
        """
        self._check_place(writer, wseq)
        self._tails[writer] = (wseq, leaf)

    def _check_place(self, writer: str, wseq: int) -> bytes | None:
        """Return the hash of the writer's receipt before `wseq`, None for its first."""
        before, leaf = self._tails.get(writer, (0, None))
        if wseq != before + 1:
            raise ChainBroken(f"writer {writer}: {wseq} follows {before}")
        return leaf

    @property
    def writers(self) -> dict[str, int]:
        """The last `wseq` of every writer seen."""
        return {writer: wseq for writer, (wseq, _) in self._tails.items()}
