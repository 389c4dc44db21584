"""Spawns that are released together go on a few in a turn of the loop, and everything else comes in between."""

from __future__ import annotations

import asyncio

from ansible_bootstrap.dispatch.turnstile import IN_A_TURN, Turnstile


async def test_a_few_go_through_in_each_turn_in_the_order_of_their_coming() -> None:
    loop, turnstile = asyncio.get_running_loop(), Turnstile()
    futures = [loop.create_future() for _ in range(3 * IN_A_TURN)]
    for future in futures:
        turnstile.let_through(future)
    seen = []
    for _ in range(4):
        await asyncio.sleep(0)
        done = [future.done() for future in futures]
        assert done == sorted(done, reverse=True)
        seen.append(sum(done))
    assert seen == [IN_A_TURN, 2 * IN_A_TURN, 3 * IN_A_TURN, 3 * IN_A_TURN]


async def test_a_waiter_that_has_given_up_costs_no_turn_and_a_later_one_is_let_through() -> None:
    loop, turnstile = asyncio.get_running_loop(), Turnstile()
    futures = [loop.create_future() for _ in range(IN_A_TURN + 1)]
    for future in futures:
        turnstile.let_through(future)
    for future in futures[:-1]:
        future.cancel()
    await asyncio.sleep(0)
    assert futures[-1].done()
    late = loop.create_future()
    turnstile.let_through(late)
    await asyncio.sleep(0)
    assert late.done()
