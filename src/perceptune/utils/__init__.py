"""What knows nothing of models or data: files, processes, devices, progress, downloads."""
