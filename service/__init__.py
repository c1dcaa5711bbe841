"""The daemon: asyncio, protocols and the file system around the filter."""
