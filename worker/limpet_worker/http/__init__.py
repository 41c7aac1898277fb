"""The HTTP side of a worker: front door, polling, CORS, upgrades, and the way to aiohttp."""
