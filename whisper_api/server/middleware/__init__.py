"""What every request passes through: access log, proxies, upgrades, CORS, authentication."""
