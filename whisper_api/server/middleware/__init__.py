"""Middleware around all routes: access log, proxies, upgrades, CORS, authentication."""
