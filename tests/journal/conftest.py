"""A disk that can be told to fail, to fill up or to stall, and rows to write on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.channel import Deposit
from llmesh.core.ids import AttemptId, ModelId, PeerId, RequestId
from llmesh.core.receipt import Charge, Receipt, SignedReceipt, Work
from llmesh.core.voucher import ChannelConfig, ChannelId, SignedVoucher, Voucher
from llmesh.journal.channels import ChannelRow
from llmesh.journal.charge import RecordCharge
from llmesh.journal.columns import Side
from llmesh.journal.receipts import ReceiptRow, StoreReceipt


class Rows:
    """Rows of one node, one peer and one model; what matters to a test is given.

    Signatures are made up: the journal keeps what core has checked.
    """

    owner = PeerId("12D3KooW" + "A" * 44)
    peer = PeerId("12D3KooW" + "B" * 44)
    model = ModelId("ab" * 32)
    id = ChannelId(b"c" * 32)
    config = ChannelConfig(*(Address(bytes([n]) * 20) for n in range(5)), 86_400, b"s" * 32)

    def attempt(self, number: int) -> AttemptId:
        return AttemptId(RequestId(f"{number:032x}"), 1)

    def channel(self, side: Side = Side.PROVIDER, id: ChannelId = id) -> ChannelRow:
        return ChannelRow(side, id, self.peer, self.config, Deposit(balance=Amount(1_000_000)))

    def voucher(self, ceiling: int) -> SignedVoucher:
        return SignedVoucher(Voucher(self.id, Amount(ceiling)), b"v" * 65)

    def signed(self, number: int, before: int = 0, fee: int = 5, at: int = 1_000) -> SignedReceipt:
        charge = Charge(self.id, number, Amount(fee), Amount(before + fee))
        work = Work(self.model, "fp32-strict", bytes(32), bytes(32))
        receipt = Receipt(self.config.receiver, self.attempt(number), bytes(32), work, charge, at + number)
        return SignedReceipt(receipt, b"r" * 65)

    def store(self, number: int, **other: int) -> StoreReceipt:
        return StoreReceipt(ReceiptRow(Side.PROVIDER, self.peer, self.signed(number, **other)))

    def charge(self, number: int, before: int, fee: int = 5) -> RecordCharge:
        """The charge of request `number`, with a voucher that just covers it."""
        return RecordCharge(self.peer, self.signed(number, before, fee), self.voucher(before + fee))


class Disk(apsw.VFS):
    """The default VFS with faults: `write` and `sync` are raised while set, `held` stalls every sync."""

    def __init__(self) -> None:
        self.base = apsw.vfs_names()[0]
        super().__init__("faulty", self.base, makedefault=True)
        self.write: apsw.Error | None = None
        self.sync: apsw.Error | None = None
        self.read_only = False
        self.syncs_left = 1 << 30  # how many syncs still fail while `sync` is set
        self.held: threading.Event | None = None
        self.syncs = 0

    def xOpen(self, name: object, flags: list[int]) -> DiskFile:  # noqa: N802
        if self.read_only:
            flags[0] = flags[0] & ~apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_READONLY
        return DiskFile(self, name, flags)


class DiskFile(apsw.VFSFile):
    def __init__(self, disk: Disk, name: object, flags: list[int]) -> None:
        super().__init__(disk.base, name, flags)  # type: ignore[arg-type]
        self._disk = disk

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self._disk.write is not None:
            raise self._disk.write
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        disk = self._disk
        disk.syncs += 1
        if disk.held is not None:
            disk.held.wait(10)
        if disk.sync is not None and disk.syncs_left > 0:
            disk.syncs_left -= 1
            raise disk.sync
        super().xSync(flags)


@pytest.fixture
def disk() -> Iterator[Disk]:
    faulty = Disk()
    try:
        yield faulty
    finally:
        faulty.write = faulty.sync = None
        if faulty.held is not None:
            faulty.held.set()
        faulty.unregister()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def rows() -> Rows:
    return Rows()
