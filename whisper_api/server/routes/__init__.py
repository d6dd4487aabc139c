"""The routes: one module for each resource, with the handlers and their descriptions.

May import the rest of the server; only ``app`` imports the routes.
"""
