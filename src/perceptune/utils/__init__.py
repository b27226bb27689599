"""Utilities that do not depend on models or data: files, processes, devices, progress, downloads."""
