"""What a real hub shows to Prometheus, and to which callers."""

from __future__ import annotations

import httpx
from hub_fakes import FakeApply, until
from hub_process import RunningHub, scrape


async def test_the_metrics_appear_beside_the_hubs_own_and_count_what_happens(
    hub: RunningHub, apply: FakeApply
) -> None:
    assert httpx.get(f"{hub.url}/metrics").status_code == 403
    apply.do(delay=2)
    async with hub.api() as api:
        await api.create("alma", "mallory")
        spawns = [api.spawn("alma")]
        await until(lambda: apply.runs)
        spawns.append(api.spawn("mallory"))
        await until(lambda: scrape(hub).get('ansible_bootstrap_queue_users{storage_host="localhost"}') == 1)
        apply.do(fail={"mallory": {"message": "secret"}})
        for spawn in spawns:
            await spawn
        await until(lambda: any('outcome="partial"' in name and value for name, value in scrape(hub).items()))
        await api.stop("alma")
    now = scrape(hub)
    assert now['ansible_bootstrap_users_total{operation="bootstrap",outcome="ok",reason=""}'] == 1
    failed = 'ansible_bootstrap_users_total{operation="bootstrap",outcome="failed",reason="role_failed"}'
    assert now[failed] == 1
    assert now['ansible_bootstrap_hook_duration_seconds_count{way="run"}'] == 1
    assert now['ansible_bootstrap_hook_duration_seconds_count{way="failed"}'] == 1
    assert now['ansible_bootstrap_hook_duration_seconds_sum{way="run"}'] > 1
    assert now['ansible_bootstrap_batch_users_sum{operation="bootstrap"}'] == 2
    assert 'ansible_bootstrap_queue_users{storage_host="localhost"}' not in now
    assert not any("alma" in name or "mallory" in name for name in now)
