"""Measurements that the choices of this repository rest on; each is a command."""
