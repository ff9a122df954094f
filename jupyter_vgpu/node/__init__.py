"""vgpud, the node daemon: tenants, quotas, placement and the guard."""
