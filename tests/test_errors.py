"""The table of errors is closed, total and survives a round trip."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from llmesh import errors
from llmesh.errors import ERRORS, MeshError, UnknownError, ValidationFailed, error_from_code

CONTRACT = {
    1001: "未找到模型", 1002: "质押不足", 1003: "超时", 1004: "验证失败",
    2001: "网络错误", 2002: "节点不可达", 3001: "余额不足", 3002: "交易失败",
}  # fmt: skip


def leaves() -> list[type[MeshError]]:
    return [c for c in MeshError.__subclasses__() if c is not UnknownError]


def test_every_class_is_a_row_and_every_row_a_class() -> None:
    assert set(ERRORS.values()) == set(leaves())
    assert {cls.__name__ for cls in leaves()} <= set(errors.__all__)


def test_the_contracts_codes_are_there() -> None:
    assert set(CONTRACT) <= set(ERRORS)


@pytest.mark.parametrize("cls", leaves())
def test_a_row_is_whole(cls: type[MeshError]) -> None:
    assert cls.name == cls.__name__
    assert 400 <= cls.http_status < 600
    assert cls.next_step.endswith(".")
    assert cls.__doc__


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_a_code_becomes_its_class(code: int) -> None:
    error = error_from_code(code, "Why.", request_id="ab", peer_id="p", retry_after=1.5)
    assert type(error) is ERRORS[code]
    assert (error.code, error.message, error.request_id, error.peer_id) == (code, "Why.", "ab", "p")
    assert error.remote
    assert error.retry_after == 1.5
    assert all(part in str(error) for part in (str(code), "Why.", error.next_step, "ab"))


def test_an_unknown_code_survives() -> None:
    error = error_from_code(9999, "From the future.")
    assert isinstance(error, UnknownError)
    assert error.code == 9999
    assert UnknownError.code == 0
    assert error.try_next()


def test_what_others_say_cannot_steer_a_terminal_nor_forge_a_line_of_the_log() -> None:
    told = error_from_code(2004, "It broke\n12:00 INFO all is well\x1b]52;c;eA==\x07 \u9519\u8bef")
    assert told.message == "It broke?12:00 INFO all is well?]52;c;eA==? \u9519\u8bef"


@pytest.mark.parametrize(
    ("code", "ours", "theirs"),
    [
        (1001, False, True), (1002, False, True), (1003, False, False),
        (2001, True, True), (2002, True, True), (2003, True, True), (2004, True, True),
        (3001, False, False), (3002, False, False),
        (4001, False, False), (4002, False, False), (4003, False, False), (4004, False, False),
        (4005, False, False),
    ],
)  # fmt: skip
def test_when_the_next_candidate_may_try(code: int, ours: bool, theirs: bool) -> None:
    assert error_from_code(code, "x", remote=False).try_next() is ours
    assert error_from_code(code, "x", remote=True).try_next() is theirs


def test_a_bad_request_is_not_tried_again_but_a_bad_answer_is() -> None:
    assert not ValidationFailed("bad request").try_next()
    assert not ValidationFailed("the peer calls it bad", peer_id="p", remote=True).try_next()
    assert ValidationFailed("the peer's answer is bad", peer_id="p").try_next()


def test_no_other_module_lists_codes() -> None:
    root = Path(errors.__file__).parent
    for path in root.rglob("*.py"):
        if path.name == "errors.py" or path.name.endswith("_pb2.py"):
            continue
        numbers = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
        # 4001 is also the port that libp2p programs listen on by custom.
        port = {4001} if path.name == "ports.py" else set()
        found = (set(ERRORS) - port) & {n for n in numbers if isinstance(n, int)}
        assert not found, f"{path.relative_to(root)} names {found}"


def test_an_error_may_say_what_to_do_itself() -> None:
    usual = errors.InsufficientBalance("Too little.")
    own = errors.InsufficientBalance("Too little.", next_step="Spend less.")
    assert (own.next_step, usual.next_step) == ("Spend less.", errors.InsufficientBalance.next_step)
    assert str(own) == "[3001 InsufficientBalance] Too little. Spend less."
    assert error_from_code(3001, "x", next_step="a\nb").next_step == "a?b"
    assert error_from_code(3001, "x").next_step == usual.next_step
