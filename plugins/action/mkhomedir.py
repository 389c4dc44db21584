# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module ``mkhomedir``, on this machine without a new interpreter."""

from __future__ import annotations

from ansible_collections.ansible_bootstrap.jupyterhub.plugins.plugin_utils.role_action import RoleAction


class ActionModule(RoleAction):
    """See the module's documentation."""
