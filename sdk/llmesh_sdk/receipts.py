"""The receipt of an answer: what its provider has signed, to be kept and checked without any node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from llmesh.core.amount import Amount
from llmesh.core.ids import RequestId
from llmesh.errors import ValidationFailed

__all__ = ["AnswerReceipt"]


@dataclass(frozen=True, slots=True)
class AnswerReceipt:
    """A provider's word for one answer; nothing says yet that it is genuine: `verify` does.

    `id` is the digest that was signed, `provider` the address of the provider's account, `chain` and
    `contract` name the ledger it counts on; `signed` is the whole receipt.
    """

    id: str
    provider: str
    price: Amount
    request_id: RequestId = field(repr=False)
    chain: int = field(repr=False)
    contract: str = field(repr=False)
    signed: bytes = field(repr=False)

    @classmethod
    def read(cls, fields: Mapping[str, Any], request: RequestId) -> Self:
        return cls(
            id=fields["id"],
            provider=fields["provider"],
            price=Amount.parse(fields["price"]),
            request_id=request,
            chain=fields["chain"],
            contract=fields["contract"],
            signed=bytes.fromhex(fields["signed"]),
        )

    @classmethod
    def kept(cls, fields: Mapping[str, Any]) -> Self:
        """The latest of what a node has kept of a request."""
        last, ledger = fields["receipts"][-1], fields["chain"]
        charge = last["charge"]
        told = {
            "id": last["id"],
            "provider": charge["provider"],
            "price": charge["price"],
            "chain": ledger["id"],
            "contract": ledger["contract"],
            "signed": last["signed"],
        }
        return cls.read(told, RequestId(fields["request_id"]))

    def verify(self, input: Mapping[str, Any] | None = None, output: Mapping[str, Any] | None = None) -> None:
        """Check, offline, that the provider has signed this; and that it was for this input and output.

        Give values by name, tensors as `llmesh.Tensor`, since a receipt knows an array from a list.
        Raises ValidationFailed for whatever does not agree, ImportError without the extra `[verify]`.
        """
        try:
            from llmesh.core.address import address_from_text, address_text
            from llmesh.core.digest import values_digest
            from llmesh.core.receipt import check_receipt, read_receipt, receipt_digest
            from llmesh.core.typed import Chain
        except ImportError as error:
            raise ImportError('To check receipts: pip install "llmesh-network[verify]"') from error
        chain, signed = Chain(self.chain, address_from_text(self.contract)), read_receipt(self.signed)
        check_receipt(signed, chain)
        receipt, work = signed.receipt, signed.receipt.work
        said = {
            "id": (receipt_digest(receipt, chain).hex(), self.id),
            "provider": (address_text(receipt.provider), self.provider),
            "price": (receipt.charge.price, self.price),
            "request": (receipt.attempt.request, self.request_id),
            "input": (work.input_digest, work.input_digest if input is None else values_digest(input)),
            "output": (work.output_digest, work.output_digest if output is None else values_digest(output)),
        }
        for what, (signed_for, claimed) in said.items():
            if signed_for != claimed:
                raise ValidationFailed(f"The receipt is for another {what}.")
