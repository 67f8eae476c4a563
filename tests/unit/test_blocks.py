"""Whose block ends, where several tasks and threads have entered one object."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cacheguard.runtime.blocks import OpenBlocks


def test_the_last_block_of_the_same_thread_ends_first() -> None:
    blocks = OpenBlocks[str]()
    blocks.enter("outer")
    blocks.enter("inner")
    assert [blocks.leave(), blocks.leave()] == ["inner", "outer"]


def test_a_thread_ends_its_own_block_although_another_thread_entered_later() -> None:
    blocks = OpenBlocks[str]()
    blocks.enter("mine")
    other = threading.Thread(target=blocks.enter, args=("another's",))
    other.start()
    other.join()
    assert blocks.leave() == "mine"


async def test_a_task_ends_its_own_block_although_another_task_entered_later() -> None:
    blocks, left = OpenBlocks[str](), list[str]()
    second_is_inside, first_is_over = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        blocks.enter("first")
        await second_is_inside.wait()
        left.append(blocks.leave())
        first_is_over.set()

    async def second() -> None:
        blocks.enter("second")
        second_is_inside.set()
        await first_is_over.wait()
        left.append(blocks.leave())

    await asyncio.gather(first(), second())
    assert left == ["first", "second"]


def test_a_thread_without_a_block_of_its_own_ends_the_last_one() -> None:
    blocks, left = OpenBlocks[str](), list[str]()
    blocks.enter("entered elsewhere")
    other = threading.Thread(target=lambda: left.append(blocks.leave()))
    other.start()
    other.join()
    assert left == ["entered elsewhere"]


def test_a_block_that_was_never_entered_cannot_end() -> None:
    with pytest.raises(IndexError, match="never entered"):
        OpenBlocks[str]().leave()
