"""The first minute of a class: everybody arrives within ten seconds, at a real hub, through its real proxy.

Each student logs in at the form, asks for a server, follows the page's progress, and opens the server. The
single-user server is one tiny process that all share, so that what is measured is the hub and its hook. The variants
run in alternating rounds, each with a database and storage of its own. The hubs of those who come again stand at the
same time and get their storms in turn: machines, virtual ones above all, are not as fast in every minute. The one
whose turn it is not has no servers and rests.

=================  ==============================================================================
``none``           no hook, users the hub has never seen
``none again``     the same hub, the same users again after their servers were stopped, five times
``ours``           ``setup(c)``; new users get a directory and a course of 20 files
``ours again``     the same hub again, five times: everybody is complete
``naive``          one ``ansible_runner.run`` per spawn, in threads, with stock modules
``script``         JupyterHub's bootstrap-script example: a shell script, by a hook that blocks
=================  ==============================================================================

What is the same in all variants: the arrivals (a seed), the clients, and hub and proxy with their defaults but for
``concurrent_spawn_limit``, which is off: with the default of 100, whoever is beyond it gets a 429 and comes back after
the 30 to 60 s that the hub names in Retry-After, and who was served last says more of that than of the hook.

    python -m benchmarks.storm                                   writes benchmarks/results/storm.{md,svg,png}
    python -m benchmarks.storm --users 30 --seconds 2 --rounds 1 --results /tmp/storm

=====================  =====================================================
``__main__``           options, rounds and their order
``variants``           what an admin writes for each variant
``hub_config``         the rest of the hub's configuration
``spawner``            a spawner without a process per user
``shared_server``      everybody's single-user server
``hub``                starts and ends a hub
``student``            one student, over HTTP
``storm``              all of them, by the clock
``health``             asks for ``/hub/health`` every 20 ms, from a process of its own
``results``            tables and plots
=====================  =====================================================
"""
