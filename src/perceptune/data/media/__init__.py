"""Reading images, audio and videos from files, archives and memory, robust against damaged files."""
