"""The JupyterHub side: hooks, progress, and the error that shows well. Nothing else imports jupyterhub.

What the hub demands of a hook, and where it says so (jupyterhub 6):

* It runs on the event loop and has no time limit: ``start_timeout`` wraps only ``Spawner.start``
  (``User.spawn``). So everything here is bounded by ``c.AnsibleBootstrap.timeout``.
* ``User.spawn`` catches ``Exception``: a CancelledError that leaves the hook without anybody having cancelled
  the spawn would leave a "ready" server that does not exist.
* A spawn is cancelled with one second to end (``UserServerAPIHandler.delete``): nothing is awaited then.
* A TimeoutError is reported as ``start_timeout``; the text of any other exception reaches the student;
  plain ones count towards ``consecutive_failure_limit``, after which the hub exits
  (``BaseHandler.spawn_single_user``). So only :class:`BootstrapError` leaves the hook.
* Settings are deep-copied into each spawner (traitlets' ``Configurable``): the hooks are module-level functions,
  and what they share is in one ``Core``.

=============  =============================================================================
``install``    ``setup(c)``: has the hub use the classes of ``mixin``
``hooks``      the same as hooks, for a configuration that names them itself
``login``      at login: the work is begun before the user presses Start
``spawns``     one start of one server: what the hooks do
``page``       what the student sees meanwhile
``mixin``      ``bootstrapped``: spawner classes that do so, and look again at what is mounted
``core``       what all of them share: dispatcher, ledger, fingerprints, history, metrics
``failure``    the one exception that leaves a hook
=============  =============================================================================
"""

from ansible_bootstrap.hub.failure import BootstrapError
from ansible_bootstrap.hub.hooks import post_stop_hook, pre_spawn_hook
from ansible_bootstrap.hub.install import setup
from ansible_bootstrap.hub.mixin import bootstrapped

__all__ = [
    "BootstrapError",
    "bootstrapped",
    "post_stop_hook",
    "pre_spawn_hook",
    "setup",
]
